"""A model's own answers in the places of a batch where something is asked."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable

import torch
from torch import Tensor
from transformers import PreTrainedModel

from labkit import divergences
from labkit.errors import LabkitError
from labkit.records import IGNORE


def fed_back(tokens: Tensor, labels: Tensor) -> Tensor:
    """Where the answer asked for is also the next token of the row: (batch, time) bool, never true in the last column.

    A row feeds its answers back if every label that has a labelled right neighbour equals the token there; running
    text, copying and the digits of a sum do. In all other rows (separate questions, answers never shown) the model's
    answers cannot change what it reads. An answer at the end of its run is not fed back: a new question follows it.
    """
    run = (labels[:, :-1] != IGNORE) & (labels[:, 1:] != IGNORE)
    same = tokens[:, 1:] == labels[:, :-1]
    whole = (same | ~run).all(1, keepdim=True)
    return torch.nn.functional.pad(run & whole, (0, 1))


@torch.no_grad()
def sample_answers(
    model: PreTrainedModel,
    tokens: Tensor,
    labels: Tensor,
    *,
    generator: torch.Generator,
    temperature: float = 1.0,
    vocab: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Tokens and labels, (batch, time) each, with the model's sampled answers instead of those given.

    At every labelled place the model's next token is drawn at ``temperature`` from its first ``vocab`` tokens, from
    left to right. Where answers are fed back (see `fed_back`), the token drawn replaces the next token of the row
    before the model reads on, so that later answers follow from its own earlier ones: in running text after a prompt
    that is an ordinary continuation. Prompts, questions, padding and the places that are asked stay as they are.
    Dropout is off meanwhile. Raises LabkitError where the model's logits are not finite.
    """
    was_training = model.training
    model.eval()
    try:
        loops = fed_back(tokens, labels)
        draw = functools.partial(_draw, generator=generator, temperature=temperature, vocab=vocab)
        tokens, drawn = tokens.clone(), labels.clone()
        # Nothing drawn is read again: one pass, over as many rows as their logits may take memory
        alone = (~loops.any(1)).nonzero().flatten()
        size = max(1, divergences.CHUNK_LOGITS // (tokens.shape[1] * model.config.get_text_config().vocab_size))
        for rows in alone.split(size) if len(alone) else ():
            drawn[rows], _ = _answer(model, tokens[rows], labels[rows], draw)
        if len(rows := loops.any(1).nonzero().flatten()):
            tokens[rows], drawn[rows] = _sequential(model, tokens[rows], labels[rows], loops[rows], draw)
        return tokens, drawn
    finally:
        model.train(was_training)


def _sequential(
    model: PreTrainedModel, tokens: Tensor, labels: Tensor, loops: Tensor, draw: Callable[[Tensor, Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Left to right through a key-value cache, which stops only at columns where some row feeds an answer back."""
    tokens, drawn, cache, begin = tokens.clone(), labels.clone(), None, 0
    for end in [*(loops.any(0).nonzero().flatten() + 1).tolist(), tokens.shape[1]]:
        part = slice(begin, end)
        drawn[:, part], cache = _answer(
            model, tokens[:, part], labels[:, part], draw, past_key_values=cache, use_cache=True
        )
        if end < tokens.shape[1]:
            tokens[:, end] = torch.where(loops[:, end - 1], drawn[:, end - 1], tokens[:, end])
        begin = end
    return tokens, drawn


def _answer(
    model: PreTrainedModel,
    tokens: Tensor,
    labels: Tensor,
    draw: Callable[[Tensor, Tensor], Tensor],
    **cache: object,
) -> tuple[Tensor, object]:
    """Drawn labels (batch, time), and the key-value cache where one is asked for.

    A prompt before the first label passes without the output head: its logits would be most of the memory.
    """
    columns = (labels != IGNORE).any(0).nonzero()
    kept = labels.shape[1] - int(columns[0]) if len(columns) else 1
    short = {"logits_to_keep": kept} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
    out = model(input_ids=tokens, **{"use_cache": False, **cache}, **short)
    drawn = labels.clone()
    drawn[:, -kept:] = draw(out.logits[:, -kept:], labels[:, -kept:])
    return drawn, getattr(out, "past_key_values", None)


def _draw(
    logits: Tensor, labels: Tensor, *, generator: torch.Generator, temperature: float, vocab: int | None
) -> Tensor:
    """(batch, time) labels with a draw from softmax(logits / temperature) wherever there was one."""
    asked, drawn = labels != IGNORE, labels.clone()
    if asked.any():
        scores = logits[asked][:, :vocab].float() / temperature
        if not scores.isfinite().all():  # multinomial would say it less kindly, and on a GPU by killing the process
            raise LabkitError("a model that samples has finite logits", "NaN or infinity", "Look at its weights.")
        drawn[asked] = torch.multinomial(scores.softmax(-1), 1, generator=generator)[:, 0]
    return drawn
