"""Tokens per second of `labkit.training.train` beside HF `Trainer`, on the same model, batch, data and loss.

python benchmarks/training.py [--rung 64x2] [--steps 300] [--repeats 3] [--threads 1] [--batch 64]

Both train in float32 on a CPU and in bfloat16 on a GPU, with fused AdamW, gradients clipped to norm 1 and the same
linear schedule of the same length; neither saves anything. `Trainer` is timed as it comes and with
`torch_compile=True`, which ours always has where there is a compiler. The first steps (compiling, warm-up) are not
counted. `--threads` may be given several times. Needs `accelerate`, which `Trainer` is built on.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import statistics
import sys
import tempfile
import time
from collections.abc import Callable

import numpy as np
import torch
from torch.nn import functional as F
from transformers import Trainer, TrainerCallback, TrainingArguments, logging

from labkit.abilities import Corpus, corpus
from labkit.flops import training_flops_per_token
from labkit.ladder import Rung
from labkit.records import IGNORE
from labkit.training import answers_only, train

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class Clock:
    """Seconds from the start of step `warm_up` to the end of the last."""

    def __init__(self, warm_up: int, steps: int) -> None:
        self.warm_up, self.steps, self.done = warm_up, steps, 0

    def tick(self) -> None:
        """To be called as each step begins, and once at the end."""
        if self.done in (self.warm_up, self.steps):
            if DEVICE == "cuda":
                torch.cuda.synchronize()
            now = time.perf_counter()
            self.begun, self.seconds = (now, 0.0) if self.done == self.warm_up else (self.begun, now - self.begun)
        self.done += 1


def ours(rung: Rung, data: Corpus, batch: int, clock: Clock) -> None:
    """Our loop, with a loss that also looks at the clock."""

    def loss(*inputs):
        clock.tick()
        return answers_only(*inputs)

    train(rung.build().to(DEVICE), data, clock.steps * batch * data.length, batch=batch, loss=loss)
    clock.tick()


def trainer(rung: Rung, data: Corpus, batch: int, clock: Clock, compiled: bool = False) -> None:
    """HF `Trainer` on the same rows in the same order. Our labels are unshifted, so the loss is handed in.

    The rows are made beforehand, which is in its favour: our loop makes them as it goes.
    """
    tokens, labels = (torch.from_numpy(x) for x in data.rows(np.arange(clock.steps * batch)))
    rows = [{"input_ids": t, "labels": y} for t, y in zip(tokens, labels, strict=True)]

    class Watch(TrainerCallback):
        def on_step_begin(self, *_, **__):
            clock.tick()

        def on_train_end(self, *_, **__):
            clock.tick()

    class Unshifted(Trainer):
        def compute_loss(self, model, inputs, *_, **__):
            logits = model(input_ids=inputs["input_ids"], use_cache=False).logits
            return F.cross_entropy(logits.flatten(0, 1).float(), inputs["labels"].flatten(), ignore_index=IGNORE)

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder, max_steps=clock.steps, per_device_train_batch_size=batch, learning_rate=2e-3,
            adam_beta2=0.98, weight_decay=0.1, warmup_steps=100, lr_scheduler_type="linear", optim="adamw_torch_fused",
            bf16=DEVICE == "cuda", logging_steps=50, save_strategy="no", report_to="none", disable_tqdm=True,
            train_sampling_strategy="sequential", use_cpu=DEVICE == "cpu", torch_compile=compiled,
        )  # fmt: skip
        Unshifted(rung.build(), arguments, train_dataset=rows, callbacks=[Watch()]).train()


def matrix_product_rate(seconds: float = 2.0, size: int = 2048) -> float:
    """FLOP/s of a large square matrix product, in the precision the training uses; the best of a few seconds."""
    a = torch.randn(size, size, device=DEVICE, dtype=torch.bfloat16 if DEVICE == "cuda" else torch.float32)
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end or best == float("inf"):
        start = time.perf_counter()
        (a @ a).sum().item()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rung", default="64x2")
    parser.add_argument("--steps", type=int, default=300, help="counted steps of each training")
    parser.add_argument("--warm-up", type=int, default=50, help="steps before them")
    parser.add_argument("--repeats", type=int, default=3, help="the median is printed")
    parser.add_argument("--batch", type=int, default=64, help="rows of 48 tokens")
    parser.add_argument("--threads", type=int, action="append", help="default: 1, and all cores")
    chosen = parser.parse_args()
    if importlib.util.find_spec("accelerate") is None:
        sys.exit("HF Trainer needs accelerate, which is not installed. Install it: pip install accelerate")
    logging.set_verbosity_error()
    rung, data = Rung.parse(chosen.rung), corpus()
    per_token = training_flops_per_token(rung.build(), data.length)
    print(f"rung {rung.name}, {rung.params:,} non-embedding parameters, {DEVICE}, batch {chosen.batch} × {data.length}")
    print(f"{'threads':>7} {'loop':<16} {'tokens/s':>9} {'GFLOP/s':>8} {'of matmul rate':>14}")
    for threads in chosen.threads or sorted({1, torch.get_num_threads()}):
        torch.set_num_threads(threads)
        rate, speeds = matrix_product_rate(), {}
        loops: dict[str, Callable] = {
            "labkit": ours, "Trainer": trainer, "Trainer compiled": functools.partial(trainer, compiled=True),
        }  # fmt: skip
        seconds: dict[str, list[float]] = {name: [] for name in loops}
        for _ in range(chosen.repeats):
            for name, loop in loops.items():  # by turns: what else the machine does falls on all alike
                clock = Clock(chosen.warm_up, chosen.warm_up + chosen.steps)
                loop(rung, data, chosen.batch, clock)
                seconds[name].append(clock.seconds)
        for name, taken in seconds.items():
            speeds[name] = chosen.steps * chosen.batch * data.length / statistics.median(taken)
            flops = speeds[name] * per_token
            print(f"{threads:7d} {name:<16} {speeds[name]:9,.0f} {flops / 1e9:8.1f} {flops / rate:14.1%}")
        print(f"{threads:7d} {'matmul 2048²':<16} {'':9} {rate / 1e9:8.1f}")
        for name in list(loops)[1:]:
            print(f"{threads:7d} labkit / {name}: {speeds['labkit'] / speeds[name]:.2f}×")


if __name__ == "__main__":
    main()
