"""What a study would take, foretold from configs alone: runs, tokens, FLOPs, time and memory. No weights are read."""

from __future__ import annotations

import copy
import dataclasses
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labkit.compression import SIZES, Compression
from labkit.errors import LabkitError
from labkit.flops import TRAINING_PASSES, forward_flops_per_token
from labkit.records import DENSE
from labkit.store import Store
from labkit.study import CALIBRATION_SEQUENCES, Study
from labkit.subjects import Job
from labkit.zoo import model_config, skeleton

if TYPE_CHECKING:
    from transformers import PreTrainedModel

RANGE = (0.5, 2.5)
"""What the time may be, as multiples of the expected: shipped runs lay between."""

TRAINING_BATCH = 64  # rows a step, as in recovery and distillation
PROBE_PARAMETERS = 50_000_000  # a model up to this size is timed whole, with drawn weights; of a larger one a matrix product
TRAINING_BYTES = 16  # a trained parameter: float32 weight, gradient and two moments of Adam


@dataclasses.dataclass(frozen=True)
class Line:
    """One kind of run: a size of model under one compression.

    Attributes
    ----------
    model: of the first of its runs. compression: "dense" or its name. sparsity: that is asked for. runs, here: how many,
        and how many are done.
    asked_tokens, trained_tokens: of one run, in evaluation and in training. flops: of one run, nominal (`labkit.flops`).
    seconds: of one run on this device, expected. parameters: stored, embeddings included.
    weight_bytes, activation_bytes, training_bytes: of memory (see `foretell`).
    """

    model: str
    compression: str
    sparsity: float
    runs: int
    here: int
    asked_tokens: int
    trained_tokens: int
    flops: float
    seconds: float
    parameters: int
    weight_bytes: int
    activation_bytes: int
    training_bytes: int

    @property
    def memory_bytes(self) -> int:
        return self.weight_bytes + self.activation_bytes + self.training_bytes


def foretell(study: Study, out: Path | str | None = None) -> list[Line]:
    """The kinds of run of a study, in its order; ``out`` says which of its runs are done.

    FLOPs: evaluation one forward pass, training three, distillation the teacher's forward too, calibration one forward.
    Time: FLOPs by the rate of a short forward pass of the same shape with drawn weights, measured on this device; above
    `PROBE_PARAMETERS` by that of a matrix product of its width.
    Memory: weights as stored, of the model and, where another is made, of the copy; activations of one batch: four
    widths and three feed-forward layers a token, and its logits; 16 bytes a parameter that trains.
    Tokens of prompts are counted as words. Benchmarks are not foretold: their items are known once their data is read.
    """
    from labkit.abilities import corpus

    study.check()
    store = Store(out) if out is not None and _is_store(out) else None
    asked = sum(int(ability.sample(study.items, study.seed).lengths.sum()) for ability in study.suite())
    asked += sum(prompt_tokens(study))
    length = study.text.length if study.text else corpus().length
    asked_dtype = study.loading.get("dtype", "auto")
    dtype = {} if asked_dtype == "auto" else {"dtype": asked_dtype}
    shapes: dict[str, PreTrainedModel] = {}
    rates: dict[str, float] = {}
    found: dict[tuple[str, str], Line] = {}
    for name, (config, (model, compression)) in study.runs().items():
        dense = shapes.setdefault(model, skeleton(model_config(model) | dtype))
        key = (repr(sorted(dense.config.to_dict().items(), key=str)), compression.name + str(compression) if compression else DENSE)
        done = int(store is not None and store.has(name))
        if key in found:
            line = found[key]
            found[key] = dataclasses.replace(line, runs=line.runs + 1, here=line.here + done)
            continue
        if key[0] not in rates:
            rates[key[0]] = _rate(dense, length)
        line = _line((model, compression), dense, asked, rates[key[0]], length)
        found[key] = dataclasses.replace(line, runs=1, here=done)
    return list(found.values())


def prompt_tokens(study: Study) -> tuple[int, int]:
    """Tokens that a model reads and writes for the prompts of a study, about (`labkit.prompts.text_tokens`)."""
    if not study.prompts:
        return 0, 0
    from labkit.abilities import abilities
    from labkit.prompts import text_tokens

    return text_tokens(abilities(*study.prompts), study.items, study.seed)


def _line(job: Job, dense: PreTrainedModel, asked: int, rate: float, length: int) -> Line:
    from labkit.evaluation import CPU_BATCH_TOKENS

    name, compression = job
    small = _compressed(dense, compression)
    steps = dict(compression.steps) if compression else {}
    trained, flops = 0, float(asked * forward_flops_per_token(small, length))
    if compression is not None:
        flops += CALIBRATION_SEQUENCES * length * forward_flops_per_token(dense, length)
    for verb in ("train", "distill", "recover"):
        if verb in steps:
            options = dict(steps[verb])
            tokens = int(options.get("tokens", 2_000_000))
            trained += tokens
            flops += TRAINING_PASSES * tokens * forward_flops_per_token(small, length)
            if verb == "distill" or options.get("method") == "distil":
                flops += tokens * forward_flops_per_token(dense, length)
    parameters = sum(p.numel() for p in small.parameters())
    stored = sum(p.numel() * p.element_size() for p in dense.parameters())
    copied = sum(p.numel() * p.element_size() for p in small.parameters()) if compression else 0
    text = small.config.get_text_config()
    neurons = getattr(text, "intermediate_size", None) or 4 * text.hidden_size
    layers = text.num_hidden_layers if trained else 1  # a training keeps what every layer has made
    token_batch = TRAINING_BATCH * length if trained else CPU_BATCH_TOKENS
    activations = token_batch * 4 * (layers * (4 * text.hidden_size + 3 * neurons) + text.vocab_size)
    moments = TRAINING_BYTES * (_adapters(small, steps) or parameters) if trained else 0
    label, sparsity = (compression.name, compression.nominal_sparsity) if compression else (DENSE, 0.0)
    return Line(name, label, sparsity, 0, 0, asked, trained, flops, flops / rate, parameters, stored + copied, activations, moments)


def _adapters(model: PreTrainedModel, steps: dict[str, Any]) -> int:
    """Weights of the adapters, if they are all that trains."""
    options = dict(steps.get("recover", {}))
    if set(steps) & {"train", "distill"} or "recover" not in steps or options.get("method", "lora") != "lora":
        return 0
    from labkit.pruning import blocks

    return options.get("rank", 8) * sum(sum(matrix.weight.shape[-2:]) for matrix in blocks.matrices(model).values())


def _compressed(dense: PreTrainedModel, compression: Compression | None) -> PreTrainedModel:
    """The shape that a compression leaves."""
    if compression is None:
        return dense
    steps = {verb: dict(asked) for verb, asked in compression.steps}
    student = {**steps.get("train", {}), **steps.get("distill", {})}.get("student")
    if student is not None:
        from labkit.ladder import Rung

        return skeleton(Rung.parse(student).config().to_dict())
    config = copy.deepcopy(dense.config)
    text = config.get_text_config()
    if "drop_layers" in steps:
        from labkit.pruning.surgery import keep_layers_of_config

        asked = steps["drop_layers"]  # which layers go is not known yet
        keep_layers_of_config(text, range(asked.get("keep", text.num_hidden_layers - asked.get("drop", 0))))
    written = config.to_dict()
    for what, attribute in SIZES.items():
        if (value := steps.get("shrink", {}).get(what)) is not None:
            have = getattr(text, attribute)
            written[attribute] = round(value * have) if isinstance(value, float) else value
            if what == "heads":
                written["head_dim"] = getattr(text, "head_dim", None) or text.hidden_size // have
                written["num_key_value_heads"] = min(text.num_key_value_heads, written[attribute])
    return skeleton(written) if {"drop_layers", "shrink"} & set(steps) else dense


def _rate(dense: PreTrainedModel, length: int) -> float:
    """FLOP/s of a short forward pass of this shape on the device that the study would run on."""
    import torch

    from labkit.evaluation import CPU_BATCH_TOKENS

    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows, text = max(1, CPU_BATCH_TOKENS // length), dense.config.get_text_config()
    if sum(p.numel() for p in dense.parameters()) <= PROBE_PARAMETERS:
        model = type(dense)(dense.config).to(device).eval()
        tokens = torch.zeros(rows, length, dtype=torch.long, device=device)
        work, flops = lambda: model(tokens, use_cache=False), rows * length * forward_flops_per_token(dense, length)
    else:
        left, right = (torch.ones(n, text.hidden_size, dtype=dense.dtype, device=device) for n in (256, text.hidden_size))
        work, flops = lambda: left @ right, 2 * 256 * text.hidden_size**2
    seconds = []
    with torch.inference_mode():
        for _ in range(4):
            begun = time.perf_counter()
            work()
            if device == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - begun)
    return flops / sorted(seconds)[1]


def _is_store(out: Path | str) -> bool:
    try:
        Store(out)
    except LabkitError:
        return False
    return True
