"""What lm_eval says of the same texts under the same model, stored, so that a change of either side is seen.

.venv/bin/python tests/oracles/harness.py

Log-likelihoods by `HFLM.loglikelihood`, and the output of `simple_evaluate` on tasks with data in a local file. Model
and tokenizer are made here from nothing, and the tests make them again.
"""

from __future__ import annotations

import importlib.metadata
import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from labkit.ladder import Rung

PATH = Path(__file__).parents[1] / "data" / "lm-eval.json"
TEXT = (
    "the cat sat on the mat and the dog sat on the log. what is a cat? a cat is an animal. what is a log? a log is "
    "wood. one and two are three, two and two are four. the sun is hot, the ice is cold, the sky is blue."
)
REQUESTS = [
    ("the cat sat on the", " mat"),
    ("the cat sat on the", " log"),
    ("the cat sat on the ", "mat"),  # the blank goes to the continuation
    ("the cat sat on the", " mat and the dog sat"),
    ("the cat sat on the", " sun is hot"),
    ("what is a dog? a", " dog is an animal"),
    ("what is a dog? a", " dog is wood"),
    ("what is a dog? a d", "og is wood"),  # the boundary stands inside a word
    ("", "the sky is blue"),
    ("ice", " is"),
]
TASKS = {
    "local_choice": """
task: local_choice
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: gold
metric_list: [{metric: acc}, {metric: acc_norm}]
""",
    "local_words": """
task: local_words
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{choices[gold]}}"
generation_kwargs: {until: ["."], max_gen_toks: 4, do_sample: false}
metric_list: [{metric: exact_match}]
filter_list:
  - {name: strict, filter: [{function: take_first}]}
  - {name: first-word, filter: [{function: regex, regex_pattern: "(\\\\w+)"}, {function: take_first}]}
""",
    "local_last": """
task: local_last
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: loglikelihood
doc_to_text: "{{question}}"
doc_to_target: " {{choices[gold]}}"
metric_list: [{metric: perplexity}, {metric: acc}]
""",
    "local_text": """
task: local_text
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{question}}"
metric_list: [{metric: word_perplexity}, {metric: byte_perplexity}]
""",
}
DOCUMENTS = [
    {"question": "what is a cat? a cat is", "choices": ["an animal", "wood", "hot"], "gold": 0},
    {"question": "what is a log? a log is", "choices": ["an animal", "wood", "hot"], "gold": 1},
    {"question": "the sun is", "choices": ["blue", "hot"], "gold": 1},
    {"question": "two and two are", "choices": ["one", "two", "three", "four"], "gold": 3},
]


def tokenizer() -> PreTrainedTokenizerFast:
    """Subwords of `TEXT`, a blank with the word after it, fewer than labkit's vocabulary has."""
    subwords = Tokenizer(models.BPE(unk_token="<unk>"))
    subwords.pre_tokenizer, subwords.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=120, special_tokens=["<unk>", "<s>"], show_progress=False)
    subwords.train_from_iterator([TEXT], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=subwords, unk_token="<unk>", bos_token="<s>", eos_token="<s>")


def model() -> LlamaForCausalLM:
    """A rung with weights far from those of a uniform guess, the same under every version of torch."""
    made, numbers = Rung(32, 2).build(), np.random.default_rng(0)
    for parameter in made.parameters():
        parameter.data = torch.from_numpy(numbers.random(parameter.shape) - 0.5).float()
    return made.eval()


def write_tasks(folder: Path) -> None:
    """The tasks and their data, each in a file."""
    data = folder / "documents.jsonl"
    data.write_text("".join(json.dumps(document) + "\n" for document in DOCUMENTS))
    for name, text in TASKS.items():
        (folder / f"{name}.yaml").write_text(text.replace("DATA", str(data)))


def main() -> None:
    from lm_eval import simple_evaluate
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    own = tokenizer()
    lm = HFLM(pretrained=model(), tokenizer=own, batch_size=4)
    instances = [Instance("loglikelihood", {}, request, 0) for request in REQUESTS]
    scores = lm.loglikelihood(instances, disable_tqdm=True)
    with tempfile.TemporaryDirectory() as folder:
        write_tasks(Path(folder))
        manager = TaskManager(include_path=folder, include_defaults=False)
        done = simple_evaluate(model=lm, tasks=list(TASKS), task_manager=manager, bootstrap_iters=0, log_samples=True)
    means = {
        task: {key: value for key, value in found.items() if "," in key and "stderr" not in key}
        for task, found in done["results"].items()
    }
    written = {
        "source": f"lm_eval {importlib.metadata.version('lm_eval')}, HFLM.loglikelihood and simple_evaluate",
        "tokenizer": json.loads(own.backend_tokenizer.to_str()),
        "requests": [[*request, value, greedy] for request, (value, greedy) in zip(REQUESTS, scores, strict=True)],
        "results": {
            "configs": {task: {"output_type": done["configs"][task]["output_type"]} for task in TASKS},
            "samples": done["samples"],
        },
        "means": means,
    }
    PATH.write_text(json.dumps(written, indent=1, ensure_ascii=False, default=str) + "\n")


if __name__ == "__main__":
    main()
