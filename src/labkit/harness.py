"""Benchmarks that others made, run by `lm_eval`, as item-level rows of our own form."""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from labkit.errors import LabkitError, unknown, warn
from labkit.evaluation import COLUMNS
from labkit.reader import Reader
from labkit.records import CHOICE_ACCURACY, EXACT_MATCH, NLL_NATS

PRESETS = {
    "reasoning": ("gsm8k", "arc_challenge", "bbh_fewshot", "commonsense_qa", "piqa"),
    "knowledge": ("mmlu", "triviaqa", "nq_open", "sciq"),
    "in-context": ("fda", "swde", "squad_completion", "babi"),  # the answer stands in the text that is read
    "language": ("lambada_openai", "blimp", "hellaswag", "winogrande"),
}
"""Names of lm_eval's tasks and groups, by what they ask for."""

INSTALL = "pip install 'labkit[benchmarks]'"
TIMEOUT_S = 5  # for the one question whether the hub can be reached
_NAMED = rb"^(?:task|group|tag)\s*:\s*[\"']?(?:%s)[\"']?\s*(?:#.*)?$"
_LISTED = rb"^\s*-\s*[\"']?(?:%s)[\"']?\s*(?:#.*)?$"


def benchmark(
    model: PreTrainedModel,
    tasks: str | Sequence[str],
    tokenizer: PreTrainedTokenizerBase | None = None,
    limit: int | None = None,
    shots: int | None = None,
    seed: int = 0,
    chat: bool = False,
    folder: Path | str | None = None,
    batch_size: int = 8,
) -> pd.DataFrame:
    """Run tasks of `lm_eval` on a model, and keep what it logs of every item.

    Log-likelihoods are those of `labkit.reader.Reader.score`, which `lm_eval`'s own scoring agrees with within 1e-4 in
    float32 and takes longer for; prompts, examples, filters and metrics are `lm_eval`'s.

    Parameters
    ----------
    tasks
        A name of `PRESETS`, or names of tasks, groups and tags of lm_eval, or of YAML files in ``folder``.
    limit
        At most so many items of each task: for a trial; scores on the first items are not those of the benchmark.
    shots
        Examples before each item; by default what each task says.
    seed
        Of the draw of examples. Global generators are left as they were.
    chat
        Apply the tokenizer's chat template, examples as earlier turns.
    batch_size
        Of what is generated.

    Returns
    -------
    One row per (task, metric, item), see `rows`.

    Raises
    ------
    LabkitError
        lm_eval is not installed; an unknown preset or task; data that is neither here nor to be fetched; a tokenizer
        without an end of text; a continuation longer than the model; and see `labkit.reader.Reader.of`.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise LabkitError("benchmarks are run by lm_eval", "a Python without it", f"Install it: {INSTALL}.")
    names = _names(tasks)
    reader = Reader.of(model, tokenizer)
    if reader.tokenizer.eos_token_id is None:
        received = f"a {type(reader.tokenizer).__name__} without"
        raise LabkitError("lm_eval needs a token that ends a text", received, "Set the tokenizer's eos_token.")
    if chat:
        reader.converse(["?"])
    elif reader.tokenizer.chat_template:
        warn("The tokenizer has a chat template, which is not used: chat=True would.")
    was_training, state = model.training, random.getstate()  # what lm_eval imports seeds the latter
    try:
        manager = _manager(names, folder)
        from lm_eval import simple_evaluate

        with _no_waiting(), _data(names):
            done = simple_evaluate(
                model=_scored_by(reader, batch_size), tasks=names, task_manager=manager, limit=limit, num_fewshot=shots,
                apply_chat_template=chat, fewshot_as_multiturn=chat, log_samples=True, bootstrap_iters=0,
                random_seed=None, numpy_random_seed=None, torch_random_seed=None, fewshot_random_seed=seed,
            )  # fmt: skip
    finally:
        model.train(was_training)
        random.setstate(state)
    return rows(done)


def rows(results: Mapping[str, Any]) -> pd.DataFrame:
    """What `lm_eval.simple_evaluate` logs, as rows: ability (the task), metric, item, value, chance.

    Item is lm_eval's ``doc_id``. Metrics keep their names, except where ours say the same: of multiple choice ``acc``
    is ``choice_accuracy``, and ``nll_nats`` is added, −ln of the right choice's share in the probability of all; of a
    single continuation ``acc`` is ``exact_match`` (greedy generation would give it) and ``perplexity`` is ``nll_nats``;
    of running text ``word_perplexity`` is ``nll_nats`` per word. Where a task filters answers in several ways, metrics
    after all but the first carry the filter's name: "exact_match, flexible-extract". What is no number is left out.

    Chance is 1 / choices, ln(choices) in nats, and 0 of what is generated; NaN where there is no guesser.
    """
    found = []
    for task, samples in results["samples"].items():
        kind = results["configs"][task]["output_type"]
        first = samples[0]["filter"] if samples else None
        for sample in samples:
            suffix = "" if sample["filter"] == first else f", {sample['filter']}"
            for metric, value, chance in _scores(kind, sample):
                found.append((task, metric + suffix, sample["doc_id"], value, chance))
    return pd.DataFrame(found, columns=list(COLUMNS)).astype({"value": float, "chance": float})


def _scores(kind: str, sample: Mapping[str, Any]) -> Iterator[tuple[str, float, float]]:
    """(metric, value, chance) of one item."""
    if kind == "multiple_choice":
        choices = len(sample["arguments"]) // (2 if "acc_mutual_info" in sample["metrics"] else 1)
        gold = _gold(sample, choices)
        if gold is not None:
            values = np.array([float(response[0]) for response in sample["filtered_resps"][:choices]])
            yield NLL_NATS, float(np.logaddexp.reduce(values) - values[gold]), float(np.log(choices))
    for metric in sample["metrics"]:
        value = sample[metric]
        if kind == "loglikelihood_rolling":
            if metric == "word_perplexity":
                yield NLL_NATS, -value[0] / value[1], np.nan
        elif not isinstance(value, int | float | np.number):
            continue
        elif kind == "multiple_choice":
            guessed = 1 / choices if metric.startswith("acc") else np.nan
            yield CHOICE_ACCURACY if metric == "acc" else metric, value, guessed
        elif kind == "loglikelihood" and metric == "perplexity":
            yield NLL_NATS, -value, np.nan
        else:
            yield EXACT_MATCH if kind == "loglikelihood" and metric == "acc" else metric, value, 0.0


def _gold(sample: Mapping[str, Any], choices: int) -> int | None:
    """Number of the right choice; None where there are several, or the choices stand in the contexts."""
    target = sample["target"]
    if isinstance(target, int | np.integer) and not isinstance(target, bool):
        return int(target) if 0 <= target < choices else None
    written = [arguments[1].strip() for arguments in sample["arguments"][:choices]]
    named = [number for number, text in enumerate(written) if text == str(target).strip()]
    return named[0] if len(named) == 1 else None


def _names(tasks: str | Sequence[str]) -> list[str]:
    asked = [tasks] if isinstance(tasks, str) else list(tasks)
    names = [name for one in asked for name in PRESETS.get(one, (one,))]
    if not names:
        raise LabkitError("a benchmark has at least one task", asked, f"Name a preset: {', '.join(PRESETS)}.")
    return list(dict.fromkeys(names))


def _manager(names: Sequence[str], folder: Path | str | None) -> Any:
    """lm_eval's index of the tasks named. Parsing all of its 14,000 files takes half a minute: only some are."""
    from lm_eval import tasks as lm_eval_tasks

    own = Path(folder) if folder is not None else None
    if own is not None and not own.is_dir():
        raise LabkitError("tasks of your own stand in a folder of YAML files", str(folder), "Give its path.")
    root = Path(lm_eval_tasks.__file__).parent
    places, listed, stems, missing = set(), False, set(), set(names)
    for path in [*root.rglob("*.yaml"), *(own.rglob("*.yaml") if own else ())]:
        stems.add(path.stem)
        text = path.read_bytes()
        for name in names:
            if name.encode() not in text:
                continue
            word = re.escape(name.encode())
            named = re.search(_NAMED % word, text, re.MULTILINE)
            if named and path.is_relative_to(root):
                places.add(root / path.relative_to(root).parts[0])
            if named or re.search(_LISTED % word, text, re.MULTILINE):
                missing.discard(name)
                listed |= not named
    if missing:
        raise unknown("preset or task", min(missing), [*PRESETS, *_nearest(min(missing), stems)])
    chosen = [*sorted(places), *([own] if own else [])]
    manager = lm_eval_tasks.TaskManager(include_path=chosen, include_defaults=False)
    if listed and not set(names) <= set(manager.all_tasks):  # a tag that tasks carry in a list
        manager = lm_eval_tasks.TaskManager(include_path=own)
    return manager


def _nearest(name: str, stems: set[str]) -> list[str]:
    import difflib

    return difflib.get_close_matches(name, sorted(stem for stem in stems if not stem.startswith("_")), n=8, cutoff=0.5)


def _scored_by(reader: Reader, batch_size: int) -> Any:
    """lm_eval's model of transformers, with our scoring of log-likelihoods."""
    from lm_eval.models.huggingface import HFLM

    class Scored(HFLM):
        def _loglikelihood_tokens(self, requests: list, **_: object) -> list:
            pairs = []
            for _, context, continuation in requests:  # what is too long loses its beginning, as in HFLM
                if len(continuation) > self.max_length:
                    received = f"one of {len(continuation)} tokens, {self.max_length} places"
                    raise LabkitError("a continuation fits into the model", received, "Leave the task out.")
                whole = (context + continuation)[-(self.max_length + 1) :]
                pairs.append((whole[: -len(continuation)], continuation))
            values, greedy = reader.score(pairs)
            return list(zip(values.tolist(), greedy.tolist(), strict=True))

    own = copy.deepcopy(reader.tokenizer)  # which it changes
    return Scored(pretrained=reader.model, tokenizer=own, batch_size=batch_size)


@contextlib.contextmanager
def _no_waiting() -> Iterator[None]:
    """Where the hub cannot be reached, be offline at once: `datasets` would ask again for half a minute a task."""
    import datasets
    import httpx
    import huggingface_hub

    with contextlib.ExitStack() as stack:
        try:
            if not huggingface_hub.is_offline_mode():
                httpx.head(huggingface_hub.constants.ENDPOINT, timeout=TIMEOUT_S)
        except (httpx.HTTPError, OSError):
            for module in (huggingface_hub.constants, datasets.config):
                stack.enter_context(mock.patch.object(module, "HF_HUB_OFFLINE", True))
        yield


@contextlib.contextmanager
def _data(names: Sequence[str]) -> Iterator[None]:
    """Say what is missing where a task's data, or a package that it needs, is."""
    rule, tasks = "the data of a task is in the local cache, or fetched", ", ".join(names)
    try:
        yield
    except ImportError as error:
        remedy = f"Install what it names: pip install {error.name or 'it'}."
        raise LabkitError("a task finds the packages it needs", f"{tasks}: {error}", remedy) from error
    except OSError as error:
        remedy = (
            "Where there is a network, run it once (limit=1 will do) and copy the folder of HF_HOME here; "
            "or give folder=, with a YAML file whose dataset_path is json and data_files are on this disk."
        )
        raise LabkitError(rule, f"{tasks}: {str(error).splitlines()[0]}", remedy) from error
    except RuntimeError as error:
        if "Dataset scripts are no longer supported" not in str(error):
            raise
        remedy = "Leave that task out: `datasets` runs no code of data sets."
        raise LabkitError(rule, f"{tasks}: {error}", remedy) from error
