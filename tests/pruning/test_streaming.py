"""Walking over blocks gives what a plain forward pass gives, in little memory, whatever the micro-batch."""

from __future__ import annotations

import platform
import subprocess
import sys
import warnings

import pytest
import torch
from gpus import ROUNDED_TO, SimulatedGPU
from torch import nn

from labkit.errors import LabkitError
from labkit.ladder import Rung
from labkit.pruning import blocks, engine, masks, memory, prune, sparsegpt, streaming
from labkit.pruning.moments import Hessian, Norms
from labkit.pruning.waiting import HiddenStates

TOKENS = torch.randint(1, 168, (6, 12), generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """6 sequences of 12 are a part of 4 and a rest of 2; 8 of 24 are parts of 2."""
    for device in ("cpu", "cuda"):
        monkeypatch.setitem(memory.MICRO_BATCH_TOKENS, device, 4 * 12)


def inputs_in_a_plain_pass(model, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
    """Matrix -> (tokens, inputs), noted with hooks on all modules at once."""
    found = {name: m for name, m in blocks.matrices(model).items() if m.expert is None}
    noted = {}
    handles = [
        matrix.module.register_forward_pre_hook(lambda _, args, name=name: noted.update({name: args[0].flatten(0, -2)}))
        for name, matrix in found.items()
    ]
    with torch.no_grad():
        model(input_ids=tokens, use_cache=False)
    for handle in handles:
        handle.remove()
    return noted


def walked(model, tokens: torch.Tensor, kind: type = Norms, **how: object) -> dict[str, torch.Tensor]:
    return {name: s.value() for step in streaming.walk(model, tokens, kind, **how) for name, s in step.items()}


@pytest.mark.parametrize("changes", [True, False])
def test_walking_without_a_change_gives_the_norms_of_a_plain_forward_pass(decoder, tokens, changes):
    plain = inputs_in_a_plain_pass(decoder, tokens)
    norms = walked(decoder, tokens, changes=changes)
    assert list(norms) == list(blocks.matrices(decoder))
    for name, inputs in plain.items():
        assert norms[name].dtype == torch.float32
        torch.testing.assert_close(norms[name], inputs.norm(dim=0), rtol=1e-4, atol=1e-5)


def test_the_hessian_is_twice_the_mean_outer_product(decoder, tokens):
    hessians = walked(decoder, tokens, Hessian)
    for name, inputs in inputs_in_a_plain_pass(decoder, tokens).items():
        expected = 2 * inputs.double().T @ inputs.double() / len(inputs)
        torch.testing.assert_close(hessians[name].double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("architecture", ["mixtral"], indirect=True)
def test_each_expert_is_given_the_tokens_routed_to_it(decoder, tokens):
    """Independent: from the router's own choice and the formula of an expert, token by token."""
    seen, block = {}, decoder.model.layers[0].mlp
    handle = block.register_forward_pre_hook(lambda _, args: seen.update(x=args[0].flatten(0, 1)))
    with torch.no_grad():
        decoder(input_ids=tokens)
        chosen = block.gate(seen["x"])[2]
    handle.remove()
    norms = walked(decoder, tokens)
    for e in range(4):
        rows = torch.stack([x for x, experts in zip(seen["x"], chosen, strict=True) if e in experts])
        gate, up = (block.experts.gate_up_proj[e].detach() @ rows.T).T.chunk(2, dim=1)
        down = nn.functional.silu(gate) * up
        prefix = "model.layers.0.mlp.experts"
        torch.testing.assert_close(norms[f"{prefix}.gate_up_proj.{e}"], rows.norm(dim=0), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(norms[f"{prefix}.down_proj.{e}"], down.norm(dim=0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("architecture", ["mixtral"], indirect=True)
def test_an_expert_that_no_token_reaches_is_named(decoder, tokens):
    gate = decoder.model.layers[1].mlp.gate
    with torch.no_grad():
        gate.weight[3] = 0
    decoder.model.layers[1].post_attention_layernorm.weight.data.abs_()
    gate.forward = lambda x: (None, torch.full((len(x), 2), 0.5), torch.tensor([[0, 1]]).expand(len(x), 2))
    with pytest.raises(LabkitError, match=r"every matrix takes part .* got 'model\.layers\.1\..*\.gate_up_proj\.2, "):
        list(streaming.walk(decoder, tokens))


def test_matrices_of_one_input_share_its_statistic():
    step = next(streaming.walk(Rung(32, 1).build().eval(), TOKENS))
    ids = {name.rsplit(".", 1)[1]: id(statistic) for name, statistic in step.items()}
    assert ids["q_proj"] == ids["k_proj"] == ids["v_proj"] and ids["gate_proj"] == ids["up_proj"]
    assert len(set(ids.values())) == 4


def test_matrices_that_one_sequence_does_not_reach_share_no_statistic():
    """Experts in modules of their own; a sequence alone reaches the first only."""
    model = Rung(32, 1).build().eval()
    mlp = model.model.layers[0].mlp
    mlp.experts = nn.ModuleList(nn.Linear(32, 32) for _ in range(3))

    def forward(x: torch.Tensor) -> torch.Tensor:
        for number, expert in enumerate(mlp.experts, start=1):
            if number == 1 or len(x) > 1:
                expert(number * x)
        return mlp.down_proj(mlp.gate_proj(x) * mlp.up_proj(x))

    mlp.forward = forward
    one, *others = (walked(model, TOKENS)[f"model.layers.0.mlp.experts.{e}"] for e in range(3))
    for number, norms in enumerate(others, start=2):
        torch.testing.assert_close(norms, number * one)


@pytest.mark.parametrize("rows", [1, 6])
@pytest.mark.filterwarnings("ignore:out of memory")
def test_a_matrix_that_is_called_twice_counts_both_calls_once(rows):
    """Its first call shares the input of another matrix, its second does not: so they share no statistic."""
    model = Rung(32, 1).build().eval()
    mlp, given = model.model.layers[0].mlp, []

    def forward(x: torch.Tensor) -> torch.Tensor:
        given.append((x, 2 * x))
        return mlp.down_proj(mlp.act_fn(mlp.gate_proj(x)) * mlp.up_proj(x) + mlp.up_proj(given[-1][1]))

    mlp.forward = forward
    fails_above(model, rows, where="mlp.act_fn")
    found = walked(model, TOKENS)
    given.clear()
    with torch.no_grad():
        for sequence in TOKENS.split(1):
            model(input_ids=sequence)
    once, twice = (torch.cat([pair[i].flatten(0, -2) for pair in given]) for i in (0, 1))
    torch.testing.assert_close(found["model.layers.0.mlp.gate_proj"], once.norm(dim=0))
    torch.testing.assert_close(found["model.layers.0.mlp.up_proj"], torch.cat([once, twice]).norm(dim=0))


def test_the_next_block_sees_what_was_done_to_the_last():
    model = Rung(32, 2).build().eval()
    steps = streaming.walk(model, TOKENS)
    next(steps)
    model.model.layers[0].mlp.down_proj.weight.data.zero_()
    changed = next(steps)["model.layers.1.self_attn.q_proj"].value()
    torch.testing.assert_close(changed, walked(model, TOKENS)["model.layers.1.self_attn.q_proj"])


def test_the_model_is_left_as_it_was():
    model = Rung(32, 2).build().eval()
    list(streaming.walk(model, TOKENS))
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize("more", [lambda states: torch.cat([states, states], 1), lambda states: states[None]])
def test_hidden_states_that_are_not_one_vector_a_token_are_refused(more):
    model = Rung(16, 2).build().eval()
    model.model.embed_tokens.register_forward_hook(lambda _, args, states: more(states))
    for block in model.model.layers:  # so that what comes of it is nobody else's error
        block.forward = lambda hidden_states, *args, **kwargs: hidden_states
    with pytest.raises(LabkitError, match=r"pass on hidden states \(sequences, time, width\); got .* in LlamaForCausalLM"):
        walked(model, TOKENS)


def test_a_block_that_gives_nan_is_named():
    model = Rung(32, 3).build().eval()
    model.model.layers[1].mlp.down_proj.weight.data[0, 0] = float("nan")
    with pytest.raises(LabkitError, match="activations are finite; got 'NaN or infinity after block model.layers.1'"):
        list(streaming.walk(model, TOKENS))


def test_a_matrix_that_calibration_never_reaches_is_named():
    model = Rung(32, 1).build().eval()
    model.model.layers[0].expert = nn.Linear(4, 4)
    with pytest.raises(LabkitError, match="every matrix takes part .* got 'model.layers.0.expert'"):
        list(streaming.walk(model, TOKENS))


# --- memory ----------------------------------------------------------------------------------------------------------


def fails_above(model, rows: int, where: str = "input_layernorm") -> None:
    """Make every block a device that holds activations of at most ``rows`` sequences from one of its parts on."""

    def check(module: nn.Module, args: tuple) -> None:
        if len(args[0]) > rows and args[0].shape[1] == TOKENS.shape[1]:
            raise torch.OutOfMemoryError("simulated")

    for block in blocks.decoder_blocks(model)[1]:
        block.get_submodule(where).register_forward_pre_hook(check)


@pytest.mark.parametrize("where", ["input_layernorm", "post_attention_layernorm", "mlp.act_fn"])
@pytest.mark.parametrize("kind", [Norms, Hessian])
def test_out_of_memory_halves_the_micro_batch_says_so_and_changes_nothing_else(kind, where, monkeypatch):
    """Wherever in a block: what was counted before is not counted again. Buffers of the larger size are let go."""
    model, released, release = Rung(32, 2).build().eval(), [], HiddenStates.release
    monkeypatch.setattr(HiddenStates, "release", lambda states: released.append(states) or release(states))
    expected = walked(model, TOKENS, kind)
    fails_above(model, rows=1, where=where)
    with pytest.warns(UserWarning, match="out of memory in model.layers.0: on with 1 calibration sequences at a time"):
        found = walked(model, TOKENS, kind)
    assert len(released) == 2 * 1 + 2  # there are none at first, of two walks; then of 4 sequences and of 2
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)


def test_embeddings_that_run_out_of_memory_halve_the_micro_batch_too():
    model = Rung(32, 2).build().eval()
    expected = walked(model, TOKENS)

    def check(module: nn.Module, args: tuple) -> None:
        if len(args[0]) > 1 and args[0].shape[1] == TOKENS.shape[1]:
            raise torch.OutOfMemoryError("simulated")

    model.get_input_embeddings().register_forward_pre_hook(check)
    with pytest.warns(UserWarning, match="out of memory in the embeddings: on with 1 calibration sequences at a time"):
        found = walked(model, TOKENS)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)


def test_one_sequence_that_does_not_fit_is_an_error():
    model = Rung(32, 2).build().eval()
    fails_above(model, rows=0)
    with pytest.raises(LabkitError, match="got 'out of memory in model.layers.0 with one sequence of 12 tokens'"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            list(streaming.walk(model, TOKENS))


def test_a_statistic_that_runs_out_of_memory_counts_every_token_once(monkeypatch):
    model = Rung(32, 1).build().eval()
    expected, add = walked(model, TOKENS), Norms.add

    def small(self: Norms, inputs: torch.Tensor) -> None:
        if len(inputs) > 2 * TOKENS.shape[1]:
            raise torch.OutOfMemoryError("simulated")
        add(self, inputs)

    monkeypatch.setattr(Norms, "add", small)
    with pytest.warns(UserWarning, match="out of memory in model.layers.0: on with 2 calibration sequences at a time"):
        found = walked(model, TOKENS)
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name])


def test_one_block_at_a_time_is_on_the_device(monkeypatch):
    model, there, most = Rung(32, 3).build().eval(), set(), []

    def move(block: nn.Module, device: object) -> None:
        there.symmetric_difference_update({block})
        most.append(len(there))

    monkeypatch.setattr(streaming, "move", move)
    for _ in streaming.walk(model, TOKENS, device="cpu"):
        assert len(there) == 1
    assert not there and max(most) == 1 and len(most) == 6


def test_factors_of_a_hessian_take_one_more_of_its_size():
    width = 256
    with SimulatedGPU() as gpu:
        statistic = Hessian()
        statistic.add(torch.randn(2 * width, width, generator=torch.Generator().manual_seed(0)).to("cuda"))
        factors = []
        grown = gpu.most(lambda: factors.append(sparsegpt.inverse_factor(statistic.take(), "w")))
        assert factors[0].shape == (width, width) and statistic.products.numel() == 1
    assert grown < 1.1 * 4 * width**2


@pytest.mark.parametrize("options", [{"sparsity": 0.5}, {"pattern": "2:4"}])
def test_rows_that_do_not_compete_may_be_scored_some_at_a_time(monkeypatch, options):
    model = Rung(64, 1).build().eval()
    whole = prune(model, "wanda", calibration=TOKENS, **options).state_dict()
    scored = []
    keep = masks.Keep.__call__
    monkeypatch.setitem(engine.SCORES, "cpu", 3 * 64)
    monkeypatch.setattr(masks.Keep, "__call__", lambda self, scores: scored.append(scores.numel()) or keep(self, scores))
    parts = prune(model, "wanda", calibration=TOKENS, **options).state_dict()
    assert max(scored) <= 3 * 64
    for name in whole:
        assert torch.equal(whole[name], parts[name]), name


@pytest.mark.parametrize("kind", [Norms, Hessian])
def test_more_sequences_take_no_more_memory_of_a_gpu(kind):
    """Their hidden states wait on the CPU, though the model is there."""

    def grown(sequences: int) -> int:
        tokens = torch.randint(1, 168, (sequences, 12), generator=torch.Generator().manual_seed(0)).to("cuda")
        return gpu.most(lambda: [step.clear() for step in streaming.walk(model, tokens, kind)])

    with SimulatedGPU() as gpu:
        model = Rung(32, 2).build().eval().to("cuda")
        few, many = grown(8), grown(64)
    assert 0 <= many - few <= (64 - 8) // 4 * 2 * ROUNDED_TO  # two numbers of each micro-batch


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators have other rules")
def test_the_memory_of_freed_activations_is_used_again():
    """24 MiB written and freed, and so on, cost page faults at first; without, every time (6,144 of 4 KiB)."""
    script = """
import resource, torch
from labkit.pruning.streaming import keep_freed_memory
torch.set_num_threads(1)
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(6 * 2**20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
keep_freed_memory()
print(faults(), faults(), faults(), faults())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    first, *_, last = map(int, done.stdout.split())
    assert first > 5_000 and last < 500
