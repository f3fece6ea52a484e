"""Recovery: zeros stay, the loss falls, costs are counted, and what a merge under the mask costs is told."""

from __future__ import annotations

import copy
import dataclasses
import warnings

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel, MixtralConfig, MixtralForCausalLM

from labkit import forward, quantize, recovery, training
from labkit.abilities import Corpus, abilities, vocabulary
from labkit.errors import LabkitError
from labkit.flops import forward_flops_per_token, non_embedding_params
from labkit.ladder import Rung
from labkit.lineage import lineage
from labkit.pruning import blocks, ledger
from labkit.records import IGNORE
from labkit.recovery import recover

CORPUS = Corpus(abilities("recall", "shift"), seed=0, length=24)
BATCH, STEPS = 4, 12
TOKENS = BATCH * STEPS * CORPUS.length
FAST = {"learning_rate": 3e-2, "tokens": TOKENS}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Small batches, and no compiling, which takes longer than these trainings."""
    monkeypatch.setattr(forward, "compiled", lambda module: module)
    monkeypatch.setattr(training, "LOG_EVERY", 3)
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", -1)
    monkeypatch.setattr(recovery, "BATCH", BATCH)
    monkeypatch.setattr(recovery, "HELD_OUT", 8)


def halved(model):
    """The model with half of its weights zero, by their magnitude, and its ledger written."""
    for matrix in blocks.matrices(model).values():
        matrix.weight.masked_fill_(matrix.weight.abs() < matrix.weight.abs().median(), 0)
    ledger.record_masks(model)
    return model


def llama():
    return Rung(16, 2).build(seed=3)


def gpt2():
    torch.manual_seed(0)
    shape = {"n_embd": 16, "n_layer": 2, "n_head": 2, "resid_pdrop": 0, "embd_pdrop": 0, "attn_pdrop": 0}
    return GPT2LMHeadModel(GPT2Config(vocab_size=vocabulary.SIZE, n_positions=CORPUS.length, **shape))


def mixtral():
    torch.manual_seed(0)
    return MixtralForCausalLM(
        MixtralConfig(
            vocab_size=vocabulary.SIZE, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=1, num_local_experts=3, num_experts_per_tok=2,
        )
    )  # fmt: skip


def facts(model):
    return lineage(model)[-1]


@pytest.mark.parametrize("build", [llama, gpt2, mixtral])
@pytest.mark.parametrize("method", recovery.METHODS)
def test_zeros_stay_the_loss_falls_and_the_input_is_untouched(build, method):
    model, teacher = halved(build()), build()
    before, config = copy.deepcopy(model.state_dict()), model.config.to_dict()
    new = recover(model, CORPUS, method, **FAST, teacher=teacher)
    assert all(torch.equal(before[name], w) for name, w in model.state_dict().items())
    assert model.config.to_dict() == config and lineage(model) == ()
    assert all(torch.equal(a, b) for a, b in zip(build().parameters(), teacher.parameters(), strict=True))

    assert type(new) is type(model) and list(new.state_dict()) == list(before)
    assert all(p.requires_grad and p.grad is None for p in new.parameters()) and not hasattr(new, "peft_config")
    for name, matrix in blocks.matrices(new).items():
        old = blocks.matrices(model)[name].weight
        assert (matrix.weight[old == 0] == 0.0).all(), name
        assert not torch.equal(matrix.weight, old), name
    ledger.check_masks(new)
    told = facts(new)
    better = told["loss_after_nats"] < told["loss_before_nats"]
    assert better or method == "distil"  # its teacher here knows nothing yet
    assert (told["verb"], told["method"], told["tokens"], told["seed"]) == ("recover", method, TOKENS, 0)


def test_the_losses_told_are_those_of_rows_that_training_does_not_see():
    model = halved(llama())
    new = recover(model, CORPUS, "full", **FAST)
    rows = list(recovery._held_out(recovery._Rows(CORPUS, vocabulary.SIZE), TOKENS))
    shown = {row.tobytes() for tokens, _ in CORPUS.batches(BATCH, STEPS) for row in tokens}
    assert not shown & {row.tobytes() for tokens, _ in rows for row in tokens}
    for told, m in (("loss_before_nats", model), ("loss_after_nats", new)):
        tokens, labels = (torch.from_numpy(np.concatenate(x)) for x in zip(*rows, strict=True))
        with torch.no_grad():
            p = m(input_ids=tokens).logits.double().log_softmax(-1)
        nats = [-p[b, t, labels[b, t]].item() for b, t in (labels != IGNORE).nonzero()]
        assert facts(new)[told] == pytest.approx(np.mean(nats), rel=1e-5)


def test_rows_held_out_of_a_foreign_corpus_are_those_after_the_training():
    class Counting:
        length = 24

        def batches(self, batch, steps, first=0):
            yield from ((np.full((batch, 24), step), np.full((batch, 24), step)) for step in range(first, steps))

    numbers = [int(tokens[0, 0]) for tokens, _ in recovery._held_out(recovery._Rows(Counting(), vocabulary.SIZE), TOKENS)]
    assert numbers == list(range(STEPS, STEPS + recovery.HELD_OUT))


@pytest.mark.parametrize("build", [llama, gpt2, mixtral])
def test_lora_is_the_base_plus_scaled_b_times_a_under_the_mask(build, monkeypatch):
    kept, merge = {}, PeftModel.__getattr__

    def watched(self, name):
        if name == "merge_and_unload":
            kept.update({n: w.detach().numpy().copy() for n, w in self.state_dict().items() if "lora_" in n})
        return merge(self, name)

    monkeypatch.setattr(PeftModel, "__getattr__", watched)
    model = halved(build())
    new = recover(model, CORPUS, "lora", rank=2, **FAST)
    for name, matrix in blocks.matrices(model).items():
        if matrix.expert is None:
            a, b = (kept[f"base_model.model.{name}.lora_{x}.default.weight"] for x in "AB")
        else:
            where = f"base_model.model.{name.split('.experts')[0]}."
            names = [n for n in kept if n.startswith(where + "experts")]
            a, b = _expert(kept, names, matrix, 3)
        old = matrix.weight.numpy()
        expected = (old + 2.0 * b @ a) * (old != 0)
        np.testing.assert_allclose(blocks.matrices(new)[name].weight.numpy(), expected, atol=1e-6, err_msg=name)


def _expert(kept, names, matrix, experts):
    """A (rank, inputs) and B (outputs, rank) of one expert, out of those of all that peft stacks."""
    outputs, inputs = matrix.weight.shape
    shape = lambda n: (_partner(kept, n).shape[0], kept[n].shape[1])  # noqa: E731
    name = next(n for n in names if "lora_A" in n and shape(n) == (outputs, inputs))
    a, b = kept[name], _partner(kept, name)
    return a.reshape(experts, -1, inputs)[matrix.expert], b.reshape(outputs, -1, experts)[:, :, matrix.expert]


def _partner(kept, name):
    return kept[name.replace("lora_A", "lora_B")]


def test_lora_tells_what_the_merge_and_the_mask_cost(monkeypatch):
    model = halved(llama())
    told = facts(recover(model, CORPUS, "lora", **FAST))
    assert told["rank"] == 8
    assert told["loss_merged_nats"] == pytest.approx(told["loss_adapter_nats"], abs=1e-5)  # merging is exact
    assert told["loss_adapter_nats"] < told["loss_before_nats"]
    assert told["loss_after_nats"] != pytest.approx(told["loss_merged_nats"], abs=1e-6)  # the mask is not free
    dense = facts(recover(llama(), CORPUS, "lora", **FAST))
    assert dense["loss_after_nats"] == dense["loss_merged_nats"]


def test_an_uncompressed_model_is_recovered_as_any_training_would():
    control, trained = recover(llama(), CORPUS, "full", **FAST), llama()
    training.train(trained, CORPUS, TOKENS, batch=BATCH, learning_rate=3e-2)
    assert all(torch.equal(a, b) for a, b in zip(control.parameters(), trained.parameters(), strict=True))
    assert not hasattr(control.config, "labkit_masks")


def test_distilling_a_model_from_itself_starts_at_zero_and_moves_nothing():
    model = llama()
    loss = recovery._Distilled(model, model.device)
    tokens, labels = (torch.from_numpy(x) for x in next(CORPUS.batches(BATCH, 1)))
    value = loss(forward.Forward(model), tokens, labels)
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-6)
    assert max(p.grad.abs().max().item() for p in model.parameters() if p.grad is not None) < 1e-6


def test_distilling_brings_the_student_nearer_to_its_teacher():
    teacher = llama()
    for matrix in blocks.matrices(teacher).values():
        matrix.weight.mul_(10)  # fresh weights are so small that halving them changes nothing
    teacher.lm_head.weight.data.mul_(30)
    student = halved(copy.deepcopy(teacher))
    rows = recovery._Rows(CORPUS, vocabulary.SIZE)
    tokens, labels = (torch.from_numpy(x) for x in next(recovery._held_out(rows, TOKENS)))
    loss = recovery._Distilled(teacher, teacher.device)
    new = recover(student, CORPUS, "distil", teacher=teacher, tokens=4 * TOKENS, learning_rate=1e-2)
    after, before = (loss(forward.Forward(model), tokens, labels).item() for model in (new, student))
    assert after < 0.85 * before


def test_flops_of_every_method_are_counted_from_the_shapes():
    """Backward: 2 FLOPs a weight for the gradient of its inputs, 2 for its own where it is trained."""
    model, teacher = llama(), Rung(32, 2).build()
    d, v, n = 16, vocabulary.SIZE, non_embedding_params(model)
    attention = 2 * 2 * CORPUS.length * d
    forward = 2 * n + attention + 2 * d * v
    count = lambda method: facts(recover(model, CORPUS, method, teacher=teacher, rank=2, **FAST))["flops"]  # noqa: E731
    assert count("full") == TOKENS * 3 * forward
    assert count("distil") == TOKENS * (3 * forward + forward_flops_per_token(teacher, CORPUS.length))
    adapters = sum(2 * sum(m.weight.shape) for m in blocks.matrices(model).values())
    inputs_and_forward = 2 * (2 * (n + adapters) + attention + 2 * d * v)
    # Attention has no weights: both of its backward products are gradients of inputs.
    assert count("lora") == TOKENS * (inputs_and_forward + attention + 2 * adapters)


class Kill(Exception):
    pass


@pytest.mark.parametrize("method", recovery.METHODS)
def test_a_killed_recovery_resumes_and_ends_with_the_same_weights(tmp_path, monkeypatch, method):
    @dataclasses.dataclass(frozen=True)
    class Fragile(Corpus):
        def batches(self, batch, steps, first=0):
            for step, rows in enumerate(super().batches(batch, steps, first), start=first):
                if steps == STEPS and step == 7 and not (tmp_path / "killed").exists():
                    (tmp_path / "killed").touch()
                    raise Kill
                yield rows

    corpus = Fragile(CORPUS.abilities, length=24)
    options = {"teacher": llama(), "folder": tmp_path / "kept", **FAST}
    with pytest.raises(Kill):
        recover(halved(llama()), corpus, method, **options)
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["step-00000006"]
    resumed = recover(halved(llama()), corpus, method, **options)
    undisturbed = recover(halved(llama()), corpus, method, **options | {"folder": None})
    for (name, a), b in zip(undisturbed.state_dict().items(), resumed.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6, msg=name)
    same = ("tokens", "flops", "loss_before_nats", "loss_after_nats")
    assert [facts(resumed)[k] for k in same] == pytest.approx([facts(undisturbed)[k] for k in same], rel=1e-5)


def test_the_seed_draws_adapters_and_nothing_else():
    state = torch.random.get_rng_state()
    make = lambda seed, method: list(recover(llama(), CORPUS, method, **FAST, seed=seed).parameters())  # noqa: E731
    same = lambda a, b: all(torch.equal(x, y) for x, y in zip(a, b, strict=True))  # noqa: E731
    first = make(0, "lora")
    assert same(first, make(0, "lora")) and not same(first, make(1, "lora"))
    assert same(make(0, "full"), make(1, "full"))
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_model_in_half_precision_comes_back_in_it_and_loads(tmp_path, method):
    from labkit.zoo import load

    model = halved(llama()).to(torch.bfloat16)
    new = recover(model, CORPUS, method, **FAST)
    assert {p.dtype for p in new.parameters()} == {torch.bfloat16}
    assert facts(new)["loss_after_nats"] < facts(new)["loss_before_nats"]
    new.save_pretrained(tmp_path)
    loaded = load(str(tmp_path))
    assert lineage(loaded) == lineage(new)
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), new.parameters(), strict=True))


def test_frozen_parameters_and_the_mode_are_given_back():
    model = llama().train()
    model.get_input_embeddings().requires_grad_(False)
    for method in ("full", "lora"):
        new = recover(model, CORPUS, method, **FAST)
        assert new.training
        assert [p.requires_grad for p in new.parameters()] == [p.requires_grad for p in model.parameters()]


WRONG = [
    ({"method": "lorra"}, "a known method of recovery is needed; got 'lorra'. Nearest: lora. All: lora, full, distil."),
    ({"rank": 0}, "the rank of an adapter is 1 or more; got 0. Give e.g. rank=8."),
    ({"rank": 2.0}, "the rank of an adapter is a whole number; got 2.0."),
    ({"tokens": -5}, f"a recovery takes at least one batch of {BATCH} rows; got -5. Raise tokens."),
    ({"tokens": BATCH * 24 - 1}, f"a training takes at least one batch of {BATCH} × 24 tokens; got 95. Raise tokens."),
    ({"method": "distil"}, "distillation needs a teacher; got None. Give teacher="),
    ({"method": "distil", "teacher": "ladder"}, "a model is one of transformers; got 'ladder'. Load it first"),
    ({"tokens": 2e6}, "the number of tokens is a whole number; got 2000000.0. Give e.g. 2000000."),
    ({"seed": "0"}, "a seed is a whole number; got '0'."),
    ({"learning_rate": 0}, "a learning rate is a number above 0; got 0. Leave it out, or give e.g. 0.001."),
    ({"learning_rate": float("nan")}, "a learning rate is a number above 0; got nan."),
    ({"learning_rate": float("inf")}, "a learning rate is a number above 0; got inf."),
    ({"learning_rate": True}, "a learning rate is a number above 0; got True."),
    ({"folder": __file__}, "checkpoints are kept in a folder; got '"),
]


@pytest.mark.parametrize(("options", "message"), WRONG)
def test_what_is_asked_for_wrongly_is_answered(options, message):
    with pytest.raises(LabkitError) as caught:
        recover(llama(), CORPUS, **options)
    assert str(caught.value).startswith(message)


def test_a_teacher_of_another_vocabulary_is_refused_with_both_sizes():
    config = Rung(16, 1).config()
    config.vocab_size = 99
    teacher = type(llama())(config)
    with pytest.raises(LabkitError, match=f"got 'a student with {vocabulary.SIZE} tokens and a teacher with 99'. Distil"):
        recover(llama(), CORPUS, "distil", teacher=teacher)


def test_a_model_whose_zeros_came_back_is_not_recovered():
    model = halved(llama())
    blocks.matrices(model)["model.layers.0.mlp.up_proj"].weight.fill_(1)
    with pytest.raises(LabkitError, match="model.layers.0.mlp.up_proj: .* zeros are zero no longer"):
        recover(model, CORPUS, "full", **FAST)


def test_a_checkpoint_of_another_model_or_teacher_is_not_resumed(tmp_path):
    """Models of one shape differ in their weights alone."""

    def killed(self, batch, steps, first=0):
        for step, rows in enumerate(CORPUS.batches(batch, steps, first), start=first):
            if step == 7 and steps == STEPS:
                raise Kill
            yield rows

    fragile = {"length": CORPUS.length, "batches": killed}
    corpus, another = (type("Fragile", (), {**fragile, "__repr__": lambda self, n=n: f"Fragile({n})"})() for n in "ab")
    for method, *others in (("full", Rung(16, 2).build(seed=4)), ("distil", Rung(16, 2).build(seed=4), llama())):
        options = {"teacher": llama(), "folder": tmp_path / method, **FAST}
        with pytest.raises(Kill):
            recover(llama(), corpus, method, **options)
        with pytest.raises(LabkitError, match="a checkpoint is resumed by the training it is of; got .*corpus"):
            recover(others[0], corpus, method, **options)
        if method == "distil":
            with pytest.raises(LabkitError, match="a checkpoint is resumed by the training it is of; got .*corpus"):
                recover(llama(), corpus, method, **options | {"teacher": others[0]})
        with pytest.raises(LabkitError, match="a checkpoint is resumed by the training it is of; got .*corpus"):
            recover(llama(), another, method, **options)
        with pytest.raises(Kill):  # the very same one goes on, from step 6
            recover(llama(), corpus, method, **options)


def test_quantised_models_and_adapters_are_refused_before_any_training():
    quantised, adapted = llama(), llama()
    quantised.config.quantization_config = {"quant_method": "fp8"}
    with pytest.raises(LabkitError, match="a model is recovered before it is quantised; got 'a quantised Llama"):
        recover(quantised, CORPUS, "full", **FAST)
    adapted.add_adapter(LoraConfig(target_modules=["q_proj"]))
    for model in (adapted, get_peft_model(llama(), LoraConfig(target_modules=["q_proj"]))):
        with pytest.raises(LabkitError, match="adapters are merged before a model is recovered; got 'one at .*q_proj"):
            recover(model, CORPUS, "lora", **FAST)


class Foreign:
    """Batches of token 1, as many and as large as is said, and what is asked in the last place of each row."""

    length = 24

    def __init__(self, most=10**9, rows=None, token=1, label=1):
        self.most, self.rows, self.token, self.label = most, rows, token, label

    def batches(self, batch, steps, first=0):
        shape = (self.rows or batch, self.length)
        labels = np.full(shape, IGNORE)
        labels[:, -1] = self.label
        yield from ((np.full(shape, self.token), labels) for _ in range(first, min(steps, self.most)))


@pytest.mark.parametrize(
    ("corpus", "message"),
    [
        (None, "a corpus has a length and gives batches; got 'NoneType'. Give labkit.corpus()"),
        (Foreign(most=5), "a corpus gives as many batches as it is asked for; got '12 of 20'. Ask for fewer tokens"),
        (Foreign(rows=1), "batches of a corpus are (4, 24); got 'tokens (1, 24) and labels (1, 24) at step 12'."),
        (Foreign(token=vocabulary.SIZE), f"tokens and labels lie in the model's vocabulary, 0..{vocabulary.SIZE - 1}; got 'tokens"),
        (Foreign(token=-1), f"tokens and labels lie in the model's vocabulary, 0..{vocabulary.SIZE - 1}; got 'tokens"),
        (Foreign(label=vocabulary.SIZE), f"tokens and labels lie in the model's vocabulary, 0..{vocabulary.SIZE - 1}; got 'tokens"),
        (Foreign(label=IGNORE), "rows ask for something; got '8 batches without a label'. Label some places."),
    ],
)
def test_a_corpus_that_gives_something_else_is_refused(corpus, message):
    with pytest.raises(LabkitError) as caught:
        recover(llama(), corpus, "full", **FAST)
    assert str(caught.value).startswith(message)


def test_a_corpus_that_ends_within_the_training_is_refused():
    """Its held-out rows are there: it ends for the training alone."""

    class Short(Foreign):
        def batches(self, batch, steps, first=0):
            yield from super().batches(batch, steps if first else 5, first)

    with pytest.raises(LabkitError, match="a corpus gives as many batches as it is asked for; got '5 of 12'"):
        recover(llama(), Short(), "full", **FAST)
    assert recover(llama(), Foreign(token=vocabulary.SIZE - 1), "full", **FAST) is not None


@pytest.mark.parametrize(("steps", "share"), [(16, 1 / 6.4), (164, 65 / 65.6), (165, 1.0)])
def test_short_recoveries_do_not_reach_the_peak_of_the_rate(monkeypatch, steps, share):
    rates, step = [], torch.optim.AdamW.step
    note = lambda self, *args, **how: (rates.append(self.param_groups[0]["lr"]), step(self, *args, **how))[1]  # noqa: E731
    monkeypatch.setattr(torch.optim.AdamW, "step", note)
    recover(llama(), CORPUS, "full", BATCH * CORPUS.length * steps, learning_rate=1e-3)
    assert len(rates) == steps and max(rates) == pytest.approx(1e-3 * share, rel=1e-3)


def test_what_may_be_a_batch_is_not_refused_before_the_corpus_is_known():
    recovery.check_recover(tokens=BATCH)
    recover(llama(), CORPUS, "lora", TOKENS, rank=np.int64(1))
    recovery.check_recover("full", rank=0)  # which it does not look at


def test_a_loss_that_is_not_finite_is_refused_before_and_told_after(monkeypatch):
    broken = llama()
    broken.get_output_embeddings().weight.data[5] = torch.inf
    with pytest.raises(LabkitError, match="the loss of a model is finite; got (nan|inf). Check the weights"):
        recover(broken, CORPUS, "full", **FAST)
    losses = iter([1.0, float("nan")])
    monkeypatch.setattr(recovery, "mean_loss", lambda *_: next(losses))
    with pytest.warns(UserWarning, match="not finite in torch.float32: loss_after_nats"):
        new = recover(llama(), CORPUS, "full", **FAST)
    assert facts(new)["loss_before_nats"] == 1.0 and facts(new)["loss_after_nats"] is None


def test_the_seed_of_adapters_reaches_no_generator_of_a_gpu(monkeypatch):
    model = llama()
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("a GPU was seeded"))
    recover(model, CORPUS, "lora", **FAST)


def dropping():
    """A model that drops out, as those of GPT-2 do."""
    model = gpt2()
    model.config.resid_pdrop = model.config.attn_pdrop = 0.3
    return GPT2LMHeadModel(model.config)


@pytest.mark.parametrize("method", recovery.METHODS)
def test_dropout_is_drawn_by_the_seed_and_no_generator_is_moved(method):
    torch.manual_seed(0)
    model, teacher = dropping(), gpt2()
    runs = []
    for seed in (1, 1, 2):
        torch.rand(3)  # wherever PyTorch's own generator stands
        at = torch.get_rng_state()
        runs.append(recover(model, CORPUS, method, teacher=teacher, seed=seed, **FAST))
        assert torch.equal(torch.get_rng_state(), at)
    one, again, other = (torch.cat([p.flatten() for p in run.parameters()]) for run in runs)
    assert torch.equal(one, again) and not torch.equal(one, other)


@pytest.mark.parametrize("method", recovery.METHODS)
@pytest.mark.parametrize("without", [torch.no_grad, torch.inference_mode])
def test_a_recovery_where_no_gradients_are_kept_is_the_same(method, without):
    expected = recover(halved(llama()), CORPUS, method, teacher=llama(), **FAST)
    with without():
        found = recover(halved(llama()), CORPUS, method, teacher=llama(), **FAST)
        assert torch.is_inference_mode_enabled() == (without is torch.inference_mode) and not torch.is_grad_enabled()
    assert all(torch.equal(a, b) for a, b in zip(found.parameters(), expected.parameters(), strict=True))


@pytest.mark.parametrize("method", recovery.METHODS)
def test_the_grid_of_a_quantised_model_is_left_with_a_warning(method):
    message = f"the model was quantised, and {method} moves weights off the grid: quantise it again"
    with pytest.warns(UserWarning, match=message) as caught:
        recover(quantize(llama()), CORPUS, method, teacher=llama(), **FAST)
    assert {w.filename for w in caught if message in str(w.message)} == {__file__}


def test_every_module_is_in_the_mode_it_had():
    model = halved(llama()).train()
    model.model.layers[0].eval()
    modes = {name: module.training for name, module in model.named_modules()}
    for method in recovery.METHODS:
        new = recover(model, CORPUS, method, teacher=llama(), **FAST)
        assert {name: module.training for name, module in new.named_modules()} == modes


def test_zeros_that_nothing_records_are_trained_with_a_warning():
    """Of a model that was pruned elsewhere; recorded, they stay."""
    model = halved(llama())
    delattr(model.config, ledger.FIELD)
    with pytest.warns(UserWarning, match=r"\d\d% of the weights are 0 but nothing records them.*record_masks") as caught:
        assert blocks.sparsity(recover(model, CORPUS, "full", **FAST)) < 0.01
    assert {w.filename for w in caught if "nothing records" in str(w.message)} == {__file__}
    ledger.record_masks(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert blocks.sparsity(recover(model, CORPUS, "full", **FAST)) == blocks.sparsity(model)
