"""Tokens per second and peak memory of `labkit.distillation.distill` beside TRL's `GKDTrainer`, off- and on-policy.

OMP_NUM_THREADS=1 python benchmarks/distillation.py [--vocab 50000] [--steps 6] [--batch 4] [--prompt 64] [--answer 64]

The same Llama pair, rows, batch, divergence (JSD, β = ½, T = 1) and optimiser, in float32 on a CPU and bfloat16 on a
GPU; nothing is saved, gradients are not checkpointed, both generate through a key-value cache. The first steps are not
counted. Each loop runs in a process of its own, so that its peak memory is its own; ours compiles the bodies (as
`train` does), and that memory is counted. Needs `trl` (extra `oracles`); without it our numbers stand alone. TRL's
`DistillationTrainer`, which has a chunked loss but is on-policy only, is not compared here.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, logging

from labkit.distillation import Options, distill
from labkit.records import IGNORE

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@dataclasses.dataclass(frozen=True)
class Text:
    """Random tokens: a prompt, then an answer that is read as it is written."""

    vocab: int
    prompt: int
    answer: int

    @property
    def length(self) -> int:
        return self.prompt + self.answer

    def rows(self, batch: int, step: int) -> np.ndarray:
        return np.random.default_rng(step).integers(2, self.vocab, (batch, self.length))

    def batches(self, batch: int, steps: int, first: int = 0) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for step in range(first, steps):
            tokens = self.rows(batch, step)
            labels = np.full_like(tokens, IGNORE)
            labels[:, self.prompt - 1 : -1] = tokens[:, self.prompt :]
            yield tokens, labels


class Meter:
    """Seconds of the counted steps, and the most memory at any time, in all and beyond what stood before the first."""

    def __init__(self, warm_up: int) -> None:
        self.warm_up, self.done = warm_up, 0

    def tick(self) -> None:
        """To be called as each step begins, and once at the end."""
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        if self.done == 0:
            self.standing = memory()
        if self.done == self.warm_up:
            self.begun = time.perf_counter()
        self.seconds = time.perf_counter() - self.begun if self.done > self.warm_up else 0.0
        self.done += 1

    def result(self, tokens: int) -> dict[str, float]:
        return {
            "tokens_per_s": (self.done - 1 - self.warm_up) * tokens / self.seconds,
            "peak_mib": memory() / 2**20,
            "beyond_mib": (memory() - self.standing) / 2**20,
        }


def memory() -> int:
    """Most bytes so far: of the GPU, or of the process."""
    if DEVICE == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def pair(vocab: int, widths: list[int]) -> list[LlamaForCausalLM]:
    """Teacher and student: 4 and 2 layers."""
    models = []
    for width, layers in zip(widths, (4, 2), strict=True):
        torch.manual_seed(layers)
        config = LlamaConfig(
            vocab_size=vocab, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers,
            num_attention_heads=width // 32, max_position_embeddings=4096, bos_token_id=None, eos_token_id=None,
            pad_token_id=0, tie_word_embeddings=True,
        )  # fmt: skip
        models.append(LlamaForCausalLM(config).to(DEVICE))
    return models


def ours(chosen: argparse.Namespace, text: Text, on_policy: float) -> dict[str, float]:
    """`distill`, with a corpus that also looks at the clock."""
    meter = Meter(chosen.warm_up)

    class Watched(Text):
        def batches(self, batch, steps, first=0):
            for rows in super().batches(batch, steps, first):
                meter.tick()
                yield rows
            meter.tick()

    teacher, student = pair(chosen.vocab, chosen.widths)
    options = Options(batch=chosen.batch, learning_rate=1e-4, on_policy=on_policy)
    tokens = (chosen.warm_up + chosen.steps) * chosen.batch * text.length
    distill(teacher, student, Watched(**dataclasses.asdict(text)), "jsd", tokens, options=options)
    return meter.result(chosen.batch * text.length)


def trl(chosen: argparse.Namespace, text: Text, on_policy: float) -> dict[str, float]:
    """`GKDTrainer` on the same rows in the same order, made beforehand."""
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast, TrainerCallback
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    meter, steps = Meter(chosen.warm_up), chosen.warm_up + chosen.steps
    rows = np.concatenate([text.rows(chosen.batch, step) for step in range(steps)])

    class Watch(TrainerCallback):
        def on_step_begin(self, *_, **__):
            meter.tick()

        def on_train_end(self, *_, **__):
            meter.tick()

    def collate(items: list[dict]) -> dict[str, torch.Tensor]:
        tokens = torch.tensor([item["input_ids"] for item in items])
        labels = tokens.clone()
        labels[:, : text.prompt] = IGNORE
        prompts = tokens[:, : text.prompt]
        ones = torch.ones_like
        return {"input_ids": tokens, "attention_mask": ones(tokens), "labels": labels, "prompts": prompts,
                "prompt_attention_mask": ones(prompts)}  # fmt: skip

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": 1}, "<pad>")),
        pad_token="<pad>",
        eos_token="<eos>",
    )
    teacher, student = pair(chosen.vocab, chosen.widths)
    with tempfile.TemporaryDirectory() as folder:
        config = GKDConfig(
            output_dir=folder, max_steps=steps, per_device_train_batch_size=chosen.batch, learning_rate=1e-4,
            optim="adamw_torch_fused", bf16=DEVICE == "cuda", gradient_checkpointing=False, logging_steps=1000,
            save_strategy="no", report_to="none", disable_tqdm=True, use_cpu=DEVICE == "cpu", dataloader_drop_last=True,
            train_sampling_strategy="sequential", lmbda=on_policy, beta=0.5, temperature=1.0,
            max_new_tokens=text.answer, max_length=None, eos_token="<eos>", pad_token="<pad>",
        )  # fmt: skip
        trainer = GKDTrainer(
            student, teacher, config, data_collator=collate,
            train_dataset=Dataset.from_dict({"input_ids": rows.tolist()}),
            processing_class=tokenizer, callbacks=[Watch()],
        )  # fmt: skip
        trainer.generation_config.eos_token_id = None  # random text has no end: as many tokens as ours
        trainer.train()
    return meter.result(chosen.batch * text.length)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (
        ("vocab", 50_000),
        ("batch", 4),
        ("prompt", 64),
        ("answer", 64),
        ("steps", 6),
        ("warm-up", 2),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--widths", type=int, nargs=2, default=[256, 128], help="of teacher and student")
    parser.add_argument("--only", nargs=2, metavar=("LOOP", "ON_POLICY"), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    text = Text(chosen.vocab, chosen.prompt, chosen.answer)
    if chosen.only:
        logging.set_verbosity_error()
        warnings.simplefilter("ignore")
        loop, on_policy = chosen.only
        print(json.dumps({"ours": ours, "trl": trl}[loop](chosen, text, float(on_policy))))
        return
    loops = ["ours", "trl"] if importlib.util.find_spec("trl") else ["ours"]
    print(f"{DEVICE}, {torch.get_num_threads()} threads, vocabulary {chosen.vocab:,}, batch {chosen.batch} × "
          f"({chosen.prompt} + {chosen.answer}) tokens, "
        f"teacher {chosen.widths[0]}x4, student {chosen.widths[1]}x2")  # fmt: skip
    print(f"{'policy':<6} {'loop':<6} {'tokens/s':>9} {'peak MiB':>9} {'of it in steps':>14}")
    for on_policy in (0, 1):
        found = {}
        for loop in loops:
            command = [sys.executable, *sys.argv, "--only", loop, str(on_policy)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                sys.exit(done.stderr[-3000:])
            found[loop] = found_ = json.loads(done.stdout.splitlines()[-1])
            print(f"{'on' if on_policy else 'off':<6} {loop:<6} {found_['tokens_per_s']:9,.0f} "
                f"{found_['peak_mib']:9,.0f} "
                  f"{found_['beyond_mib']:14,.0f}", flush=True)  # fmt: skip
        if "trl" in found:
            a, b = found["ours"], found["trl"]
            print(f"       ours / TRL: {a['tokens_per_s'] / b['tokens_per_s']:.2f}× tokens/s, "
                f"{a['peak_mib'] / b['peak_mib']:.2f}× peak, "
                  f"{a['beyond_mib'] / b['beyond_mib']:.2f}× memory in steps")  # fmt: skip


if __name__ == "__main__":
    main()
