"""How fast items are scored: `labkit.evaluate`, and our scoring of texts beside lm_eval's.

OMP_NUM_THREADS=2 python benchmarks/evaluation.py

`labkit.evaluate` stands beside a bound: what the machine would score if it did nothing but the model's matrix products,
at the rate that as many threads reach, each on its own batch, on the widest product of the rung. Texts are choices of
our abilities in words, scored by `labkit.reader` and by `HFLM.loglikelihood` with the same model and tokenizer.
"""

from __future__ import annotations

import importlib.util
import logging
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from labkit.abilities import abilities
from labkit.evaluation import evaluate
from labkit.flops import forward_flops_per_token
from labkit.ladder import Rung
from labkit.prompts import TEMPLATES, Question, askable, prompt
from labkit.reader import Reader
from labkit.records import IGNORE

ITEMS = 512  # per ability
BATCH_SIZES = (1, 16)  # lm_eval's own choice, and more
GOAL_ITEMS, GOAL_RATIO = 2_000, 3


def product_rate(rung: Rung, seconds: float = 1.0) -> float:
    """FLOP/s of 2,048 tokens through a projection of the feed-forward layer, all threads together, each its own."""
    threads = torch.get_num_threads()

    def work(_: int) -> float:
        x, w = torch.randn(2048, rung.width), torch.randn(rung.ffn, rung.width)
        begun, done = time.perf_counter(), 0
        while time.perf_counter() < begun + seconds:
            torch.nn.functional.linear(x, w)
            done += 1
        return 2 * x.numel() * rung.ffn * done / (time.perf_counter() - begun)

    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        rate = sum(pool.map(work, range(threads)))
    torch.set_num_threads(threads)
    return rate


def rungs() -> None:
    """Items per second of `labkit.evaluate` on three shapes of about one million parameters."""
    suite, device = abilities(), "cuda" if torch.cuda.is_available() else "cpu"
    print(f"labkit.evaluate, {device}, {torch.get_num_threads()} threads; goal on two cores: {GOAL_ITEMS:,} items/s")
    for rung in (Rung(208, 2), Rung(160, 3), Rung(128, 5)):
        model = rung.build().to(device)
        evaluate(model, suite, n=32, progress=False)  # warm-up
        start = time.perf_counter()
        rows = evaluate(model, suite, n=ITEMS, progress=False)
        seconds = time.perf_counter() - start
        items = len(rows[["ability", "item"]].drop_duplicates())
        print(f"{rung.name:6} {rung.params:9,} parameters  {items / seconds:6,.0f} items/s", end="")
        if device == "cpu":
            lengths = np.concatenate([ability.sample(ITEMS, 0).lengths for ability in suite])
            flops = np.mean([forward_flops_per_token(model, int(length)) * int(length) for length in lengths])
            rate = product_rate(rung)
            print(f"; products at {rate / 1e9:.0f} GFLOP/s bound it to {rate / flops:,.0f} items/s", end="")
        print()


def texts(items: int) -> tuple[list[tuple[str, str]], PreTrainedTokenizerFast]:
    """(context, continuation) of all choices of the worded abilities with three examples, and subwords made of them."""
    asked = []
    for ability in (ability for ability in abilities() if askable(ability)):
        *drawn, extra = [
            Question(ability, tuple(row[:at].tolist()), tuple(labels[labels != IGNORE].tolist()))
            for sample in [ability.sample(items + 3, seed=0)]
            for row, labels in zip(sample.tokens, sample.labels, strict=True)
            for at in [int((labels != IGNORE).argmax()) + 1]
        ]
        shown = [*drawn[-2:], extra]
        for question in drawn[:-2]:
            parts = prompt(TEMPLATES[0], question, shown)
            context = "".join(f"{q} {a}\n\n" for q, a in zip(parts[:-1:2], parts[1::2], strict=True)) + parts[-1]
            asked += [(context, f" {question.say(answer, own=False)}") for answer in question.candidates]
    subwords = Tokenizer(models.BPE())
    subwords.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=2_000, special_tokens=["<s>"], show_progress=False)
    subwords.train_from_iterator([context + continuation for context, continuation in asked], trainer)
    return asked, PreTrainedTokenizerFast(tokenizer_object=subwords, bos_token="<s>", eos_token="<s>")


def against_lm_eval(name: str, model: PreTrainedModel, items: int) -> None:
    """Texts per second of our scoring and of lm_eval's, tokens being made in both, and how far they are apart."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    asked, tokenizer = texts(items)
    model = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    reader = Reader.of(model, tokenizer)
    reader.score(reader.encode(asked[:8]))  # warm-up
    start = time.perf_counter()
    ours, greedy = reader.score(reader.encode(asked))
    rate = len(asked) / (time.perf_counter() - start)
    print(f"{name}: {len(asked)} texts, {np.mean([len(a) + len(b) for a, b in reader.encode(asked)]):.0f} tokens each")
    print(f"  labkit                 {rate:8.1f} texts/s")
    for batch_size in BATCH_SIZES:
        lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
        requests = [Instance("loglikelihood", {}, text, 0) for text in asked]
        lm.loglikelihood(requests[:8], disable_tqdm=True)
        start = time.perf_counter()
        theirs = lm.loglikelihood(requests, disable_tqdm=True)
        peer = len(asked) / (time.perf_counter() - start)
        apart = np.abs(ours - [value for value, _ in theirs]).max()
        agree = np.mean(greedy == [same for _, same in theirs])
        print(f"  lm_eval, batches of {batch_size:2} {peer:8.1f} texts/s: ours / lm_eval {rate / peer:.1f} × "
              f"(goal {GOAL_RATIO} ×), at most {apart:.1e} apart (goal 1e-4), greedy alike {agree:.1%}")  # fmt: skip


def main() -> None:
    rungs()
    if importlib.util.find_spec("lm_eval") is None:
        print("lm_eval is not installed here: no comparison. It is in the extra `test`.")
        return
    logging.disable(logging.WARNING)
    small = GPT2Config(vocab_size=2_000, n_positions=1024, n_embd=128, n_layer=5, n_head=4)
    against_lm_eval("GPT-2 of 1 M parameters, vocabulary 2,000", GPT2LMHeadModel(small), items=24)
    pythia = GPTNeoXConfig(hidden_size=512, num_hidden_layers=6, num_attention_heads=8, intermediate_size=2048)
    against_lm_eval("Pythia-70m's shape, vocabulary 50,432", GPTNeoXForCausalLM(pythia), items=2)


if __name__ == "__main__":
    main()
