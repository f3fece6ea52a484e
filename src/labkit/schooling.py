"""Train a ladder of models and write it down: weights, scores, provenance and a manifest with checksums."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from multiprocessing.connection import Connection, wait
from pathlib import Path

import filelock

from labkit.errors import Failure, LabkitError, unknown
from labkit.ladder import Rung
from labkit.places import replace
from labkit.zoo import MANIFEST, load, sha256

SCORED_ITEMS, SCORED_SEED = 2000, 0
WAIT_S = 2  # between looks at models that another process is training
TRAINED = "trained.json"  # stands beside weights that are final but not yet scored
SHIPPED = (".safetensors", ".json", ".parquet", ".csv")  # the kinds of files that a manifest lists
SPARE_FILES = ("generation_config.json",)  # written by save_pretrained, of no use to a model without an end token


@dataclasses.dataclass(frozen=True)
class Profile:
    """How a ladder is trained on one kind of machine.

    Attributes
    ----------
    name: what `labkit ladder --profile` calls it.
    rungs: ((name, number of seeds), …), trained in this order, seed by seed.
    tokens: shown to every model; the same for all rungs, so that size alone differs.
    batch, length: rows a step, tokens a row.
    """

    name: str
    rungs: tuple[tuple[str, int], ...]
    tokens: int
    batch: int = 64
    length: int = 48

    def jobs(self) -> list[tuple[Rung, int]]:
        """(rung, seed) pairs, all rungs' first seeds before any rung's second."""
        most = max(seeds for _, seeds in self.rungs)
        return [(Rung.parse(name), seed) for seed in range(most) for name, seeds in self.rungs if seed < seeds]


_T4 = (("32x1", 3), ("64x2", 3), ("128x2", 3), ("128x4", 3), ("256x4", 3), ("256x8", 3))
PROFILES = (
    Profile("cpu", (("16x1", 3), ("32x1", 3), ("64x1", 3), ("32x2", 5), ("64x2", 5), ("96x3", 5)), tokens=16_000_000),
    Profile("t4", _T4, tokens=100_000_000, batch=256, length=96),
    Profile("h100", (*_T4, ("384x8", 3), ("512x8", 3)), tokens=200_000_000, batch=512, length=96),
)


def profile(name: str) -> Profile:
    """The profile of that name; LabkitError for another name."""
    for candidate in PROFILES:
        if candidate.name == name:
            return candidate
    raise unknown("profile", name, [p.name for p in PROFILES])


def train_ladder(plan: Profile, out: Path | str, *, device: str = "auto", workers: int | None = None) -> list[str]:
    """Train what is missing of a profile into the folder `out`; returns the names of all its models.

    Models stand at ``ladder/<rung>/seed-<n>``; the manifest lists each file's sha256 and each model's tokens, FLOPs,
    scores and provenance. A model is there whole or not at all; a killed training resumes from its last checkpoint, and
    processes on one folder share the work. `workers` processes train side by side, each with one thread on a CPU (small
    models gain nothing from more); by default one per core, or one per GPU.

    Raises LabkitError if `out` cannot be written, and Failure when a training fails: the message says which and why, and
    the others stop, too. What is trained by then is kept.
    """
    import torch

    out = Path(out)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if workers is None:
        workers = 1 if device == "cuda" else _cores()
    if workers < 1:
        raise LabkitError("at least one worker is needed", workers, "Give --workers 1 or more.")
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / ".write-test").touch()
        (out / ".write-test").unlink()
    except OSError as error:
        raise LabkitError("the folder for the ladder can be written", f"{out} ({error.strerror})", "Choose another.") from error
    for path in out.glob("ladder/*/seed-*/training.json"):
        kept = json.loads(path.read_text())["provenance"]["config"]["profile"]
        if any(kept[key] != getattr(plan, key) for key in ("tokens", "batch", "length")):
            received = f"{out}, which has models of {kept['name']}: {kept['tokens']:,} tokens each"
            raise LabkitError("a folder holds the models of one profile", received, "Give another --out.")
    fault, trace = _crew(plan, out, device, workers)
    missing = [name for name in map(_name, plan.jobs()) if not (out / name / "training.json").exists()]
    if missing:
        received = f"{len(missing)} of {len(plan.jobs())} missing"
        remedy = fault or f"A worker was killed, by whom it cannot tell. The same command trains {', '.join(missing)}."
        raise Failure("every model of the profile gets trained", received, remedy) from RuntimeError(trace)
    write_manifest(out)
    shutil.rmtree(out / ".training", ignore_errors=True)
    return [_name(job) for job in plan.jobs()]


def write_manifest(out: Path | str) -> dict:
    """List every model and shipped file below `out`, with checksums, in ``manifest.json``; returns what was written."""
    out = Path(out)
    files = sorted(p for p in out.rglob("*") if p.suffix in SHIPPED and p.name != MANIFEST)
    files = [p for p in files if not any(part.startswith(".") for part in p.relative_to(out).parts)]
    models = {}
    for path in sorted(out.glob("ladder/*/seed-*/training.json")):
        record = json.loads(path.read_text())
        record.pop("loss_nats")  # the curve stays beside the model
        models[str(path.parent.relative_to(out))] = record
    written = {"files": {str(p.relative_to(out)): sha256(p) for p in files}, "models": models}
    partial = out / f".{MANIFEST}-{os.getpid()}"
    partial.write_text(json.dumps(written, indent=1, sort_keys=True) + "\n")
    partial.replace(out / MANIFEST)
    return written


def _name(job: tuple[Rung, int]) -> str:
    return f"ladder/{job[0].name}/seed-{job[1]}"


def _crew(plan: Profile, out: Path, device: str, workers: int) -> tuple[str, str]:
    """Have processes do the work. What stops the first one stops all of them: it is returned in words, and as a trace."""
    context, crew, ears = multiprocessing.get_context("spawn"), [], []
    try:
        for number in range(workers):
            ear, mouth = context.Pipe(duplex=False)
            os.environ["TQDM_POSITION"] = str(number)  # one line of progress per worker; read by tqdm as it is imported
            with _deaf_to_ctrl_c(), mouth:
                process = context.Process(target=_worker, args=(plan, out, device, mouth))
                process.start()
                crew.append(process)
            ears.append(ear)
        while ears:
            for ear in wait(ears):
                with contextlib.suppress(EOFError):  # it ended and had nothing to say: all is done, or it was killed
                    return ear.recv()
                ears.remove(ear)
        return "", ""
    finally:
        os.environ.pop("TQDM_POSITION", None)
        for process in crew:
            process.terminate()
            process.join()


@contextlib.contextmanager
def _deaf_to_ctrl_c() -> Iterator[None]:
    """Ctrl-C goes to every process of a terminal. Those that are begun in here leave it to this one, which ends them."""
    if threading.current_thread() is not threading.main_thread():  # no other one may say what a signal does
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _worker(plan: Profile, out: Path, device: str, mouth: Connection) -> None:
    """`_work`, in a process of its own that ends with the one that began it, and tells it what went wrong."""
    from tqdm import tqdm

    tqdm.set_lock(threading.RLock())  # its own one is shared between processes, and missed aloud when this one is ended
    threading.Thread(target=lambda: (multiprocessing.parent_process().join(), os._exit(1)), daemon=True).start()
    try:
        _work(plan, out, device)
    except Exception as error:
        words = str(error) if isinstance(error, LabkitError) else f"{type(error).__name__}: {error}"
        mouth.send((words, traceback.format_exc()))


def _work(plan: Profile, out: Path, device: str) -> None:
    """One worker: take every job that is neither done nor in another worker's hands, until all are done.

    What another holds is waited for: if it is killed, its lock falls and its job is taken up here.
    """
    import torch

    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    locks = out / ".training"
    locks.mkdir(exist_ok=True)
    while left := [job for job in plan.jobs() if not (out / _name(job) / "training.json").exists()]:
        for job in left:
            lock = filelock.FileLock(locks / f"{_name(job).replace('/', '-')}.lock", timeout=0)
            with contextlib.suppress(filelock.Timeout), lock:
                if not (out / _name(job) / "training.json").exists():
                    _train_one(plan, job, out, device)
                    break  # look again from the start: another worker may have been killed
        else:
            time.sleep(WAIT_S)


def _train_one(plan: Profile, job: tuple[Rung, int], out: Path, device: str) -> None:
    from labkit.abilities import abilities, corpus
    from labkit.evaluation import evaluate
    from labkit.store import provenance
    from labkit.training import train

    rung, seed = job
    name, begun = _name(job), time.monotonic()
    # Named by the profile, too: what another one left when it was killed is not taken over.
    partial = out / ".training" / f"{name.replace('/', '-')}-{plan.tokens}-{plan.batch}-{plan.length}"
    if (partial / "training.json").exists():  # killed while it was given its name
        _finish(partial, out / name)
        return
    if (partial / TRAINED).exists():  # killed while it was scored
        model, done = load(str(partial)).to(device), json.loads((partial / TRAINED).read_text())
    else:
        model = rung.build(seed).to(device)
        done = dataclasses.asdict(
            train(
                model,
                corpus(seed, plan.length),
                plan.tokens,
                batch=plan.batch,
                learning_rate=rung.learning_rate,
                folder=partial,
                label=f"{rung.name} seed {seed}",
            )
        )
        model.save_pretrained(partial)
        for spare in SPARE_FILES:
            (partial / spare).unlink(missing_ok=True)
        replace(json.dumps(done) + "\n", partial / TRAINED)
    rows = evaluate(model, abilities(), n=SCORED_ITEMS, seed=SCORED_SEED, progress=False)
    means = rows.groupby(["ability", "metric"], sort=False)["value"].mean().round(4)
    config = {"profile": dataclasses.asdict(plan), "rung": rung.name, "seed": seed}
    record = {
        "rung": rung.name,
        "params": rung.params,
        "seed": seed,
        **done,
        "scores": {ability: means[ability].to_dict() for ability in means.index.unique(0)},
        "provenance": provenance(config, {}, time.monotonic() - begun, _device_name(device)),
    }
    replace(json.dumps(record) + "\n", partial / "training.json")
    _finish(partial, out / name)
    if not sys.stderr.isatty():  # no bars there
        pace = f"{done['tokens']:,} tokens in {done['seconds']:,.0f} s, {done['tokens'] / done['seconds']:,.0f} tokens/s"
        print(f"{name}: {pace}, loss {done['loss_nats'][-1][1]:.3f} nats", file=sys.stderr, flush=True)


def _finish(partial: Path, final: Path) -> None:
    (partial / TRAINED).unlink(missing_ok=True)
    final.parent.mkdir(parents=True, exist_ok=True)
    partial.rename(final)


def _cores() -> int:
    """Cores this process may use; where the system does not tell (macOS, Windows), all there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _device_name(device: str) -> str:
    import torch

    return torch.cuda.get_device_name() if device == "cuda" else "cpu, 1 thread"
