"""What was done to a model, kept in its config: it travels with `save_pretrained` and comes back with the weights."""

from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING, Any

from labkit.errors import LabkitError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FIELD = "labkit_lineage"


def record(model: PreTrainedModel, verb: str, **facts: object) -> None:
    """Add ``{"verb": verb, **facts}`` to the model's lineage, in place. Tuples become lists, as in any JSON.

    Facts are what was asked for and, where it trained, what it cost: ``tokens``, ``flops``, ``seconds``.
    Raises LabkitError for a fact that `plain` refuses: it would break config.json.
    """
    entry = {"verb": verb, **plain(verb, **facts)}
    # A new list: a copied config may still hold the old one, and its model was not changed.
    setattr(model.config, FIELD, [*(getattr(model.config, FIELD, None) or ()), entry])


def plain(verb: str, **facts: object) -> dict[str, Any]:
    """The facts as they come back from JSON; NumPy's and PyTorch's numbers become Python's.

    Raises LabkitError for what JSON cannot hold, NaN and infinity included.
    """
    try:
        return json.loads(json.dumps(facts, allow_nan=False, default=_number))
    except (TypeError, ValueError, RuntimeError) as error:
        remedy = "Give numbers that are finite, texts, booleans, None, and lists and dicts of these."
        raise LabkitError("facts of a lineage are plain JSON", f"{verb}: {facts} ({error})", remedy) from None


def _number(value: Any) -> float | int | bool:
    if hasattr(value, "item"):
        return value.item()
    raise TypeError(f"{type(value).__name__} is not JSON")


def lineage(model: PreTrainedModel) -> tuple[dict, ...]:
    """All that was done to the model, the first thing first; empty for a model as it was trained.

    >>> lineage(prune(dense, "wanda", 0.5, calibration=tokens))  # doctest: +SKIP
    ({'verb': 'prune', 'criterion': 'wanda', 'sparsity': 0.5, ...},)
    """
    return tuple(copy.deepcopy(getattr(model.config, FIELD, None) or ()))
