"""Pruned models: exact counts of zeros, the rest untouched, and Wanda against NumPy."""

from __future__ import annotations

import copy
import warnings

import numpy as np
import pytest
import torch

from labkit import quantize
from labkit.errors import LabkitError
from labkit.ladder import Rung
from labkit.lineage import lineage
from labkit.pruning import (
    CRITERIA,
    Options,
    blocks,
    drop_layers,
    engine,
    ledger,
    masks,
    outlier_weighed,
    prune,
    prune_gradually,
    schedule,
    shrink,
    sparsity,
    surgery,
)
from labkit.pruning.moments import Norms

TOKENS = torch.randint(1, 168, (6, 12), generator=torch.Generator().manual_seed(0))
MODEL = Rung(32, 2).build().eval()
NAMES = [name for name in CRITERIA if name != "sparsegpt"]


def weights(model) -> dict[str, np.ndarray]:
    return {name: linear.weight.numpy() for name, linear in blocks.matrices(model).items()}


@pytest.mark.parametrize("group", ["row", "layer"])
@pytest.mark.parametrize("criterion", NAMES)
@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 0.77])
def test_every_group_has_exactly_the_zeros_asked_for(criterion, group, share):
    for weight in weights(prune(MODEL, criterion, share, calibration=TOKENS, group=group)).values():
        groups = weight if group == "row" else weight.reshape(1, -1)
        assert ((groups == 0).sum(1) == int(groups.shape[1] * share)).all()


@pytest.mark.parametrize("pattern", ["2:4", "4:8", "1:4"])
@pytest.mark.parametrize("criterion", NAMES)
def test_every_m_inputs_have_exactly_n_weights(criterion, pattern):
    n, m = map(int, pattern.split(":"))
    pruned = prune(MODEL, criterion, pattern=pattern, calibration=TOKENS)
    for weight in weights(pruned).values():
        assert ((weight.reshape(-1, m) != 0).sum(1) == n).all()
    assert sparsity(pruned) == 1 - n / m


@pytest.mark.parametrize("asked", [{"sparsity": 0.5}, {"pattern": "2:4"}], ids=str)
@pytest.mark.parametrize("criterion", NAMES)
def test_kept_weights_everything_else_and_the_model_given_are_untouched(criterion, asked):
    model = copy.deepcopy(MODEL).train()
    pruned = prune(model, criterion, calibration=TOKENS, **asked)
    assert pruned.training and model.training
    dense = MODEL.state_dict()
    assert all(torch.equal(tensor, dense[name]) for name, tensor in model.state_dict().items())
    inside = {f"{name}.weight" for name in blocks.matrices(MODEL)}
    for name, tensor in pruned.state_dict().items():
        kept = tensor != 0 if name in inside else torch.ones_like(tensor, dtype=torch.bool)
        assert torch.equal(tensor[kept], dense[name][kept])


@pytest.mark.parametrize("criterion", NAMES)
def test_a_sparsity_of_zero_changes_nothing(criterion):
    pruned = weights(prune(MODEL, criterion, 0.0, calibration=TOKENS))
    assert all(np.array_equal(pruned[name], dense) for name, dense in weights(MODEL).items())


@pytest.mark.parametrize("asked", ["high", "highest"])
def test_inputs_are_multiplied_in_fp32_whatever_the_users_setting_which_stays(asked, monkeypatch):
    seen, add, before = set(), Norms.add, torch.get_float32_matmul_precision()
    monkeypatch.setattr(Norms, "add", lambda *args: (seen.add(torch.get_float32_matmul_precision()), add(*args)))
    try:
        torch.set_float32_matmul_precision(asked)
        prune(MODEL, "wanda", 0.5, calibration=TOKENS)
        assert (seen, torch.get_float32_matmul_precision()) == ({"highest"}, asked)
    finally:
        torch.set_float32_matmul_precision(before)


def test_a_pattern_may_be_asked_for_with_its_own_sparsity():
    alone, both = (weights(prune(MODEL, "magnitude", s, pattern="1:4")) for s in (None, 0.75))
    assert all(np.array_equal(alone[name], both[name]) for name in alone)


@pytest.mark.parametrize("asked", [{"sparsity": 0.5}, {"pattern": "2:4"}], ids=str)
@pytest.mark.parametrize("criterion", NAMES)
def test_pruning_twice_is_pruning_once(criterion, asked):
    once = prune(MODEL, criterion, calibration=TOKENS, **asked)
    twice = prune(once, criterion, calibration=TOKENS, **asked)
    assert all(torch.equal(t, twice.state_dict()[name]) for name, t in once.state_dict().items())


@pytest.mark.parametrize("criterion", NAMES)
def test_zeros_survive_saving(criterion, tmp_path):
    pruned = prune(MODEL, criterion, sparsity=0.5, calibration=TOKENS)
    pruned.save_pretrained(tmp_path)
    loaded = type(pruned).from_pretrained(tmp_path)
    assert all(torch.equal(t, loaded.state_dict()[name]) for name, t in pruned.state_dict().items())


def numpy_wanda(inputs: np.ndarray, weight: np.ndarray, share: float) -> np.ndarray:
    """Per output: sort |W|·‖X‖ and zero the lowest."""
    weight = weight.copy()
    for row in weight:
        scores = np.abs(row) * np.sqrt((inputs**2).sum(0))
        row[np.argsort(scores, kind="stable")[: int(len(row) * share)]] = 0
    return weight


@pytest.mark.parametrize("propagate", [True, False])
def test_wanda_agrees_with_numpy_block_by_block(propagate):
    """Each block is judged by inputs that have passed the pruned blocks before it, or dense ones, and itself dense."""
    pruned = prune(MODEL, "wanda", sparsity=0.5, calibration=TOKENS, options=Options(propagate=propagate))
    for number in range(2):
        half = copy.deepcopy(MODEL)  # blocks before `number` pruned, if at all, the rest dense
        for i in range(number if propagate else 0):
            half.model.layers[i].load_state_dict(pruned.model.layers[i].state_dict())
        inputs: dict[str, np.ndarray] = {}
        for name, linear in blocks.matrices(half).items():
            linear.module.register_forward_pre_hook(
                lambda _, args, inputs=inputs, name=name: inputs.update(
                    {name: args[0].detach().double().flatten(0, 1).numpy()}
                )
            )
        with torch.no_grad():
            half(input_ids=TOKENS)
        for name in (name for name in inputs if f"layers.{number}." in name):
            np.testing.assert_array_equal(weights(pruned)[name], numpy_wanda(inputs[name], weights(MODEL)[name], 0.5))


def test_magnitude_agrees_with_numpy_over_the_whole_matrix():
    for name, weight in weights(prune(MODEL, "magnitude", sparsity=0.5)).items():
        dense = weights(MODEL)[name]
        expected = np.where(np.abs(dense) > np.sort(np.abs(dense), axis=None)[dense.size // 2 - 1], dense, 0)
        np.testing.assert_array_equal(weight, expected)


def test_wanda_follows_a_permutation_of_the_inputs():
    """Renaming the neurons of the feed-forward layer renames the mask, and nothing else."""
    order = torch.randperm(MODEL.config.intermediate_size, generator=torch.Generator().manual_seed(1))
    permuted = copy.deepcopy(MODEL)
    for block in permuted.model.layers:
        for linear in (block.mlp.gate_proj, block.mlp.up_proj):
            linear.weight.data = linear.weight.data[order]
        block.mlp.down_proj.weight.data = block.mlp.down_proj.weight.data[:, order]
    plain, renamed = (prune(model, "wanda", sparsity=0.5, calibration=TOKENS) for model in (MODEL, permuted))
    for a, b in zip(plain.model.layers, renamed.model.layers, strict=True):
        assert torch.equal(a.mlp.down_proj.weight[:, order], b.mlp.down_proj.weight)


def test_defaults_are_rows_for_wanda_and_the_whole_matrix_for_the_others():
    for criterion in NAMES:
        group = "row" if criterion == "wanda" else "layer"
        pair = [prune(MODEL, criterion, 0.5, calibration=TOKENS, group=g) for g in (None, group)]
        assert all(np.array_equal(a, b) for a, b in zip(*(weights(m).values() for m in pair), strict=True))


def test_random_depends_on_the_seed_alone():
    first, again, other = (weights(prune(MODEL, "random", 0.5, seed=seed)) for seed in (1, 1, 2))
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not any(np.array_equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"sparsity": 1.0}, r"sparsity lies in \[0, 1\); got 1.0"),
        ({}, "a sparsity or a pattern is needed; got None"),
        ({"sparsity": 0.5, "criterion": "wandr"}, "known criterion is needed; got 'wandr'. Nearest: wanda"),
        ({"pattern": "2-4"}, "known pattern is needed; got '2-4'"),
        ({"pattern": "2:4", "sparsity": 0.6}, "pattern 2:4 has sparsity 0.5; got 'sparsity=0.6'"),
        ({"pattern": "2:4", "group": "row"}, "a pattern has groups of its own; got \"group='row'\""),
        ({"sparsity": 0.5, "group": "column"}, "known group is needed; got 'column'.*layer, row"),
        ({"pattern": "3:5"}, "divisible by 5; got 'model.layers.0.self_attn.q_proj of width 32'"),
        ({"sparsity": 0.5, "calibration": None}, "criterion 'wanda' needs calibration tokens; got None"),
        ({"sparsity": 0.5, "criterion": ["wanda"]}, "known criterion is needed; got \\['wanda'\\]"),
        ({"sparsity": 0.5, "seed": 0.5}, "a seed is a whole number; got 0.5"),
        ({"sparsity": 0.5, "options": Options(device="gpu")}, "a device is one that PyTorch can compute on here"),
        ({"sparsity": 0.5, "options": Options(folder=__file__)}, "is kept in a folder; got '.*test_prune.py, a file'"),
        ({"sparsity": 0.5, "model": "gpt2"}, "a model is one of transformers; got 'gpt2'. Load it first"),
    ],
)
def test_bad_input_is_refused(asked, message):
    with pytest.raises(LabkitError, match=message):
        prune(**{"model": MODEL, "calibration": TOKENS, **asked})


def test_two_of_four_on_a_width_that_four_does_not_divide_names_the_matrix():
    model = Rung(32, 1).build()
    model.model.layers[0].mlp.down_proj = torch.nn.Linear(90, 32, bias=False)
    with pytest.raises(LabkitError, match="divisible by 4; got 'model.layers.0.mlp.down_proj of width 90'"):
        prune(model, "magnitude", pattern="2:4")


def test_nan_in_the_weights_stops_wanda_at_its_block():
    model = copy.deepcopy(MODEL)
    model.model.layers[1].mlp.up_proj.weight.data[0, 0] = float("nan")
    with pytest.raises(LabkitError, match="got 'NaN or infinity at the inputs of model.layers.1.mlp.down_proj'"):
        prune(model, "wanda", sparsity=0.5, calibration=TOKENS)


def test_what_was_done_is_recorded_with_the_model():
    pruned = prune(MODEL, "wanda", 0.5, calibration=TOKENS, seed=3)
    asked = {"criterion": "wanda", "sparsity": 0.5, "pattern": None, "group": None, "seed": 3, "propagate": True}
    assert lineage(pruned) == (*lineage(MODEL), {"verb": "prune", **asked})
    assert ledger.masks_of(pruned).keys() == blocks.matrices(pruned).keys() and not lineage(MODEL)
    ledger.check_masks(pruned)


def test_a_seed_of_numpy_is_recorded_as_a_number(tmp_path):
    options = Options(folder=tmp_path)
    first, again = (prune(MODEL, "random", 0.5, seed=seed, options=options) for seed in (np.int64(3), 3))
    assert lineage(first)[-1]["seed"] == lineage(again)[-1]["seed"] == 3


@pytest.mark.parametrize("criterion", CRITERIA)
def test_a_budget_for_each_matrix_and_what_is_not_named_stays(criterion):
    names = list(blocks.matrices(MODEL))
    budgets = {names[1]: 0.25, names[6]: 0.75}
    pruned = blocks.matrices(prune(MODEL, criterion, budgets, calibration=TOKENS))
    for name, matrix in pruned.items():
        assert (matrix.weight == 0).float().mean() == budgets.get(name, 0.0)
        if name not in budgets and ".0." in name:
            assert torch.equal(matrix.weight, blocks.matrices(MODEL)[name].weight)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"sparsity": {"model.layers.0.mlp.up": 0.5}}, "known matrix is needed; .*Nearest: model.layers.0.mlp.up_proj"),
        ({"sparsity": {"model.layers.0.mlp.up_proj": 1.0}}, r"sparsity lies in \[0, 1\); got 1.0"),
    ],
)
def test_a_bad_budget_is_refused(asked, message):
    with pytest.raises(LabkitError, match=message):
        prune(MODEL, calibration=TOKENS, **asked)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_zeros_of_a_sparse_model_count_and_stay(criterion):
    half = prune(MODEL, "random", 0.5, group="row", seed=1)
    for share, expected in ((0.75, 0.75), (0.25, 0.5)):
        again = weights(prune(half, criterion, share, calibration=TOKENS, group="row", seed=2))
        for name, weight in weights(half).items():
            assert (again[name][weight == 0] == 0).all()
            assert (again[name] == 0).mean() == expected


def test_outputs_that_lose_all_their_weights_are_warned_of_and_rows_keep_some():
    model = copy.deepcopy(MODEL)
    for block in model.model.layers:
        block.mlp.up_proj.weight.data[:3] *= 1e-6
    with pytest.warns(UserWarning, match=r"3 outputs of model.layers.0.mlp.up_proj have .* \(and so in 1 further"):
        prune(model, "magnitude", 0.5)
    rows = weights(prune(model, "magnitude", 0.5, group="row"))
    assert all((weight != 0).any(1).all() for weight in rows.values())


def test_outputs_that_had_no_weights_before_are_not_warned_of():
    model = copy.deepcopy(MODEL)
    for block in model.model.layers:
        block.mlp.up_proj.weight.data[:2] = 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prune(model, "magnitude", 0.5, group="row")


@pytest.mark.parametrize("place", [0, -1])
def test_scores_that_are_not_finite_are_refused_wherever_they_are(monkeypatch, place):
    """In the first and the last of the parts in which they are looked at."""
    model = copy.deepcopy(MODEL)
    model.model.layers[1].mlp.up_proj.weight.data[place] = torch.finfo(torch.float32).max  # finite, its score is not
    monkeypatch.setitem(engine.SCORES, "cpu", 64)
    method, matrix = engine.methods()["wanda"], blocks.matrices(model)["model.layers.1.mlp.up_proj"]
    norms = Norms()
    norms.add(torch.full((8, 32), 9.0))
    with pytest.raises(LabkitError, match="are finite; got 'NaN or infinity in model.layers.1.mlp.up_proj'"):
        method.prune(matrix, norms, masks.Keep(0.5, "row"), torch.Generator())


def test_a_quantised_model_is_refused():
    model = copy.deepcopy(MODEL)
    model.config.quantization_config = {"quant_method": "bitsandbytes"}
    with pytest.raises(LabkitError, match="pruned before it is quantised; got 'a quantised LlamaForCausalLM'"):
        prune(model, "magnitude", 0.5)


def test_a_model_that_pytorch_has_quantised_is_refused():
    from torch.ao.quantization import quantize_dynamic

    model = copy.deepcopy(MODEL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch moves it to another package
        quantize_dynamic(model, {"model.layers.1.mlp.up_proj": torch.ao.quantization.default_dynamic_qconfig}, inplace=True)
    rule = r"can be pruned; got 'model\.layers\.1\.mlp\.up_proj, a .*Linear: it is quantised'"
    with pytest.raises(LabkitError, match=rule):
        prune(model, "magnitude", 0.5)


@pytest.mark.parametrize("work", [
    lambda model: prune(model, "magnitude", 0.5), lambda model: outlier_weighed(model, 0.5, TOKENS),
    lambda model: drop_layers(model, 1, "random"), lambda model: shrink(model, ffn=8, importance="random"),
    lambda model: quantize(model), lambda model: sparsity(model),
])  # fmt: skip
def test_a_model_whose_weights_are_elsewhere_is_refused(work):
    model = copy.deepcopy(MODEL)
    model.model.layers[1].to("meta")  # as accelerate leaves what it offloads
    rule = r"weights of a model are in memory; got 'model\.layers\.1\.self_attn\.q_proj\.weight without its numbers"
    with pytest.raises(LabkitError, match=rule):
        work(model)


@pytest.mark.parametrize("work", [
    lambda model: prune(model, "magnitude", 0.5), lambda model: outlier_weighed(model, 0.5, TOKENS),
    lambda model: drop_layers(model, 1, "random"), lambda model: shrink(model, ffn=8, importance="random"),
    lambda model: quantize(model),
])  # fmt: skip
def test_a_compiled_model_is_refused(work):
    whole, part, in_place = torch.compile(copy.deepcopy(MODEL)), copy.deepcopy(MODEL), copy.deepcopy(MODEL)
    part.model.layers[1] = torch.compile(part.model.layers[1])
    in_place.compile()
    for model, name in ((whole, "OptimizedModule"), (part, "model.layers.1"), (in_place, "LlamaForCausalLM")):
        with pytest.raises(LabkitError, match=f"given before it is compiled; got '{name}'. Compile it afterwards"):
            work(model)


@pytest.mark.parametrize("work", [
    lambda model: prune(model, "magnitude", 0.5), lambda model: drop_layers(model, 2, "random"),
    lambda model: shrink(model, ffn=8, importance="random"),
])  # fmt: skip
def test_every_module_of_what_is_returned_is_in_the_mode_it_had(work):
    model = copy.deepcopy(MODEL).train()
    model.model.layers[0].eval()
    model.model.layers[1].mlp.eval()
    model.model.layers.training = False
    modes = {name: module.training for name, module in model.named_modules()}
    assert {name: module.training for name, module in work(model).named_modules()} == modes
    assert {name: module.training for name, module in model.named_modules()} == modes


@pytest.mark.parametrize("work", [
    lambda: drop_layers(MODEL, 1, ["loss"], calibration=TOKENS), lambda: shrink(MODEL, ffn=8, importance=["magnitude"]),
    lambda: prune(MODEL, ["magnitude"], 0.5),
])  # fmt: skip
def test_a_list_of_names_is_no_name(work):
    with pytest.raises(LabkitError, match=r"a known (importance|criterion) is needed; got \['"):
        work()


@pytest.mark.parametrize(("work", "step"), [
    (lambda: drop_layers(MODEL, 1, "random"), "keep_layers"),
    (lambda: shrink(MODEL, ffn=8, importance="random"), "keep_units"),
])  # fmt: skip
def test_memory_that_runs_out_for_a_smaller_copy_is_told_of(work, step, monkeypatch):
    def runs_out(*_):
        raise torch.OutOfMemoryError("simulated")

    monkeypatch.setattr(surgery, step, runs_out)
    rule = r"a model, its (smaller )?copy, and what ranks its \w+ fit into the device's memory; got 'out of memory in Llama"
    with pytest.raises(LabkitError, match=rule):
        work()


def test_whole_numbers_of_numpy_are_whole_numbers():
    one, eight = np.int64(1), np.int64(8)
    assert drop_layers(MODEL, one, "random").config.num_hidden_layers == 1
    assert shrink(MODEL, ffn=eight, importance="random").config.intermediate_size == 8
    assert lineage(quantize(MODEL, eight)) == ({"verb": "quantize", "bits": 8},)
    steps = schedule(np.float32(0.5), np.int64(2))
    assert steps == schedule(0.5, 2) and {type(step) for step in steps} == {float}


@pytest.mark.parametrize(("how", "message"), [
    ({"between": None}, "between is a function of a model; got None"),
    ({"between": lambda model: model, "sparsity": 0.3}, "sparsities of pruning in steps stand in one list; got 'sparsity=0.3'"),
])  # fmt: skip
def test_what_pruning_in_steps_cannot_use_is_refused_before_the_first(how, message, monkeypatch):
    monkeypatch.setattr("labkit.pruning.prune", lambda *_, **__: pytest.fail("pruned"))
    with pytest.raises(LabkitError, match=message):
        prune_gradually(MODEL, "magnitude", (0.3, 0.5), **how)


def test_options_are_options():
    with pytest.raises(LabkitError, match="options are labkit.pruning.Options; got {'device': 'cpu'}"):
        prune(MODEL, "magnitude", 0.5, options={"device": "cpu"})


@pytest.mark.parametrize(("criterion", "told"), [("sparsegpt", 1), ("wanda", 0)])
def test_a_grid_that_is_left_is_warned_of(criterion, told):
    """Values in a row of a model rounded to 3 bits: Wanda keeps them, SparseGPT moves what stays."""
    rounded = prune(quantize(MODEL, bits=3), "magnitude", 0.1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        again = prune(rounded, criterion, 0.5, calibration=TOKENS)
    assert sum("off the grid: quantise it again" in str(warning.message) for warning in caught) == told
    name = "model.layers.0.mlp.up_proj"
    kept = set(weights(again)[name][0]) <= {0.0, *weights(rounded)[name][0]}
    assert kept == (criterion == "wanda")


@pytest.mark.parametrize(("work", "message"), [
    (lambda: prune(MODEL, "wanda", 0.5, calibration=TOKENS), "what so few tell is chance"),
    (lambda: prune_gradually(MODEL, "wanda", (0.2, 0.5), lambda m: m, calibration=TOKENS), "what so few tell is chance"),
    (lambda: drop_layers(MODEL, 1, calibration=TOKENS), "what so few tell is chance"),
    (lambda: drop_layers(MODEL, 1, "loss", calibration=TOKENS), "what so few tell is chance"),
    (lambda: shrink(MODEL, ffn=8, calibration=TOKENS), "what so few tell is chance"),
    (lambda: outlier_weighed(MODEL, 0.5, TOKENS), "what so few tell is chance"),
    (lambda: prune(MODEL, "sparsegpt", 0.5, calibration=TOKENS), "has no full rank"),
    (lambda: prune_gradually(MODEL, "sparsegpt", (0.2, 0.5), lambda m: m, calibration=TOKENS), "has no full rank"),
    (lambda: prune(quantize(MODEL), "sparsegpt", 0.5, calibration=TOKENS), "off the grid"),
    (lambda: prune_gradually(quantize(MODEL), "sparsegpt", [0.5], lambda m: m, calibration=TOKENS), "off the grid"),
    (lambda: prune(MODEL, "magnitude", 0.99), "have lost all their weights"),
    (lambda: prune_gradually(MODEL, "magnitude", [0.99], lambda m: m), "have lost all their weights"),
])  # fmt: skip
def test_warnings_show_the_line_that_asked(work, message):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        work()
    told = [warning for warning in caught if message in str(warning.message)]
    assert told and {warning.filename for warning in told} == {__file__}


def test_adapters_that_are_not_merged_are_refused():
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(copy.deepcopy(MODEL), LoraConfig(target_modules=["q_proj"])).base_model.model
    with pytest.raises(LabkitError, match="adapters are merged .* got 'one at model.layers.0.self_attn.q_proj'"):
        prune(model, "magnitude", 0.5)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_a_nan_weight_is_named(criterion):
    model = copy.deepcopy(MODEL)
    model.model.layers[1].mlp.down_proj.weight.data[0, 0] = float("nan")
    with pytest.raises(LabkitError, match="are finite; got 'NaN or infinity in model.layers.1.mlp.down_proj'"):
        prune(model, criterion, 0.5, calibration=TOKENS)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_pruning_in_steps_only_ever_adds_zeros(criterion):
    seen = []

    def between(model):
        seen.append(model)
        moved = copy.deepcopy(model)
        for weight in weights(moved).values():
            weight += 0.01 * np.sign(weight)
        return moved

    last = prune_gradually(MODEL, criterion, schedule(0.75, 3), between, calibration=TOKENS, group="row")
    assert len(seen) == 2
    for before, after in zip(seen, [*seen[1:], last], strict=True):
        assert sparsity(before) < sparsity(after)
        assert all((weights(after)[name][weight == 0] == 0).all() for name, weight in weights(before).items())
    assert sparsity(last) == 0.75


def test_a_model_without_its_ledger_is_refused_between_steps():
    with pytest.raises(LabkitError, match="between gives back a pruned model; got 'one without its ledger of masks'"):
        prune_gradually(MODEL, "magnitude", (0.3, 0.5), lambda model: MODEL)
    assert sparsity(prune_gradually(MODEL, "magnitude", (0.0, 0.5), lambda model: MODEL)) == 0.5  # none was written yet


def test_what_fills_zeros_between_steps_is_found_out():
    def fills(model):
        model = copy.deepcopy(model)
        model.model.layers[0].mlp.up_proj.weight.data += 1
        return model

    with pytest.raises(LabkitError, match="model.layers.0.mlp.up_proj: .* zeros are zero no longer"):
        prune_gradually(MODEL, "magnitude", (0.2, 0.4), fills)


@pytest.mark.parametrize("sparsities", [(), (0.5, 0.5), (0.6, 0.5), 0.5, None])
def test_steps_that_do_not_rise_are_refused(sparsities):
    with pytest.raises(LabkitError, match="sparsities of pruning in steps rise; got .*schedule"):
        prune_gradually(MODEL, "magnitude", sparsities, lambda model: model)
