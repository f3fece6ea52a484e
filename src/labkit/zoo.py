"""The models labkit ships, and loading any model by name. Weights are read from safetensors alone, never unpickled."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from labkit import hub
from labkit.errors import LabkitError, unknown

if TYPE_CHECKING:
    import pandas as pd
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MANIFEST = "manifest.json"
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "vocab.txt")
"""Files of which one at least stands beside the weights of a model of words."""


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
        found = json.loads(path.read_text())
        if not isinstance(found, dict) or not {"files", "models"} <= set(found):
            raise ValueError("it names no files and models")
        return found
    except (FileNotFoundError, NotADirectoryError):
        raise LabkitError(
            f"a folder of models holds a {MANIFEST}", str(path.parent), "Train one with `labkit ladder --out DIR`."
        ) from None
    except ValueError as error:
        raise LabkitError(f"{MANIFEST} is JSON, of files and models", f"{path}: {error}", "Restore the file.") from None


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
    name: str,
    *,
    folder: Path | str | None = None,
    revision: str | None = None,
    dtype: str | torch.dtype = "auto",
    device_map: str | dict | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """A model by shipped name ("ladder/64x2/seed-0"), local folder or hub id ("owner/model", "owner/model@revision").

    Shipped names are looked up in the manifest of `folder` and their checksums verified. The model comes back in
    evaluation mode. Of a hub model ``model.config._commit_hash`` is the commit it was read from.

    Parameters
    ----------
    revision
        Branch, tag or commit of a hub model; a commit is the same for ever.
    dtype
        "auto" (as the weights were saved), "float32", "bfloat16", "float16", or a torch.dtype.
    device_map
        As in transformers: "auto" spreads a model over all GPUs and the CPU (accelerate), "cuda:0" puts it there.
    trust_remote_code
        Run code that comes with the model: leave it off unless you have read that code.

    A model that caps its attention scores (Gemma 2) is loaded with ``attn_implementation="eager"``: PyTorch's fused
    attention leaves the cap out, and the model would be another one.

    Raises LabkitError for an unknown name, a damaged file, a model that has no safetensors weights or not all of them,
    one that is no causal decoder or needs code of its own, a hub id that cannot be fetched (`labkit.hub`), and a pruned
    model whose zeros are not where they were recorded (`labkit.pruning.ledger`). Small weights that float16 makes 0 are
    taken into the ledger.
    """
    where, kind = _place(name, folder)
    if kind == "hub":
        where = hub.folder(name, revision, weights=False)
    elif revision is not None:
        raise LabkitError("a revision is one of a hub model", f"{name}, revision={revision!r}", "Leave it out.")
    config = _check_config(name, where, trust_remote_code)
    if kind == "hub":
        where = hub.folder(hub.parse(name)[0], where.name)  # of this commit, whatever branch it was named by
    options: dict = {"dtype": torch_dtype(dtype), "device_map": device_map, "trust_remote_code": trust_remote_code}
    if config.get("attn_logit_softcapping") is not None:
        options["attn_implementation"] = "eager"
    from labkit.pruning import ledger

    # float16 has no small weights: what becomes 0 there was not pruned, so the zeros are checked as they were saved.
    narrowed = ledger.FIELD in config and options["dtype"] == torch_dtype("float16")
    with _quiet() if kind == "shipped" else contextlib.nullcontext():
        if narrowed:
            ledger.check_masks(_from_pretrained(name, where, {**options, "dtype": "auto"}))
        model = _from_pretrained(name, where, options)
    if narrowed:
        ledger.record_masks(model)
    ledger.check_masks(model)
    if kind == "hub":
        model.config._commit_hash = where.name
    return model


def tokenizer(name: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer that comes with a model, by local folder or hub id.

    Raises LabkitError for a model that comes without one, as those of labkit do, and if it does not open.
    """
    from transformers import AutoTokenizer

    where, kind = _place(name, None)
    where = hub.folder(name, revision, weights=False) if kind == "hub" else where
    if not any((where / file).is_file() for file in TOKENIZERS):
        raise LabkitError(
            "text needs the tokenizer of the model",
            f"{name}, which comes without one",
            "Put its tokenizer's files beside the weights (tokenizer.save_pretrained), or ask in tokens.",
        )
    try:
        return AutoTokenizer.from_pretrained(where)
    except Exception as error:  # from ImportError to errors of the Rust library
        raise LabkitError(
            "a tokenizer opens with transformers",
            f"{name} ({type(error).__name__}: {_first_line(error)})",
            "Install what the message names, or save the tokenizer anew with tokenizer.save_pretrained.",
        ) from error


def model_config(name: str, revision: str | None = None) -> dict:
    """The config.json of a model, without its weights. Raises LabkitError as `load` does before it reads them."""
    where, kind = _place(name, None)
    return _check_config(name, hub.folder(name, revision, weights=False) if kind == "hub" else where, False)


def skeleton(config: dict) -> PreTrainedModel:
    """The model of a config.json, without weights: on the meta device."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    dtype = config.get("dtype") or config.get("torch_dtype") or "float32"
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(**config), dtype=getattr(torch, str(dtype)))


def weights_id(name: str, revision: str | None = None) -> str:
    """What a model is, for ever: the checksum of its weights, of a folder those of its config, weights and tokenizer, of a
    hub model its commit."""
    where, kind = _place(name, None)
    if kind == "shipped":
        return manifest()["files"][f"{name}/model.safetensors"]
    if kind == "hub":
        return f"commit {hub.commit(name, revision)}"
    _check_config(name, where, trusted=True)
    tokenizers = [where / file for file in TOKENIZERS if (where / file).is_file()]
    return "+".join(sha256(part) for part in (where / "config.json", *sorted(where.glob("*.safetensors")), *tokenizers))


def _place(name: str, folder: Path | str | None) -> tuple[Path, str]:
    """Where a model is, and what kind of name it has: "folder", "shipped" (checksums verified) or "hub"."""
    if Path(name).is_dir():
        return Path(name), "folder"
    root = Path(folder or artifacts())
    known = {"models": {}} if hub.is_id(name) and not (root / MANIFEST).is_file() else manifest(folder)
    if name not in known["models"]:
        if hub.is_id(name):
            return Path(), "hub"
        raise unknown("model name, local folder or hub id", name, known["models"])
    for part in ("config.json", "model.safetensors"):
        path = root / name / part
        if not path.is_file() or sha256(path) != known["files"][f"{name}/{part}"]:
            remedy = "Install labkit anew, or train it anew."
            raise LabkitError("a shipped file has the checksum of its manifest", str(path), remedy)
    return root / name, "shipped"


def _check_config(name: str, where: Path, trusted: bool) -> dict:
    """The config.json of a folder, if it is one of a causal decoder that this transformers knows.

    A class of the config that stands in the table of causal models is one; an encoder may have a table entry for its
    family (`BertLMHeadModel`), so the family alone says nothing.
    """
    from transformers import __version__
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    try:
        config = json.loads((where / "config.json").read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("it holds no settings")
    except FileNotFoundError:
        remedy = "Give the folder that save_pretrained wrote."
        raise LabkitError("the folder of a model holds a config.json", f"a folder without one: {name}", remedy) from None
    except ValueError as error:
        raise LabkitError("config.json is JSON", f"{name}: {error}", "Restore the file.") from None
    family, classes = config.get("model_type"), config.get("architectures") or []
    if family not in CONFIG_MAPPING_NAMES:
        code = config.get("auto_map", {}).get("AutoModelForCausalLM")
        if trusted and code:
            return config
        if code:
            remedy = f"Read {code.split('.')[0]}.py, and if you trust it: load({name!r}, trust_remote_code=True)."
            raise LabkitError("code that comes with a model is not run unless you say so", f"{name}, of {code}", remedy)
        rule = f"the model's architecture is one of transformers {__version__}"
        raise LabkitError(rule, f"{name} of model_type {family!r}", "Is there a newer transformers that knows it?")
    causal = {name for names in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values() for name in _names(names)}
    fitting = bool(causal.intersection(classes)) if classes else family in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    if not fitting or config.get("is_encoder_decoder"):
        remedy = "Name a model whose config.json says e.g. LlamaForCausalLM or GPT2LMHeadModel."
        raise LabkitError("a causal decoder is needed", f"{name}, {', '.join(classes) or family}", remedy)
    return config


def _names(entry: str | tuple | list) -> tuple[str, ...]:
    return (entry,) if isinstance(entry, str) else tuple(entry)


def torch_dtype(dtype: str | torch.dtype) -> str | torch.dtype:
    """The type of PyTorch that is meant by a name; "auto" stays. Raises LabkitError for another."""
    import torch

    known = {"auto": "auto", **{name: getattr(torch, name) for name in ("float32", "bfloat16", "float16", "float64")}}
    if dtype in known.values():
        return dtype
    if dtype not in known:
        raise unknown("dtype", str(dtype), known)
    return known[dtype]


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


def _from_pretrained(name: str, where: Path, options: dict) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM

    if not any(where.glob("*.safetensors")):
        found = sorted(p.name for p in where.iterdir() if p.suffix in {".bin", ".pt", ".pth", ".ckpt", ".pkl"})
        raise LabkitError(
            "weights are read from safetensors alone, for unpickling runs whatever code a file holds",
            ", ".join(found) or f"a folder without weights: {name}",
            "Convert it with save_pretrained(safe_serialization=True), on a machine where you trust the file.",
        )
    try:
        model, about = AutoModelForCausalLM.from_pretrained(
            where, use_safetensors=True, output_loading_info=True, **options
        )
    except Exception as error:  # transformers raises anything from OSError to SafetensorError here
        raise LabkitError(
            "a model is loaded from safetensors and a config.json, in a local folder or on the hub",
            f"{name} ({type(error).__name__}: {_first_line(error)})",
            "Is every file whole? Fetch or save it anew; what it needs beside transformers is in its model card.",
        ) from error
    if absent := sorted(about["missing_keys"]):
        more = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
        remedy = "Fetch or save it anew; the base of a model without its output head is not a language model."
        raise LabkitError("every weight comes from the file, none is drawn", f"{name} without {absent[0]}{more}", remedy)
    return model.eval()


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
