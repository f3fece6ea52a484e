"""Batching: a model and a suite of abilities in, one row per item and metric out. Nothing is averaged here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas
import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from labkit import extension
from labkit.abilities import Ability, Items
from labkit.errors import LabkitError, unknown
from labkit.forward import Forward
from labkit.metrics import METRICS, MORE_METRICS
from labkit.records import IGNORE

COLUMNS = ("ability", "metric", "item", "value", "chance")

CPU_BATCH_TOKENS, BATCH_TOKENS = 2_048, 16_384
"""Tokens in one forward pass: on a CPU few enough for activations to stay in its cache, elsewhere enough to fill it."""

MAX_WORKERS = 8
"""Batches scored at once on a CPU. Between operations a worker holds Python's one lock: more would queue for it."""

_Batch = tuple[Items, np.ndarray, np.ndarray]
"""Items, the numbers of rows of one length, and (metrics, items) float64 values to write to at those rows."""


def evaluate(
    model: PreTrainedModel,
    suite: Sequence[Ability],
    n: int = 512,
    seed: int = 0,
    batch_tokens: int | None = None,
    progress: bool = True,
    metrics: Sequence[str] = (),
) -> pandas.DataFrame:
    """Score ``n`` test items of every ability, on the model's own device.

    Parameters
    ----------
    model
        Any causal language model of `transformers`. Its weights, device and training mode are left as they are. On a
        CPU as many batches are scored at once as torch has threads, each in a thread of its own, so a hook on the model
        must bear that; after ``torch.set_num_threads(1)``, or under ``torch.autocast``, one follows the other.
    suite
        Abilities with different names, e.g. ``labkit.abilities()``. Each is scored by its own ``metrics``.
    n, seed
        Items per ability (≥ 1), and the seed they are drawn by: the same pair gives the same items to every model.
    batch_tokens
        Most tokens in one forward pass (≥ 1), by default 2,048 on a CPU and 16,384 elsewhere. It changes speed and
        memory, never a value beyond rounding.
    metrics
        Names of further metrics for every ability: ``"answer_given"``, or of what was added by `labkit.extension`.
        They have no level of chance (NaN).

    Returns
    -------
    One row per (ability, metric, item), columns ``ability, metric, item, value, chance``; ``chance`` is the value for
    a guesser without the ability.

    Raises
    ------
    LabkitError
        ``n`` or ``batch_tokens`` < 1; an empty suite, one that names an ability twice or holds something else; an
        unknown metric; tokens outside the model's vocabulary; logits that are not finite.
    """
    if batch_tokens is None:
        batch_tokens = CPU_BATCH_TOKENS if model.device.type == "cpu" else BATCH_TOKENS
    _check(suite, n, batch_tokens)
    questions = [(ability, ability.sample(n, seed)) for ability in suite]
    for ability, items in questions:
        _check_vocabulary(model, ability, items)
    names = {ability: tuple(dict.fromkeys((*ability.metrics, *metrics))) for ability in suite}
    functions = {name: _metric(name) for of_ability in names.values() for name in of_ability}
    values = [np.empty((len(names[ability]), len(items)), dtype=np.float64) for ability, items in questions]
    batches = [
        ([functions[name] for name in names[ability]], (items, rows, out))
        for (ability, items), out in zip(questions, values, strict=True)
        for rows in _equal_length_batches(items.lengths, batch_tokens)
    ]
    forward = Forward(model, compile=False)
    was_training = model.training
    model.eval()
    try:
        with tqdm(total=sum(map(len, (items for _, items in questions))), desc="evaluate", unit="item",
                  disable=not progress) as bar:  # fmt: skip
            for scored in _side_by_side(lambda batch: _score(forward, *batch), batches, _workers(model, batches)):
                bar.update(scored)
    finally:
        model.train(was_training)
    return _frame(questions, names, values)


def _workers(model: PreTrainedModel, batches: Sequence) -> int:
    # Autocast belongs to the thread that entered it: another would silently score in another precision.
    if model.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
        return 1
    return min(torch.get_num_threads(), MAX_WORKERS, len(batches))


def _side_by_side(task: Callable, arguments: Sequence, workers: int) -> Iterator:
    """``map(task, arguments)``, the results in order, by threads that share out torch's own.

    Two batches on a thread each are faster than two threads on each operation of one: operations of small models are
    too short to be worth handing out and waiting for.
    """
    if workers == 1:
        yield from map(task, arguments)
        return
    threads = torch.get_num_threads()
    try:
        # `set_num_threads` speaks for the calling thread, and for those not yet begun
        with ThreadPoolExecutor(workers, "evaluate", torch.set_num_threads, (threads // workers,)) as pool:
            yield from pool.map(task, arguments)
    finally:
        torch.set_num_threads(threads)


def _score(forward: Forward, metrics: list[Callable], batch: _Batch) -> int:
    """Write the values of one batch; how many items it has."""
    items, rows, values = batch
    length = items.lengths[rows[0]]
    tokens = torch.from_numpy(items.tokens[rows, :length]).to(forward.model.device)
    labels = torch.from_numpy(items.labels[rows, :length]).to(forward.model.device)
    with torch.inference_mode():  # of this thread alone
        logits, labels = _answer_logits(forward, tokens, labels)
        if not torch.isfinite(logits).all():
            received = f"NaN or infinity on ability {items.ability!r}"
            raise LabkitError("logits are finite", received, "Check the weights and their dtype.")
        values[:, rows] = torch.stack([metric(logits, labels) for metric in metrics]).cpu().numpy()
    return len(rows)


def _frame(
    questions: list[tuple[Ability, Items]], names: dict[Ability, tuple[str, ...]], values: list[np.ndarray]
) -> pandas.DataFrame:
    """One frame of everything: making one for each metric costs more than the metrics."""
    blocks = [(ability, items, name) for ability, items in questions for name in names[ability]]
    sizes = [len(items) for _, items, _ in blocks]
    columns = (
        np.repeat(np.array([ability.name for ability, _, _ in blocks], dtype=object), sizes),
        np.repeat(np.array([name for _, _, name in blocks], dtype=object), sizes),
        np.concatenate([items.index for _, items, _ in blocks]),
        np.concatenate([of_ability.ravel() for of_ability in values]),
        np.concatenate([_chance(*block) for block in blocks]),
    )
    return pandas.DataFrame(dict(zip(COLUMNS, columns, strict=True)))


def _chance(ability: Ability, items: Items, metric: str) -> np.ndarray:
    return ability.chance(metric, items) if metric in ability.metrics else np.full(len(items), np.nan)


def _answer_logits(forward: Forward, tokens: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and labels (items, tail) of the last positions, from the first label of any item on.

    Answers stand at the end of items: of the last block, the output head and every softmax the short tail is all.
    """
    count, time = labels.shape
    first = int((labels != IGNORE).any(0).to(torch.uint8).argmax())
    places = torch.arange(count * time, device=labels.device).view(count, time)[:, first:]
    return forward.logits_at(tokens, places.flatten()).unflatten(0, places.shape), labels[:, first:]


def _equal_length_batches(lengths: np.ndarray, batch_tokens: int) -> Iterator[np.ndarray]:
    """Row numbers of items of one length, at most ``batch_tokens`` tokens together (but at least one item).

    Equal lengths need neither padding nor an attention mask, so the fast causal kernel is used and a value cannot
    depend on an item's neighbours.
    """
    for length in np.unique(lengths):
        rows = np.flatnonzero(lengths == length)
        size = max(1, batch_tokens // int(length))
        yield from (rows[i : i + size] for i in range(0, len(rows), size))


def _check_vocabulary(model: PreTrainedModel, ability: Ability, items: Items) -> None:
    vocabulary = model.get_input_embeddings().weight.shape[0]
    largest = int(max(items.tokens.max(), items.labels.max()))
    if largest >= vocabulary:
        raise LabkitError(
            f"the model's vocabulary holds every token of ability {ability.name!r}",
            f"token {largest}, vocabulary of {vocabulary}",
            "Use a model with labkit's vocabulary, e.g. a shipped rung.",
        )


def _metric(name: str) -> Callable[[Tensor, Tensor], Tensor]:
    known = {metric.__name__: metric for metric in (*METRICS, *MORE_METRICS)}
    known |= extension.added("metric", taken=known)
    if name not in known:
        raise unknown("metric", name, known)
    return known[name]


def _check(suite: Sequence[Ability], n: int, batch_tokens: int) -> None:
    for name, value in (("n", n), ("batch_tokens", batch_tokens)):
        if not isinstance(value, int | np.integer) or value < 1:
            raise LabkitError(f"{name} is a whole number of at least 1", value, "Ask for at least one.")
    strangers = [ability for ability in suite if not isinstance(ability, Ability)]
    if strangers or not len(suite):
        received = strangers[0] if strangers else suite
        raise LabkitError("a suite is a sequence of abilities", received, "Take them from labkit.abilities().")
    twice = [name for name, count in Counter(ability.name for ability in suite).items() if count > 1]
    if twice:
        raise LabkitError("a suite names every ability once", ", ".join(twice), "Remove the repeats.")
