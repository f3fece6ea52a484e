"""Pruning block after block: what each criterion does to a matrix, and progress that survives a crash."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from labkit import extension
from labkit.errors import LabkitError, warn
from labkit.lineage import lineage
from labkit.pruning import blocks, kernels, ledger, memory, sparsegpt, streaming
from labkit.pruning.blocks import Matrix
from labkit.pruning.criteria import CALIBRATED, CRITERIA
from labkit.pruning.masks import Keep
from labkit.pruning.moments import Hessian, Norms, Statistic

SCORES = {"cpu": 2**18, "cuda": 2**24}
"""Scores held at once where rows do not compete, by type of device: 1 MiB stays in the caches of a CPU, and on a GPU all
that choosing takes is a quarter of a GiB, less than a micro-batch takes in blocks with matrices so large."""


@dataclasses.dataclass(frozen=True)
class Method:
    """A criterion as the engine sees it.

    Attributes
    ----------
    statistic: what it must know of the inputs of a matrix, or None.
    group: within what unstructured weights compete if nothing else is asked for.
    prune: (matrix, statistic, keep, generator), prunes the matrix in place.
    """

    statistic: type[Statistic] | None
    group: str
    prune: Callable[[Matrix, Statistic | None, Keep, torch.Generator], None]


@dataclasses.dataclass(frozen=True)
class Options:
    """How the blocks are gone through. Raises LabkitError for a ``propagate`` that is no bool.

    Attributes
    ----------
    propagate: a block is run again once it is pruned, as the papers do, so that the next is calibrated on what it then
        gives. Without, all are calibrated on the dense model, in one pass instead of two.
    device: where blocks are computed, e.g. ``"cuda"``; default: where the model is. A model on the CPU stays there but
        for one block at a time. Activations are on the CPU but for two micro-batches: one that a GPU computes with, and
        one on its way.
    folder: every block that is done is kept there, and the same call after a crash goes on from the last one.
    """

    propagate: bool = True
    device: torch.device | str | None = None
    folder: str | os.PathLike | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.propagate, bool):
            raise LabkitError("propagate is True or False", self.propagate, "Leave it out to run pruned blocks again.")


def methods() -> dict[str, Method]:
    """Name -> method: one for every score of `criteria.CRITERIA`, SparseGPT, which also updates what it keeps, and one
    for every score added by `labkit.extension`.
    """
    scores = {score.__name__: (score, score in CALIBRATED) for score in CRITERIA}
    scores |= extension.added("criterion", taken=(*scores, "sparsegpt"))
    by_score = {
        name: Method(
            statistic=Norms if calibrated else None,
            group="row" if calibrated else "layer",
            prune=_by_score(score),
        )
        for name, (score, calibrated) in scores.items()
    }
    return {**by_score, "sparsegpt": Method(Hessian, "layer", _by_sparsegpt())}


def _by_score(score: Callable[..., Tensor]) -> Callable[..., None]:
    def prune(matrix: Matrix, statistic: Statistic | None, keep: Keep, generator: torch.Generator) -> None:
        norms = None if statistic is None else statistic.value()
        weight = matrix.weight
        # Scores of labkit look at one output at a time; those that users add may look at the whole matrix.
        own = score in CRITERIA
        size = memory.of_device(SCORES, weight.device)
        extremes: list[Tensor] = []
        for part in weight.split(max(1, size // weight.shape[1]) if own and keep.by_row else len(weight)):
            scores = (score if own else _checked(score, matrix.name))(part, norms, generator).float()
            extremes += torch.aminmax(scores)
            # Zeros go first, whatever the criterion: of a sparse model they count towards what is asked for.
            stays = keep(scores.masked_fill_(part == 0, -torch.inf))
            part.mul_(stays).add_(0)  # on a CPU faster than filling; 0 is added as 0 · −1 is −0
        _check_finite(torch.stack(extremes), matrix.name)  # once for all parts, as it waits for a GPU

    return prune


def _checked(score: Callable[..., Tensor], name: str) -> Callable[..., Tensor]:
    """A criterion of a user, for the matrix of that name: it is given copies, and its scores are looked at."""

    def checked(weight: Tensor, norms: Tensor | None, generator: torch.Generator) -> Tensor:
        scores = score(weight.clone(), None if norms is None else norms.clone(), generator)
        if not isinstance(scores, Tensor) or scores.shape != weight.shape or scores.is_complex():
            form = f"{scores.dtype} {tuple(scores.shape)}" if isinstance(scores, Tensor) else type(scores).__name__
            received = f"{form} of {score.__name__} for {name}, {tuple(weight.shape)}"
            remedy = "Return a torch.Tensor of the shape of the weights."
            raise LabkitError("a criterion gives one real score for each weight", received, remedy)
        return scores

    return checked


def _check_finite(values: Tensor, name: str) -> None:
    if not blocks.finite(values):
        raise LabkitError("weights and their scores are finite", f"NaN or infinity in {name}", blocks.MAKE_FINITE)


def _by_sparsegpt() -> Callable[..., None]:
    recorded = kernels.Recorded(sparsegpt.sweep_columns)  # for as long as the method lives, which is one job

    def prune(matrix: Matrix, statistic: Hessian, keep: Keep, generator: torch.Generator) -> None:
        if statistic.factor is None:  # matrices of one input share it
            hessian = statistic.take()
            statistic.dead = hessian.diagonal() == 0
            statistic.factor = sparsegpt.inverse_factor(hessian, matrix.name)
        m = keep.pattern and keep.pattern[1]
        sweep = sparsegpt.sweep_columns if keep.waits else recorded
        matrix.weight.copy_(sparsegpt.prune_columns(matrix.weight, statistic.factor, statistic.dead, keep, m, sweep))

    return prune


def check_plain(model: PreTrainedModel, done: str = "pruned") -> None:
    """Raise LabkitError if the model is quantised, compiled, offloaded, or carries adapters: its weights would not be what
    it computes with; or if its zeros are not those that its ledger of masks records.

    ``done`` says what is about to be done to it.
    """
    blocks.check_itself(model)
    if getattr(model.config, "quantization_config", None) is not None:
        remedy = "Load it without quantization_config, and quantise afterwards."
        raise LabkitError(f"a model is {done} before it is quantised", f"a quantised {type(model).__name__}", remedy)
    for name, module in model.named_modules():
        if hasattr(module, "base_layer"):
            raise LabkitError(f"adapters are merged before a model is {done}", f"one at {name}", "Merge it first.")
    ledger.check_masks(model)


def warn_of_grid(model: PreTrainedModel, who: str) -> None:
    """Warn if the model is one of `labkit.quantize`: ``who``, a method, moves its weights off the grid."""
    if any(entry["verb"] == "quantize" for entry in lineage(model)):
        warn(f"the model was quantised, and {who} moves weights off the grid: quantise it again")


@torch.no_grad()
def prune_blocks(
    model: PreTrainedModel,
    method: Method,
    keeps: Mapping[str, Keep],
    *,
    calibration: Tensor | None,
    generator: torch.Generator,
    options: Options,
    progress: Progress | None,
) -> None:
    """Prune the model in place: every matrix that ``keeps`` names, block after block.

    Warns of output rows that lose their last weight, and, for SparseGPT, of fewer tokens than a matrix has inputs.
    """
    prefix, layers = blocks.decoder_blocks(model)
    done = progress.done(len(layers)) if progress else 0
    # What is only read from the folder needs no activations, unless blocks after it do.
    statistic = method.statistic if done < len(layers) else None
    emptied: dict[str, int] = {}
    short: dict[str, int] = {}
    with _full_precision():
        steps = streaming.walk(
            model, calibration, statistic, device=options.device, skip=range(done), changes=options.propagate
        )
        for number, (block, statistics) in enumerate(zip(layers, steps, strict=True)):
            matrices = blocks.block_matrices(f"{prefix}.{number}", block)
            before = {name: _empty_rows(matrix.weight) for name, matrix in matrices.items() if name in keeps}
            if number < done:
                progress.load(number, matrices, generator)
            for name in before if number >= done else ():
                matrix = matrices[name]
                if method.statistic is Hessian and statistics[name].rows < matrix.weight.shape[1]:
                    short[name] = statistics[name].rows
                _check_finite(matrix.weight, name)
                with memory.must_fit("a block, its statistics and what pruning a matrix takes", name):
                    method.prune(matrix, statistics.get(name), keeps[name], generator)
            lost = {name: _empty_rows(matrices[name].weight) - rows for name, rows in before.items()}
            emptied |= {name: int(rows) for name, rows in lost.items() if rows}  # only now, as it waits for a GPU
            # Their memory is needed for running the block again, so nothing above may hold on to one.
            statistics.clear()
            if progress and number >= done:
                progress.save(number, matrices, generator)
    if short:
        name, rows = next(iter(short.items()))
        received = f"{rows} calibration tokens for the {blocks.matrices(model)[name].weight.shape[1]} inputs of {name}"
        message = f"{received}: its Hessian has no full rank and rests on the damping ({_others(short)})"
        warn(f"{message}; give more sequences")
    if emptied:
        name, rows = next(iter(emptied.items()))
        message = f"{rows} outputs of {name} have lost all their weights ({_others(emptied)})"
        warn(f"{message}; group='row' keeps some of each")


def _empty_rows(weight: Tensor) -> Tensor:
    """How many, on the weight's device: nothing waits for it."""
    return (weight.abs().amax(1) == 0).sum()


def _others(named: Mapping[str, int]) -> str:
    return f"and so in {len(named) - 1} further matrices" if len(named) > 1 else "no other matrix"


@contextlib.contextmanager
def _full_precision() -> Iterator[None]:
    """No TF32: norms and Hessians are fp32, whatever the user's setting."""
    asked = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(asked)


class Progress:
    """A folder with the weights of every block that is done, for a job that may be killed and taken up again.

    ``job.json`` says which job: hashes of the dense weights and the calibration tokens, and what was asked for. Files
    appear in one step (written beside, then renamed), so that one that is there is whole.
    """

    def __init__(self, folder: str | os.PathLike, job: Mapping[str, Any]) -> None:
        """``job`` is plain JSON. Raises LabkitError if the folder belongs to another job, or is none."""
        self.folder, path = Path(folder), Path(folder, "job.json")
        if self.folder.exists() and not self.folder.is_dir():
            raise LabkitError("the progress of a job is kept in a folder", f"{self.folder}, a file", "Give another name.")
        self.folder.mkdir(parents=True, exist_ok=True)
        if path.exists():
            try:
                there = json.loads(path.read_text(encoding="utf-8"))
            except ValueError:
                there = None
            if not isinstance(there, dict):
                rule = "job.json in a job's folder says which job it is"
                raise LabkitError(rule, f"{path}, which is damaged", "Remove the folder, and begin anew.")
            if differ := [key for key in sorted({*job, *there}) if job.get(key) != there.get(key)]:
                received = f"{self.folder}, of a job with other {', '.join(differ)}"
                remedy = "Give another folder, or remove this one."
                raise LabkitError("a folder holds the progress of one pruning job", received, remedy)
        else:
            self._write(path, lambda part: part.write_text(json.dumps(job, indent=1), encoding="utf-8"))

    def done(self, blocks: int) -> int:
        """How many blocks, counted from the first, are there."""
        return next((number for number in range(blocks) if not self._path(number).exists()), blocks)

    def save(self, number: int, matrices: Mapping[str, Matrix], generator: torch.Generator) -> None:
        """Keep the weights of a block, and where the generator stands."""
        tensors = {name: matrix.weight.cpu().contiguous() for name, matrix in matrices.items()}
        self._write(self._path(number), lambda part: save_file({**tensors, "generator": generator.get_state()}, part))

    def load(self, number: int, matrices: Mapping[str, Matrix], generator: torch.Generator) -> None:
        """Put back what `save` kept."""
        try:
            tensors = load_file(self._path(number))
        except SafetensorError:
            tensors = {}
        if tensors.keys() != {*matrices, "generator"}:
            remedy = "Remove the file: its block is pruned again, and those after it."
            raise LabkitError("the file of a block that is done is whole", str(self._path(number)), remedy)
        generator.set_state(tensors["generator"])
        for name, matrix in matrices.items():
            matrix.weight.copy_(tensors[name])

    def _path(self, number: int) -> Path:
        return self.folder / f"block-{number:04d}.safetensors"

    @staticmethod
    def _write(path: Path, write: Callable[[Path], object]) -> None:
        part = path.with_name(path.name + ".part")
        write(part)
        part.replace(path)


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """sha256 over names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
