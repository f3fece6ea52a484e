"""A study: a grid of models × compressions, measured on one set of items into one store, resumably."""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from labkit import extension, written
from labkit.addresses import code_hash, run_id
from labkit.compression import STUDENT_VERBS, Compression
from labkit.errors import LabkitError, unknown
from labkit.pairs import Figure, Needs, Pair
from labkit.records import DENSE
from labkit.store import Store, provenance
from labkit.subjects import (
    Job, check_distinct, check_pairs, check_vocabulary, condition, matching, pair_of, subject, vocabulary_size,
)  # fmt: skip
from labkit.texts import Text, text_corpus
from labkit.zoo import load, model_config, skeleton, tokenizer, torch_dtype, weights_id

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedModel

    from labkit.abilities import Ability

STUDIES = Path(__file__).parent / "studies"
CALIBRATION_SEQUENCES = 128
RECOVERY_SEED = 2_000_000  # far from the streams of training (the model's seed) and of calibration (1,000,000 and up)
MEASURING = ("abilities", "metrics", "evaluation", "forward")  # the modules that decide the rows of a dense model
LOADING = ("dtype", "device_map")
TABLES = {"compression": "compressions", "pair": "pairs"}  # key of a study file -> attribute
WAIT_S = 0.5  # between looks at runs that another process has taken

@dataclasses.dataclass(frozen=True)
class Study:
    """What is measured.

    Attributes
    ----------
    name, question: for the reader of the report.
    models: shipped names, with wildcards, local folders or hub ids ("owner/model@revision"); all are measured dense.
    compress: those of them that are also compressed.
    compressions: the ways it is done.
    abilities: names; none means the whole suite, or none if something is asked in text.
    prompts, benchmarks: abilities asked in words (`labkit.prompts`), tasks or presets of lm_eval (`labkit.harness`).
    items: per ability or task, ≥ 1. seed: of the items, of random masks and of the calibration rows.
    metrics: asked of every item in addition to its ability's own.
    extensions: Python files that add abilities, criteria, divergences or metrics (`labkit.extension`).
    loading: ``dtype`` and ``device_map`` of `labkit.load`.
    pairs: models that others made smaller, measured as compressions of their dense model.
    text: what models of another vocabulary than labkit's are calibrated and trained on, where they are compressed.
    needs, published: for the reader: what it takes, and what others report (`labkit.pairs`).
    """

    name: str
    question: str
    models: tuple[str, ...] = ()
    compress: tuple[str, ...] = ()
    compressions: tuple[Compression, ...] = ()
    abilities: tuple[str, ...] = ()
    items: int = 1000
    seed: int = 0
    metrics: tuple[str, ...] = ()
    extensions: tuple[str, ...] = ()
    loading: Mapping[str, str] = dataclasses.field(default_factory=dict)
    prompts: tuple[str, ...] = ()
    benchmarks: tuple[str, ...] = ()
    pairs: tuple[Pair, ...] = ()
    text: Text | None = None
    needs: Needs | None = None
    published: tuple[Figure, ...] = ()

    def __post_init__(self) -> None:
        from labkit.abilities import abilities
        from labkit.metrics import METRICS, MORE_METRICS

        extension.read(self.extensions)
        abilities(*self.abilities, *self.prompts)
        if not isinstance(self.items, int) or self.items < 1:
            raise LabkitError("a study asks at least one item per ability", self.items, "Give items = 1 or more.")
        if not (self.models or self.compress or self.pairs):
            raise LabkitError("a study names models", self.name, 'Write e.g. models = ["ladder/64x2/*"].')
        if self.compressions and not self.compress:
            remedy = 'Write e.g. compress = ["ladder/64x2/*"], or leave the compressions out.'
            raise LabkitError("a study names the models that it compresses", self.name, remedy)
        for metric in self.metrics:
            known = [*(each.__name__ for each in (*METRICS, *MORE_METRICS)), *extension.added("metric")]
            if metric not in known:
                raise unknown("metric", metric, known)
        check_pairs(self.pairs)
        for key in self.loading:
            if key not in LOADING:
                raise unknown("key of loading", key, LOADING)

    @classmethod
    def load(cls, name: str | Path) -> Study:
        """The study shipped under a name, or the one in a TOML file.

        Raises LabkitError for a name that is neither, for a file that is not TOML, and for an unknown key, ability,
        criterion or pattern.
        """
        path = Path(name) if str(name).endswith(".toml") else STUDIES / f"{name}.toml"
        if not path.is_file():
            raise unknown("study, or path of a .toml file,", str(name), studies())
        values = {"name": path.stem, **written.read(path, "a study")}
        written.check(cls, values, str(path), TABLES)
        # Before anything is looked up by name. A path is one from the folder of the study.
        values["extensions"] = [str(path.parent / each) for each in values.get("extensions", [])]
        extension.read(values["extensions"])
        tables = enumerate(values.pop("compression", []), start=1)
        values["compressions"] = [c for number, each in tables for c in _expand(each, f"{path}, compression {number}")]
        values["pairs"] = [written.build(Pair, each, str(path)) for each in values.pop("pair", [])]
        values["published"] = [written.build(Figure, each, str(path)) for each in values.get("published", [])]
        for key, kind in (("needs", Needs), ("text", Text)):
            if key in values:
                values[key] = written.build(kind, values[key], str(path))
        if "text" in values:
            values["text"] = dataclasses.replace(values["text"], file=str(path.parent / values["text"].file))
        return cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})

    def jobs(self) -> list[Job]:
        """(model, compression) of every run, all of a model's runs together; None is the dense model."""
        compressed = set(matching(self.compress)) if self.compressions else set()
        return [
            (model, compression)
            for model in matching([*self.models, *self.compress, *(m for p in self.pairs for m in (p.dense, p.small))])
            for compression in (None, *(self.compressions if model in compressed else ()))
        ]

    def runs(self, jobs: Sequence[Job] | None = None) -> dict[str, tuple[dict[str, Any], Job]]:
        """Run -> (all that decides its rows, job), in the order of the jobs, by default all of them."""
        jobs = jobs or self.jobs()
        weights = {model: weights_id(model) for model in dict.fromkeys(model for model, _ in jobs)}  # each is read once
        configs = [(self._config(*job, weights[job[0]]), job) for job in jobs]
        return {run_id(config): (config, job) for config, job in configs}

    def open(self, out: Path | str) -> tuple[Store, dict[str, tuple[dict[str, Any], Job]]]:
        """The store at ``out``, made if it is not there, and the `runs` that belong in it.

        Raises LabkitError if two of them could not be told apart, and if it holds one of them as it was measured
        otherwise, or runs of other items: side by side, both would be counted.
        """
        self.check()
        runs, store = self.runs(), Store(out, create=True)
        wanted = {subject(config): config for config, _ in runs.values()}
        for run, kept in store.provenance()[["run", "config"]].itertuples(index=False):
            kept = kept if isinstance(kept, dict) else {}  # kept without labkit.Study
            asked = wanted.get(subject(kept), kept | {key: getattr(self, key) for key in ("items", "seed") if key in kept})
            if differ := [key for key in sorted({*asked, *kept}) if asked.get(key) != kept.get(key)]:
                words = {"code": "code of labkit", "weights": "weights, config or tokenizer"}
                named = ", ".join(words.get(key, key) for key in differ)
                received = f"{out}, where {run} was measured with other {named}"
                rule = "a folder holds each run of a study once, and all runs of the same items"
                raise LabkitError(rule, received, "Give a new folder with --out.")
        said = json.dumps({"name": self.name, "question": self.question}) + "\n"
        if not (place := store.path / "study.json").exists() or place.read_bytes() != said.encode():
            store.put("study.json", said)
        return store, runs

    def run(self, out: Path | str, progress: bool = True) -> Store:
        """Measure what is not yet in the store at `out`, a folder or a URL of fsspec, and return the store.

        Processes that run the same study on the same folder share the work; the last one waits for the others' runs.
        Killed at any moment, all finished runs are kept, and running it again does the rest.
        """
        store, jobs = self.open(out)
        loaded: dict[str, PreTrainedModel] = {}  # the last model alone: runs of a model stand together
        with tqdm(total=len(jobs), desc=f"study {self.name}", unit="run", disable=not progress) as bar:
            left = dict(jobs)
            while left:
                before = len(left)
                for run, (config, job) in list(left.items()):
                    with store.claim(run) as mine:
                        if mine and not store.has(run):
                            bar.set_postfix_str(f"{job[0]} {job[1].name if job[1] else DENSE}")
                            self.measure(store, run, config, job, loaded)
                    if store.has(run):
                        del left[run]
                        bar.update()
                if len(left) == before:
                    time.sleep(WAIT_S)
        return store

    def check(self) -> None:
        """Raise LabkitError for what cannot be measured, before anything is: two runs that could not be told apart; a model
        that is not there, is no causal decoder, has another vocabulary than is asked or other sizes than a compression
        wants.
        """
        from labkit.abilities import abilities, corpus, vocabulary

        check_distinct(self.jobs(), self.pairs)
        if "dtype" in self.loading:
            torch_dtype(self.loading["dtype"])
        own = {ability.name for ability in abilities()} & {ability.name for ability in self.suite()}
        compressed = {model: compression for model, compression in self.jobs() if compression is not None}
        students = [c.name for c in self.compressions if any("student" in dict(a) for v, a in c.steps if v in STUDENT_VERBS)]
        for model in dict.fromkeys(model for model, _ in self.jobs()):
            size = vocabulary_size(model)
            received = f"{model}, which has {size}"
            if own:
                check_vocabulary(model, "Ask it in text: prompts, or benchmarks.")
            if size != vocabulary.SIZE and model in compressed and self.text is None:
                rule = f"calibration and training are in labkit's vocabulary of {vocabulary.SIZE} tokens, or on a text"
                raise LabkitError(rule, received, 'Give a text of yours: text = { file = "my.txt", length = 128 }.')
            if size != vocabulary.SIZE and model in compressed and students:
                rule = f"a student that is a rung has labkit's vocabulary of {vocabulary.SIZE} tokens"
                raise LabkitError(rule, f"{received}, and {students[0]}", "Make the student of its layers: drop_layers.")
            if self.prompts or self.benchmarks or self.text and model in compressed:
                tokenizer(model)
        if self.text and compressed:
            self._corpus(next(iter(compressed)), self.seed)
        length, sized = self.text.length if self.text else corpus().length, set()
        for config in map(model_config, compressed):
            if (key := repr(sorted(config.items(), key=str))) not in sized:  # seeds of a rung are alike
                sized.add(key)
                weightless = skeleton(config)
                for compression in self.compressions:
                    compression.check(weightless, length)

    def _corpus(self, model: str, seed: int) -> Any:
        """What a model is calibrated and trained on."""
        from labkit.abilities import corpus

        if self.text is None:
            return corpus(seed)
        return text_corpus(self.text.file, tokenizer(model), self.text.length, seed)

    def suite(self) -> tuple[Ability, ...]:
        """Labkit's abilities and added ones that are asked in tokens."""
        from labkit.abilities import abilities

        return () if (self.prompts or self.benchmarks) and not self.abilities else abilities(*self.abilities)

    def _config(self, model: str, compression: Compression | None, weights: str) -> dict[str, Any]:
        """All that decides the rows of a run; its hash is the run's address."""
        from labkit.abilities import abilities

        pair = pair_of(model, self.pairs)
        return {
            "model": model,
            "weights": weights,
            "compression": None if compression is None else {verb: dict(asked) for verb, asked in compression.steps},
            **({"pair": [pair.dense, pair.how]} if pair else {}),  # under which the rows stand
            "calibration": None if compression is None else [CALIBRATION_SEQUENCES, self.seed],
            "abilities": [repr(ability) for ability in self.suite()],
            "metrics": list(self.metrics),
            "extensions": extension.read(self.extensions),
            **self._in_text(abilities(*self.prompts), compression),
            "items": self.items,
            "seed": self.seed,
            "code": code_hash(*MEASURING, *(compression.modules if compression is not None else ())),
        }

    def _in_text(self, asked: tuple[Ability, ...], compression: Compression | None) -> dict[str, Any]:
        """What was asked in text or compressed with one, and how models were loaded; absent where nothing is said of it."""
        said = {
            "loading": dict(self.loading),
            "text": compression and self.text and [self.text.sha256, self.text.length, code_hash("texts")],
            "prompts": self.prompts and [repr(ability) for ability in asked] + [code_hash("prompts", "reader")],
            "benchmarks": self.benchmarks and [*self.benchmarks, code_hash("harness", "reader")],
        }
        return {key: value for key, value in said.items() if value}

    def _answers(self, model: PreTrainedModel, name: str) -> pd.DataFrame:
        """Rows of all that is asked of a model. Each template of a prompt is an ability of its own."""
        import pandas as pd

        from labkit.abilities import abilities
        from labkit.evaluation import evaluate

        frames = []
        if suite := self.suite():
            frames.append(evaluate(model, suite, self.items, self.seed, progress=False, metrics=self.metrics))
        if self.prompts:
            from labkit.prompts import ask

            rows = ask(model, tokenizer(name), abilities(*self.prompts), self.items, self.seed, progress=False)
            frames.append(rows.assign(ability=rows["ability"] + ", " + rows["template"]).drop(columns="template"))
        if self.benchmarks:
            from labkit.harness import benchmark

            frames.append(benchmark(model, self.benchmarks, tokenizer(name), limit=self.items, seed=self.seed))
        return pd.concat(frames, ignore_index=True)

    def measure(
        self, store: Store, run: str, config: dict[str, Any], job: Job, loaded: dict[str, PreTrainedModel]
    ) -> None:
        """Write the rows of one run. ``loaded`` keeps the last model by name, for the next run."""
        import torch

        from labkit.flops import non_embedding_params
        from labkit.lineage import lineage

        name, compression = job
        under = condition(job, self.pairs)
        begun = time.monotonic()
        if name not in loaded:
            loaded.clear()
            loaded[name] = load(name, **self.loading)
            if "device_map" not in self.loading:
                loaded[name].to("cuda" if torch.cuda.is_available() else "cpu")
        model = loaded[name]
        made: tuple = ()
        if compression is not None:
            calibration = self._corpus(name, self.seed).calibration(CALIBRATION_SEQUENCES)
            # Recovery sees rows of a stream of its own, and random masks differ between the seeds of a rung.
            rows, stream = torch.from_numpy(calibration).to(model.device), self._corpus(name, RECOVERY_SEED + under.seed)
            model = compression.apply(model, rows, stream, self.seed + under.seed, store.scratch(run))
            made = lineage(model)
        rows = self._answers(model, name).assign(
            run=run,
            model=name,
            params=non_embedding_params(model),
            **under._asdict(),
        )
        device = torch.cuda.get_device_name() if model.device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"
        wall_s = round(time.monotonic() - begun, 3)
        source = provenance(config, {name: config["weights"]}, wall_s, device)
        store.write(run, rows, {**source, "lineage": made})
        shutil.rmtree(store.scratch(run), ignore_errors=True)


def studies() -> tuple[str, ...]:
    """Names of the shipped studies."""
    return tuple(sorted(path.stem for path in STUDIES.glob("*.toml")))


def _expand(table: Mapping[str, Any], where: str) -> list[Compression]:
    """The compressions of one table; what is wrong with it is told with its place."""
    try:
        return list(Compression.expand(table))
    except LabkitError as error:
        raise LabkitError(error.rule, error.received, f"{error.remedy} Where: {where}.") from None
    except (TypeError, ValueError, AttributeError) as error:
        rule = "arguments of a compression have the types that labkit's verb of that name takes"
        raise LabkitError(rule, table, f"{error}. Where: {where}.") from None
