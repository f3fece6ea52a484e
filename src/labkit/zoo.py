"""The models labkit ships, and loading any model by name. Weights are read from safetensors alone, never unpickled."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from labkit.errors import LabkitError, unknown

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedModel

MANIFEST = "manifest.json"


def artifacts() -> Path:
    """Folder of everything that is shipped: trained models, measured rows and the manifest of both."""
    return Path(__file__).parent / "artifacts"


def manifest(folder: Path | str | None = None) -> dict:
    """``{"files": {path: sha256}, "models": {name: record}}`` of a folder of models, the shipped one by default.

    A record holds rung, params, seed, tokens, flops, seconds, loss_nats, scores and provenance (see
    `labkit.schooling`). Raises LabkitError if the folder has no manifest or it cannot be read.
    """
    path = Path(folder or artifacts()) / MANIFEST
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise LabkitError(
            f"a folder of models holds a {MANIFEST}", str(path.parent), "Train one with `labkit ladder --out DIR`."
        ) from None
    except ValueError as error:
        raise LabkitError(f"{MANIFEST} is JSON", f"{path}: {error}", "Restore the file.") from None


def zoo(folder: Path | str | None = None) -> pd.DataFrame:
    """Frame of the models in a folder (the shipped ones by default): name, rung, params, seed, tokens, sha256."""
    import pandas as pd

    listed = manifest(folder)
    rows = [
        (name, m["rung"], m["params"], m["seed"], m["tokens"], listed["files"][f"{name}/model.safetensors"])
        for name, m in listed["models"].items()
    ]
    frame = pd.DataFrame(rows, columns=["name", "rung", "params", "seed", "tokens", "sha256"])
    return frame.sort_values(["params", "name"], ignore_index=True)


def sha256(path: Path) -> str:
    """Checksum of a file's content, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def damaged(folder: Path | str | None = None) -> list[str]:
    """Files named by the manifest that are missing or whose content is not what it was."""
    root = Path(folder or artifacts())
    return [
        name
        for name, expected in manifest(folder)["files"].items()
        if not (root / name).is_file() or sha256(root / name) != expected
    ]


def load(
    name: str, *, folder: Path | str | None = None, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedModel:
    """A model by shipped name ("ladder/64x2/seed-0"), local folder or hub id ("owner/model").

    Shipped names are looked up in the manifest of `folder` and their checksums verified. The model comes back in
    evaluation mode, in the precision its weights were saved in. `trust_remote_code` runs code that comes with the model:
    leave it off unless you have read that code.

    Raises LabkitError for an unknown name, a damaged file, a model that has no safetensors weights, a hub id that
    cannot be fetched, and a pruned model whose zeros are not where they were recorded (`labkit.pruning.ledger`).
    """
    if Path(name).is_dir():
        return _from_pretrained(name, Path(name), trust_remote_code=trust_remote_code)
    known = manifest(folder)
    if name in known["models"]:
        root = Path(folder or artifacts())
        for part in ("config.json", "model.safetensors"):
            path = root / name / part
            if not path.is_file() or sha256(path) != known["files"][f"{name}/{part}"]:
                raise LabkitError(
                    "a shipped file has the checksum of its manifest", str(path), "Install labkit anew, or train it anew."
                )
        with _quiet():
            return _from_pretrained(name, root / name)
    if name.startswith("ladder/") or name.count("/") != 1:
        raise unknown("model name, local folder or hub id", name, known["models"])
    return _from_pretrained(name, name, revision=revision, trust_remote_code=trust_remote_code)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No progress bar of transformers: a shipped model loads in milliseconds."""
    from transformers.utils import logging

    enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            logging.enable_progress_bar()


def _from_pretrained(name: str, where: Path | str, **options: object) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM

    if isinstance(where, Path) and not any(where.glob("*.safetensors")):
        found = sorted(p.name for p in where.iterdir() if p.suffix in {".bin", ".pt", ".pth", ".ckpt", ".pkl"})
        raise LabkitError(
            "weights are read from safetensors alone, for unpickling runs whatever code a file holds",
            ", ".join(found) or f"a folder without weights: {name}",
            "Convert it with save_pretrained(safe_serialization=True), on a machine where you trust the file.",
        )
    try:
        model = AutoModelForCausalLM.from_pretrained(where, use_safetensors=True, dtype="auto", **options)
    except Exception as error:  # transformers raises anything from OSError to SafetensorError here
        raise LabkitError(
            "a model is loaded from safetensors and a config.json, in a local folder or on the hub",
            f"{name} ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})",
            "Offline, put the model's folder on this machine and give its path.",
        ) from error
    from labkit.pruning.ledger import check_masks

    check_masks(model)
    return model.eval()
