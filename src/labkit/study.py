"""A study: a grid of models × compressions, measured on one set of items into one store, resumably."""

from __future__ import annotations

import ast
import dataclasses
import fnmatch
import functools
import hashlib
import json
import os
import re
import shutil
import time
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from labkit import extension
from labkit.compression import Compression
from labkit.errors import LabkitError, unknown
from labkit.records import DENSE
from labkit.store import Store, provenance, run_id
from labkit.zoo import load, manifest, sha256

if TYPE_CHECKING:
    from transformers import PreTrainedModel

STUDIES = Path(__file__).parent / "studies"
CALIBRATION_SEQUENCES = 128
RECOVERY_SEED = 2_000_000  # far from the streams of training (the model's seed) and of calibration (1,000,000 and up)
MEASURING = ("abilities", "metrics", "evaluation")  # the modules that decide the rows of a dense model
WAIT_S = 0.5  # between looks at runs that another process has taken


@dataclasses.dataclass(frozen=True)
class Study:
    """What is measured.

    Attributes
    ----------
    name, question: for the reader of the report.
    models: shipped names, with wildcards, or local folders; all are measured dense.
    compress: those of them that are also compressed.
    compressions: the ways it is done.
    abilities: names; none means the whole suite.
    items: per ability, ≥ 1. seed: of the items, of random masks and of the calibration rows.
    metrics: asked of every item in addition to its ability's own.
    extensions: Python files that add abilities, criteria, divergences or metrics (`labkit.extension`).
    """

    name: str
    question: str
    models: tuple[str, ...]
    compress: tuple[str, ...] = ()
    compressions: tuple[Compression, ...] = ()
    abilities: tuple[str, ...] = ()
    items: int = 1000
    seed: int = 0
    metrics: tuple[str, ...] = ()
    extensions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        from labkit.abilities import abilities

        extension.read(self.extensions)
        abilities(*self.abilities)
        if not isinstance(self.items, int) or self.items < 1:
            raise LabkitError("a study asks at least one item per ability", self.items, "Give items = 1 or more.")

    @classmethod
    def load(cls, name: str | Path) -> Study:
        """The study shipped under a name, or the one in a TOML file.

        Raises LabkitError for a name that is neither, for a file that is not TOML, and for an unknown key, ability,
        criterion or pattern.
        """
        path = Path(name) if str(name).endswith(".toml") else STUDIES / f"{name}.toml"
        if not path.is_file():
            raise unknown("study, or path of a .toml file,", str(name), studies())
        try:
            written = tomllib.loads(path.read_text())
        except ValueError as error:
            raise LabkitError("a study is a TOML file", f"{path}: {error}", "Mend it at the place named.") from None
        # Before anything is looked up by name. A path is one from the folder of the study.
        written["extensions"] = [str(path.parent / each) for each in written.get("extensions", [])]
        extension.read(written["extensions"])
        compressions = tuple(one for each in written.pop("compression", []) for one in Compression.expand(each))
        lists = {key: tuple(value) if isinstance(value, list) else value for key, value in written.items()}
        return _build(cls, {"name": path.stem, **lists, "compressions": compressions})

    def jobs(self) -> list[tuple[str, Compression | None]]:
        """(model, compression) of every run, all of a model's runs together; None is the dense model."""
        compressed = set(_matching(self.compress)) if self.compressions else set()
        return [
            (model, compression)
            for model in _matching([*self.models, *self.compress])
            for compression in (None, *(self.compressions if model in compressed else ()))
        ]

    def run(self, out: Path | str, progress: bool = True) -> Store:
        """Measure what is not yet in the store at `out`, and return the store.

        Processes that run the same study on the same folder share the work; the last one waits for the others' runs.
        Killed at any moment, all finished runs are kept, and running it again does the rest.
        """
        jobs = {run_id(config): (config, job) for job in self.jobs() for config in [self._config(*job)]}
        store = Store(out, create=True)
        about = store.path / "study.json"
        if not about.exists():
            partial = about.with_name(f".study-{os.getpid()}")  # a report may be read at any moment: whole or not there
            partial.write_text(json.dumps({"name": self.name, "question": self.question}) + "\n")
            partial.replace(about)
        loaded: dict[str, PreTrainedModel] = {}  # the last model alone: runs of a model stand together
        with tqdm(total=len(jobs), desc=f"study {self.name}", unit="run", disable=not progress) as bar:
            left = dict(jobs)
            while left:
                before = len(left)
                for run, (config, job) in list(left.items()):
                    with store.claim(run) as mine:
                        if mine and not store.has(run):
                            bar.set_postfix_str(f"{job[0]} {job[1].name if job[1] else DENSE}")
                            self._measure(store, run, config, job, loaded)
                    if store.has(run):
                        del left[run]
                        bar.update()
                if len(left) == before:
                    time.sleep(WAIT_S)
        return store

    def _config(self, model: str, compression: Compression | None) -> dict[str, Any]:
        """All that decides the rows of a run; its hash is the run's address."""
        from labkit.abilities import abilities

        return {
            "model": model,
            "weights": _weights(model),
            "compression": None if compression is None else {verb: dict(asked) for verb, asked in compression.steps},
            "calibration": None if compression is None else [CALIBRATION_SEQUENCES, self.seed],
            "abilities": [repr(ability) for ability in abilities(*self.abilities)],
            "metrics": list(self.metrics),
            "extensions": extension.read(self.extensions),
            "items": self.items,
            "seed": self.seed,
            "code": code_hash(*MEASURING, *(compression.modules if compression is not None else ())),
        }

    def _measure(
        self, store: Store, run: str, config: dict[str, Any], job: tuple, loaded: dict[str, PreTrainedModel]
    ) -> None:
        import torch

        from labkit.abilities import abilities, corpus
        from labkit.evaluation import evaluate
        from labkit.flops import non_embedding_params
        from labkit.lineage import lineage

        name, compression = job
        rung, seed = _origin(name)
        begun = time.monotonic()
        if name not in loaded:
            loaded.clear()
            loaded[name] = load(name).to("cuda" if torch.cuda.is_available() else "cpu")
        model = loaded[name]
        made: tuple = ()
        if compression is not None:
            calibration = torch.from_numpy(corpus(self.seed).calibration(CALIBRATION_SEQUENCES)).to(model.device)
            # Recovery sees rows of a stream of its own, and random masks differ between the seeds of a rung.
            partial = store.path / "training" / run
            model = compression.apply(model, calibration, corpus(RECOVERY_SEED + seed), self.seed + seed, partial)
            made = lineage(model)
        suite = abilities(*self.abilities)
        rows = evaluate(model, suite, self.items, self.seed, progress=False, metrics=self.metrics)
        rows = rows.assign(
            run=run,
            model=name,
            rung=rung,
            params=non_embedding_params(model),
            seed=seed,
            compression=DENSE if compression is None else compression.name,
            sparsity=0.0 if compression is None else compression.nominal_sparsity,
        )
        device = torch.cuda.get_device_name() if model.device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"
        wall_s = round(time.monotonic() - begun, 3)
        source = provenance(config, {f"{name}/model.safetensors": config["weights"]}, wall_s, device)
        store.write(run, rows, {**source, "lineage": made})
        shutil.rmtree(store.path / "training" / run, ignore_errors=True)


def studies() -> tuple[str, ...]:
    """Names of the shipped studies."""
    return tuple(sorted(path.stem for path in STUDIES.glob("*.toml")))


@functools.cache
def code_hash(*names: str) -> str:
    """Hash of what modules of labkit do: their syntax trees, without docstrings; comments and layout do not count.

    It stands in every run's address, so that rows of an ability, metric or criterion since corrected are not taken for
    rows of the present one.
    """
    root, digest = Path(__file__).parent, hashlib.sha256()
    for name in names:
        paths = sorted((root / name).glob("*.py")) if (root / name).is_dir() else [root / f"{name}.py"]
        for path in paths:
            tree = ast.parse(path.read_text(encoding="utf-8"))
            for node in ast.walk(tree):
                if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
                    node.body = node.body[1:] or [ast.Pass()]
            digest.update(f"{path.name}:{ast.dump(tree)}\n".encode())
    return digest.hexdigest()[:16]


def _build(kind: type, values: dict[str, Any]) -> Any:
    """A dataclass from what a file says; refuses a key that is not one of its fields, and misses none that is needed."""
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for key in values:
        if key not in fields:
            raise unknown(f"key of a {kind.__name__.lower()}", key, fields)
    needed = [name for name, field in fields.items() if field.default is dataclasses.MISSING and name not in values]
    if needed:
        raise LabkitError(f"a {kind.__name__.lower()} names {', '.join(needed)}", sorted(values), "Add what is missing.")
    return kind(**values)


def _matching(patterns: list[str] | tuple[str, ...]) -> list[str]:
    """Names of shipped models that fit a pattern, and local folders, each once, in the order of the patterns."""
    records = manifest()["models"]
    known = sorted(records, key=lambda name: (records[name]["params"], name))
    found: dict[str, None] = {}
    for pattern in patterns:
        fitting = [pattern] if Path(pattern).is_dir() else fnmatch.filter(known, pattern)
        if not fitting:
            raise unknown("model name, pattern or local folder", pattern, known)
        found.update(dict.fromkeys(fitting))
    return list(found)


def _weights(name: str) -> str:
    """Checksum of a model's weights; of all parts together where there are several."""
    if Path(name).is_dir():
        return "+".join(sha256(part) for part in sorted(Path(name).glob("*.safetensors")))
    return manifest()["files"][f"{name}/model.safetensors"]


def _origin(name: str) -> tuple[str, int]:
    """(rung, seed) of a model by where it stands: …/<rung>/seed-<n>, or any other folder as its own rung with seed 0."""
    match = re.search(r"([^/]+)/seed-(\d+)/?$", name)
    return (match[1], int(match[2])) if match else (Path(name).name, 0)
