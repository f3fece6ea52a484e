"""The only training loop. What differs between dense, distilled and recovered models is the loss handed in."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, load_model, save_file, save_model
from torch.nn import functional as F
from tqdm.auto import tqdm

from labkit.errors import Failure, LabkitError
from labkit.flops import training_flops_per_token
from labkit.forward import Forward, asked_places
from labkit.pruning.ledger import hold

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from labkit.abilities import Corpus

Loss = Callable[[Forward, torch.Tensor, torch.Tensor], torch.Tensor]
"""(forward pass of the model, tokens (batch, time), labels (batch, time)) → scalar loss in nats."""

LOG_EVERY = 50  # steps between looks at the loss: each look waits for the device
CHECKPOINT_SECONDS = 60
PARTIAL = ".partial"  # a checkpoint being written; what a killed process left is overwritten by the next


@dataclasses.dataclass(frozen=True)
class Training:
    """What a training cost and how it went.

    Attributes
    ----------
    steps, tokens: optimiser steps, and tokens shown (answers or not).
    flops: nominal floating-point operations, 3 × forward × tokens, less where weights are frozen (`labkit.flops`).
    seconds: wall time spent in the loop, earlier parts of a resumed run included.
    loss_nats: ((step, mean loss over the steps since the last one), …).
    """

    steps: int
    tokens: int
    flops: float
    seconds: float
    loss_nats: tuple[tuple[int, float], ...]


def answers_only(forward: Forward, tokens: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy, in nats, over the places where something is asked.

    Labels stand at the place they are asked (no shift): logits[b, t] is compared with labels[b, t].
    """
    places = asked_places(labels)
    return F.cross_entropy(forward.logits_at(tokens, places).float(), labels.flatten()[places])


def train(
    model: PreTrainedModel,
    corpus: Corpus,
    tokens: int,
    *,
    batch: int = 64,
    learning_rate: float = 2e-3,
    loss: Loss = answers_only,
    folder: Path | str | None = None,
    label: str = "training",
) -> Training:
    """Train `model` in place, on the device it is on, for about `tokens` tokens.

    AdamW (β .9, .98; weight decay .1 on what has two dimensions or more, but for the embeddings of tokens and the
    head), warm-up over 100 steps, linear decay over the last 40 %, gradient norm clipped to 1; bfloat16 autocast on a
    GPU, float32 on a CPU. Pruned weights (`labkit.pruning.ledger`) stay
    zero, and frozen ones as they are: a `peft` model trains its adapters. With a `folder`, a checkpoint is kept there
    and a killed training resumes from it; when the training is done the checkpoint is removed.

    Raises LabkitError for fewer tokens than one batch, for a checkpoint of another training (another label, corpus,
    model, …: the message names what differs); Failure when the loss or its gradient is no longer finite: the message
    names the step and the last good checkpoint.
    """
    steps = tokens // (batch * corpus.length)
    if steps < 1:
        raise LabkitError(
            f"a training takes at least one batch of {batch} × {corpus.length} tokens", tokens, "Raise tokens."
        )
    device = next(model.parameters()).device
    zero_pruned = hold(model)
    optimizer = _optimizer(model, learning_rate)
    asked = {"label": label, "steps": steps, "batch": batch, "learning rate": learning_rate}
    identity = _identity(model, corpus, asked)
    first, seconds, history = _resume(folder, model, optimizer, identity)
    rate = lambda step: learning_rate * min(1, (step + 1) / 100, (steps - step) / (0.4 * steps))  # noqa: E731
    forward = Forward(model)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")
    model.train()

    begun = saved = time.monotonic()
    recent: list[torch.Tensor] = []
    shown = steps * batch * corpus.length
    with tqdm(total=shown, initial=first * batch * corpus.length, desc=label, unit="tok", unit_scale=True,
              mininterval=2, smoothing=0.05) as bar:  # fmt: skip
        for step, (rows, labels) in enumerate(corpus.batches(batch, steps, first), start=first):
            rows, labels = (torch.from_numpy(x).to(device, non_blocking=True) for x in (rows, labels))
            for group in optimizer.param_groups:
                group["lr"] = rate(step)
            with autocast:
                value = loss(forward, rows, labels)
            value.backward()
            zero_pruned()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            recent.append(torch.where(norm.isfinite(), value.detach(), norm))  # either one spoils the weights
            bar.update(rows.numel())
            if len(recent) == LOG_EVERY or step + 1 == steps:
                history.append((step + 1, _mean_if_finite(recent, step, folder)))
                recent = []
                bar.set_postfix(loss_nats=f"{history[-1][1]:.3f}")
                if folder is not None and step + 1 < steps and time.monotonic() - saved > CHECKPOINT_SECONDS:
                    saved = time.monotonic()
                    _save(Path(folder), model, optimizer, (step + 1, seconds + saved - begun, history, identity))
    zero_pruned.settle()
    model.eval()
    if folder is not None:
        for old in (*_checkpoints(Path(folder)), Path(folder) / PARTIAL):
            shutil.rmtree(old, ignore_errors=True)
    flops = float(training_flops_per_token(model, corpus.length) * shown)
    return Training(steps, shown, flops, seconds + time.monotonic() - begun, tuple(history))


def _optimizer(model: PreTrainedModel, learning_rate: float) -> torch.optim.Optimizer:
    trained = [p for p in model.parameters() if p.requires_grad]
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    embeddings = {id(p) for end in ends if end is not None for p in end.parameters()}
    decays = lambda p: p.ndim >= 2 and id(p) not in embeddings  # noqa: E731
    groups = [
        {"params": [p for p in trained if decays(p)], "weight_decay": 0.1},
        {"params": [p for p in trained if not decays(p)], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.98), fused=True)


def _mean_if_finite(losses: list[torch.Tensor], last: int, folder: Path | str | None) -> float:
    values = torch.stack(losses).float().cpu()
    bad = (~values.isfinite()).nonzero()
    if len(bad):
        kept = _checkpoints(Path(folder))[-1:] if folder is not None else []
        where = f"The last good checkpoint is {kept[0].name} in {folder}" if kept else "No checkpoint was kept"
        step = last + 1 - len(losses) + int(bad[0])
        raise Failure(
            "the loss and its gradient must stay finite",
            f"{values[bad[0, 0]].item()} at step {step}",
            f"{where}; lower the learning rate, or look at the data of that step.",
        )
    return float(values.mean())


# -- checkpoints: one folder a step, renamed into place when whole ------------------------------------------------------


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-????????"))


def _save(folder: Path, model: PreTrainedModel, optimizer: torch.optim.Optimizer, state: tuple) -> None:
    step, seconds, history, identity = state
    old, new = _checkpoints(folder), folder / f"step-{step:08d}"
    partial = folder / PARTIAL
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_model(model, str(partial / "model.safetensors"))  # weights that are tied are written once
    moments = {
        f"{number}.{name}": value.contiguous()
        for number, moment in optimizer.state_dict()["state"].items()
        for name, value in moment.items()
    }
    save_file(moments, partial / "optimizer.safetensors")
    written = {"step": step, "seconds": seconds, "history": history, "training": identity}
    (partial / "state.json").write_text(json.dumps(written))
    partial.rename(new)
    for path in old:
        shutil.rmtree(path)


def _identity(model: PreTrainedModel, corpus: Corpus, asked: dict[str, object]) -> dict[str, str]:
    """What makes this training the one it is; a checkpoint of another one must not be resumed.

    A loss is a function, which nothing can tell from another: whoever hands one in says so in the label.
    """
    source = repr(corpus) if dataclasses.is_dataclass(corpus) else f"{type(corpus).__qualname__}({corpus.length})"
    shapes = [(name, [*p.shape], p.requires_grad) for name, p in model.named_parameters()]
    digest = lambda text: hashlib.sha256(text.encode()).hexdigest()[:16]  # noqa: E731
    return {
        **{key: str(value) for key, value in asked.items()},
        "corpus": digest(re.sub(r" at 0x[0-9a-f]+", "", source)),  # an object's place in memory is not what it is
        "model": digest(repr(shapes)),
        "masks": digest(json.dumps(getattr(model.config, "labkit_masks", None), sort_keys=True)),
    }


def _resume(
    folder: Path | str | None, model: PreTrainedModel, optimizer: torch.optim.Optimizer, identity: dict[str, str]
) -> tuple[int, float, list[tuple[int, float]]]:
    """Load the last checkpoint, if there is one: (first step to do, seconds spent, loss history)."""
    found = _checkpoints(Path(folder)) if folder is not None else []
    if not found:
        return 0, 0.0, []
    state = json.loads((found[-1] / "state.json").read_text())
    kept = state.get("training", identity)  # absent in checkpoints of labkit 0.1.0, which are taken on trust
    if other := [f"{key} {kept.get(key)}, not {value}" for key, value in identity.items() if kept.get(key) != value]:
        remedy = "Give a folder of its own to each training, or remove this one to begin anew."
        raise LabkitError(
            "a checkpoint is resumed by the training it is of", f"{found[-1]}: {'; '.join(other)}", remedy
        )
    load_model(model, found[-1] / "model.safetensors")
    moments: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in load_file(found[-1] / "optimizer.safetensors").items():
        number, name = key.split(".", 1)
        moments.setdefault(int(number), {})[name] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
    return state["step"], state["seconds"], [tuple(entry) for entry in state["history"]]
