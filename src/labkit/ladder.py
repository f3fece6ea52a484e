"""The ladder of model sizes: one dial, width × layers, gives a plain `transformers` Llama."""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING

from labkit.abilities import vocabulary
from labkit.errors import LabkitError

if TYPE_CHECKING:
    from transformers import LlamaConfig, LlamaForCausalLM

HEAD_DIM = 16


@dataclasses.dataclass(frozen=True)
class Rung:
    """One size. All else follows from width and layers.

    Attributes
    ----------
    width: size of the hidden state; a multiple of 16, since every head has 16 dimensions.
    layers: number of decoder blocks, ≥ 1.

    Raises LabkitError for any other width or number of layers.

    >>> Rung(64, 2)
    Rung(width=64, layers=2)
    >>> Rung(64, 2).name, Rung(64, 2).params
    ('64x2', 100672)
    """

    width: int
    layers: int

    def __post_init__(self) -> None:
        if self.width < HEAD_DIM or self.width % HEAD_DIM or self.layers < 1:
            raise LabkitError(
                f"a rung's width is a multiple of {HEAD_DIM} and it has at least one layer",
                f"{self.width}x{self.layers}",
                "Give e.g. 64x2.",
            )

    @classmethod
    def parse(cls, name: str) -> Rung:
        """The rung called e.g. "64x2"."""
        match = re.fullmatch(r"(\d+)x(\d+)", name)
        if not match:
            raise LabkitError("a rung is written <width>x<layers>", name, "Give e.g. 64x2.")
        return cls(int(match[1]), int(match[2]))

    @property
    def name(self) -> str:
        return f"{self.width}x{self.layers}"

    @property
    def ffn(self) -> int:
        """Neurons of the gated feed-forward layer: 8/3 of the width (Shazeer 2020), rounded up to a multiple of 8."""
        return -(-8 * self.width // 24) * 8

    @property
    def params(self) -> int:
        """Non-embedding parameters: four square projections, three of the feed-forward layer, two norms a block, one last."""
        d = self.width
        return self.layers * (4 * d * d + 3 * d * self.ffn + 2 * d) + d

    @property
    def learning_rate(self) -> float:
        """Peak learning rate: 3e-3 up to width 64, then falling as 1/width."""
        return 3e-3 * min(1.0, 64 / self.width)

    def config(self) -> LlamaConfig:
        """The model's configuration: rotary positions, no biases, separate input and output embeddings."""
        from transformers import LlamaConfig

        heads = self.width // HEAD_DIM
        return LlamaConfig(
            vocab_size=vocabulary.SIZE,
            hidden_size=self.width,
            intermediate_size=self.ffn,
            num_hidden_layers=self.layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            max_position_embeddings=128,
            tie_word_embeddings=False,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=vocabulary.PAD,
        )

    def build(self, seed: int = 0) -> LlamaForCausalLM:
        """A model with fresh weights, the same for the same seed. The global random state is left as it was."""
        import torch
        from transformers import LlamaForCausalLM

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return LlamaForCausalLM(self.config())


def ladder() -> tuple[Rung, ...]:
    """The rungs that are shipped, from the smallest to the largest."""
    return tuple(Rung.parse(name) for name in ("16x1", "32x1", "32x2", "64x1", "64x2", "96x3"))
