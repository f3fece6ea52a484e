"""Models of the Hugging Face hub: a name becomes one commit, in the local cache, or an error that says what to do."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

from labkit.errors import LabkitError

TIMEOUT_S = 5
"""For the one question asked of the hub before anything is fetched. It is not asked again: offline is said at once."""

FILES = ("*.json", "*.safetensors", "*.jinja", "*.txt", "tokenizer.model", "*.py")
NOT_FILES = ("*/*", "consolidated*")
"""What is fetched of a model, and what not: pickled weights, and further copies of the weights in other formats."""

_COMMIT = re.compile(r"[0-9a-f]{40}")


def is_id(name: str) -> bool:
    """Whether a name has the form "owner/model" or "owner/model@revision"."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", name) is not None and not name.startswith((".", "ladder/"))


def parse(name: str, revision: str | None = None) -> tuple[str, str]:
    """(id, revision) of "owner/model" or "owner/model@revision"; the revision is "main" where none is given.

    Raises LabkitError if two different ones are given.
    """
    repo, _, written = name.partition("@")
    if written and revision and written != revision:
        raise LabkitError("a model has one revision", f"{name} and revision={revision!r}", "Leave one of them out.")
    return repo, written or revision or "main"


def commit(name: str, revision: str | None = None) -> str:
    """The commit, 40 hexadecimal digits, that a name stands for: by the hub, or offline by the cache.

    Raises LabkitError for a gated model, one that is not there or has no such revision, and for one that is not in the
    cache while the hub cannot be reached. It takes `TIMEOUT_S` at most.
    """
    return _resolve(*parse(name, revision))[0]


def folder(name: str, revision: str | None = None, weights: bool = True) -> Path:
    """Folder of one commit of a model in the local cache, named by the commit; what is missing is fetched.

    Without ``weights`` everything else is. Raises LabkitError as `commit` does, and if the transfer fails.
    """
    import httpx
    from huggingface_hub import errors, snapshot_download

    repo, wanted = parse(name, revision)
    at, offline = _resolve(repo, wanted)
    files = [pattern for pattern in FILES if weights or "safetensors" not in pattern]
    how = {"revision": at, "allow_patterns": files, "ignore_patterns": list(NOT_FILES)}
    try:
        found = Path(snapshot_download(repo, **how, local_files_only=offline is not None))
    except Exception as error:  # httpx, huggingface_hub and the disk: they share no base
        if offline:
            raise _absent(repo, wanted, offline) from None
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):  # what is in the cache needs no hub
            with contextlib.suppress(errors.LocalEntryNotFoundError):
                found = Path(snapshot_download(repo, **how, local_files_only=True))
                if not weights or any(found.glob("*.safetensors")):
                    return found
        remedy = "Run it again: files that are whole stay. Is the disk full, or your quota?"
        raise LabkitError("a model is fetched whole", f"{repo}@{at} ({type(error).__name__}: {error})", remedy) from error
    if weights and offline and not any(found.glob("*.safetensors")):
        raise _absent(repo, wanted, offline)
    return found


def _resolve(repo: str, wanted: str) -> tuple[str, str | None]:
    """The commit, and why the hub was not to be reached, if so."""
    import httpx
    from huggingface_hub import errors, get_hf_file_metadata, hf_hub_url, is_offline_mode, try_to_load_from_cache

    path = try_to_load_from_cache(repo, "config.json", revision=wanted)
    cached = Path(path).parent.name if isinstance(path, str) else None
    page = f"https://huggingface.co/{repo}"
    try:
        if is_offline_mode():
            raise OSError("HF_HUB_OFFLINE is set")
        if cached and _COMMIT.fullmatch(wanted):  # what a commit holds never changes
            return wanted, None
        found = get_hf_file_metadata(hf_hub_url(repo, "config.json", revision=wanted), timeout=TIMEOUT_S).commit_hash
        if not found:
            raise OSError("what answers is not the hub: look at HF_ENDPOINT")
        return found, None
    except errors.GatedRepoError:
        remedy = f"Accept its terms on {page} and run `hf auth login`; what is in the cache opens with HF_HUB_OFFLINE=1."
        raise LabkitError("a gated model is opened to who has accepted its terms", repo, remedy) from None
    except errors.RevisionNotFoundError:
        remedy = f"Take one from {page}/commits/main, or leave the revision out."
        raise LabkitError("a revision is a branch, tag or commit that the model has", f"{repo}@{wanted}", remedy) from None
    except errors.EntryNotFoundError:
        remedy = "Name a model that opens with transformers."
        raise LabkitError("a model has a config.json", f"{repo}@{wanted}, which has none", remedy) from None
    except errors.RepositoryNotFoundError:
        remedy = f"Look it up on {page}; for a private one run `hf auth login`; a folder is given by its path."
        raise LabkitError("a model of that name is on the hub, and open to you", repo, remedy) from None
    except (httpx.HTTPError, OSError) as error:
        if cached is None:
            raise _absent(repo, wanted, str(error)) from None
        return cached, str(error)


def _absent(repo: str, revision: str, why: str) -> LabkitError:
    from huggingface_hub.constants import HF_HUB_CACHE

    place = Path(HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}"
    at = "" if revision == "main" else f" --revision {revision}"
    return LabkitError(
        "a model is a local folder, in the local cache, or fetched from the hub",
        f"{repo}, which is neither of the first two; {why}",
        f"Where there is a network, run `hf download {repo}{at}`, and copy the folder {place.name} of its cache to {place}; "
        "or give the path of the folder that it names, or of any other with the model.",
    )
