"""Values of TRL's `generalized_jsd_loss` on seeded logits, stored for the tests that run without TRL.

.venv-oracles/bin/python tests/oracles/distillation.py     (an environment with the extra `oracles`)
"""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path

import torch
from trl.experimental.gkd import GKDTrainer

PATH = Path(__file__).parents[1] / "data" / "trl-generalized-jsd.json"


def main() -> None:
    generator = torch.Generator().manual_seed(20)
    student, teacher = (3 * torch.randn(2, 5, 7, generator=generator) for _ in range(2))
    labels = torch.tensor([[-100, -100, 3, 4, -100], [-100, 1, 2, 3, 0]])
    cases = [
        {
            "beta": beta,
            "temperature": temperature,
            "value": GKDTrainer.generalized_jsd_loss(student, teacher, labels, beta, temperature).item(),
        }
        for beta in (0.0, 0.1, 0.5, 0.9, 1.0)
        for temperature in (1.0, 0.7, 2.0)
    ]
    written = {
        "source": f"trl {importlib.metadata.version('trl')}, GKDTrainer.generalized_jsd_loss",
        "cases": cases,
        **{name: value.tolist() for name, value in (("student", student), ("teacher", teacher), ("labels", labels))},
    }
    PATH.write_text(json.dumps(written, indent=1) + "\n")


if __name__ == "__main__":
    main()
