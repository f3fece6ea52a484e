"""A causal language model in two parts: the body that makes hidden states, and the head that turns them into logits."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from labkit.divergences import Head
from labkit.errors import LabkitError
from labkit.forward import Forward

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Body:
    """Hidden states of a model, compiled where this machine can, and its head for the first ``vocab`` tokens.

    Logits are made from hidden states by whoever needs them, a few positions at a time. Raises LabkitError for a model
    whose logits are not head·hidden, up to the scale or soft cap that its config names.
    """

    def __init__(self, model: PreTrainedModel, vocab: int) -> None:
        self.model, self.vocab = model, vocab
        self._forward = Forward(model)
        self._check()

    def hidden(self, tokens: Tensor, places: Tensor) -> Tensor:
        """(batch, time), (n,) places of `labkit.forward.asked_places` -> (n, width): what the head reads there."""
        return self._forward.hidden_at(tokens, places)

    def layers(self, tokens: Tensor) -> tuple[Tensor, ...]:
        """Hidden states after the embedding, after each layer, (batch, time, width) each; the head reads the last one."""
        return self._forward.body(input_ids=tokens, use_cache=False, output_hidden_states=True).hidden_states

    def head(self, hidden: Tensor) -> Head:
        """The head beside hidden states (positions, width) of one's own choice."""
        layer = self.model.get_output_embeddings()
        bias = getattr(layer, "bias", None)
        return Head(hidden, layer.weight[: self.vocab], None if bias is None else bias[: self.vocab])

    def finish(self, logits: Tensor) -> Tensor:
        """What a model still does to head·hidden: Cohere and Granite scale it, Gemma 2 caps it softly."""
        config = self.model.config.get_text_config()
        logits = logits * (getattr(config, "logit_scale", None) or 1) / (getattr(config, "logits_scaling", None) or 1)
        cap = getattr(config, "final_logit_softcapping", None)
        return logits if cap is None else cap * torch.tanh(logits / cap)

    @torch.no_grad()
    def _check(self) -> None:
        tokens = torch.arange(min(8, self.vocab), device=self.model.device)[None]
        was_training = self.model.training
        self.model.eval()
        try:
            hidden = self.model.base_model(input_ids=tokens, use_cache=False).last_hidden_state
            head = self.head(hidden)
            ours = self.finish(torch.nn.functional.linear(*head))
            theirs = self.model(input_ids=tokens, use_cache=False).logits[..., : self.vocab]
        finally:
            self.model.train(was_training)
        # NaN is not this check's business: a training names the step it is met at.
        if not torch.allclose(ours.float(), theirs.float(), rtol=1e-2, atol=1e-2, equal_nan=True):
            raise LabkitError(
                "a model's logits are its output head times its last hidden states",
                type(self.model).__name__,
                "Its forward pass does more; it cannot be distilled in chunks.",
            )


def vocabulary(model: PreTrainedModel) -> int:
    """Rows of the output head."""
    return len(model.get_output_embeddings().weight)


def digest(model: PreTrainedModel) -> str:
    """SHA-256 of all weights, in hexadecimal: names, types, shapes and values."""
    found = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        found.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        found.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return found.hexdigest()
