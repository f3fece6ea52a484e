"""A study on a Ray cluster: each run is a task that any worker may do, and its rows come back as one whole part.

Only the process that was started writes, so the workers need no disk in common, a run that a lost worker had begun
leaves nothing behind, and one that is done twice is kept once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import socket
import tempfile
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from labkit.errors import Failure, LabkitError
from labkit.store import Store
from labkit.study import Study
from labkit.subjects import Job

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ANSWER_S = 4.0  # to connect, and again to be greeted
RETRIES = 3  # of a run whose worker was lost
_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))  # how gRPC begins (RFC 9113, 3.4)
_SETTINGS = 4  # type of the frame that answers it, fourth byte of nine

_loaded: dict[str, PreTrainedModel] = {}  # in a worker: the last model

Shipped = tuple[Study, str, list[bytes], bytes | None]
"""A study, the folder it was started in, and the contents of its extensions and its text."""


def run(study: Study, out: Path | str, address: str, progress: bool = True) -> Store:
    """Measure what is not yet in the store at `out` on the Ray cluster at ``"host:port"``, and return the store.

    As `Study.run`, and the rows are the same. Each run takes one GPU if the cluster has any, else one CPU. The workers
    need labkit of the same version, and local folders of models at the same path. Extensions and the text are sent.

    Raises
    ------
    LabkitError
        Ray is not installed; nothing answers at the address; what a run raises, there as here.
    Failure
        A run could not be finished: its worker was lost `RETRIES` + 1 times, or it failed.
    """
    check_address(address)
    ray = _ray()
    store, runs = study.open(out)
    left = [name for name in runs if not store.has(name)]
    ray.init(address=address, log_to_driver=False)
    try:
        gpus = 1 if ray.cluster_resources().get("GPU", 0) >= 1 else 0
        task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=RETRIES)(_measured)
        shipped = ray.put(_shipped(study))
        waiting = {task.remote(shipped, name, runs[name][1]): name for name in left}
        with tqdm(total=len(runs), initial=len(runs) - len(left), desc=f"study {study.name}", unit="run",
                  disable=not progress) as bar:  # fmt: skip
            while waiting:
                done = ray.wait(list(waiting))[0][0]
                name = waiting.pop(done)
                store.adopt(name, _part(ray, done, name))
                bar.update()
    finally:
        ray.shutdown()  # what is under way is given up
    return store


def _shipped(study: Study) -> Shipped:
    """What a worker is sent: paths that are relative lead nowhere from the folder that it is in."""
    text = Path(study.text.file).read_bytes() if study.text else None
    return study, os.getcwd(), [Path(path).read_bytes() for path in study.extensions], text


def _measured(shipped: Shipped, name: str, job: Job) -> bytes | tuple[Any, ...]:
    """In a worker: the part of one run, or what the LabkitError said (which cannot be pickled)."""
    study, where, extensions, text = shipped
    try:
        with contextlib.ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="labkit-"))
            if Path(where).is_dir():  # models in folders are named from there
                stack.enter_context(contextlib.chdir(where))
            paths = [Path(folder) / f"extension-{number}.py" for number in range(len(extensions))]
            for path, code in zip(paths, extensions, strict=True):
                path.write_bytes(code)
            read = {"extensions": tuple(map(str, paths))}
            if text is not None:
                (mine := Path(folder) / "text.txt").write_bytes(text)
                read["text"] = dataclasses.replace(study.text, file=str(mine))
            study = dataclasses.replace(study, **read)  # runs the extensions
            [(found, (config, _))] = study.runs([job]).items()
            if found != name:
                rule = "the workers have the labkit and the models of the machine that started the study"
                raise LabkitError(rule, f"another address for {job[0]}: {config}", "Install the same version on all.")
            store = Store(Path(folder) / "store", create=True)
            study.measure(store, name, config, job, _loaded)
            return store.export(name)
    except LabkitError as error:
        return isinstance(error, Failure), error.rule, repr(error.received), error.remedy


def _part(ray: ModuleType, done: Any, name: str) -> bytes:
    try:
        found = ray.get(done)
    except ray.exceptions.RayTaskError as error:
        raise Failure("every run of a study finishes", f"{name}: {error.cause!r}", f"On the worker:\n{error}") from None
    except ray.exceptions.RayError as error:
        received = f"{name}, lost {RETRIES + 1} times ({type(error).__name__})"
        remedy = "Is there memory enough on the workers? The same command goes on from what is measured."
        raise Failure("a run outlives its worker when it is tried again", received, remedy) from error
    if isinstance(found, bytes):
        return found
    failure, rule, received, remedy = found
    raise (Failure if failure else LabkitError)(rule, received, remedy)


def check_address(address: str) -> None:
    """Raise LabkitError unless something answers there as gRPC does: `ray.init` itself would wait for minutes.

    It needs nothing but a socket, so it can be asked before Ray, torch and the study are loaded.
    """
    host, _, port = address.rpartition(":")
    if "://" in address or not host or not port.isdecimal() or not 0 < int(port) < 65536:
        remedy = "Write e.g. --ray 10.0.0.1:6379; `ray status` on the head node tells it."
        raise LabkitError("a Ray cluster has an address HOST:PORT", address, remedy)
    remedy = "Is the cluster up (`ray status`), the port that of `ray start --head`, and no firewall between?"
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_S) as line:
            line.settimeout(ANSWER_S)
            if os.environ.get("RAY_USE_TLS", "0") not in ("1", "true"):
                line.sendall(_GREETING)
                if line.recv(9)[3:4] != bytes((_SETTINGS,)):
                    raise OSError("what answers is not Ray")
    except OSError as error:
        raise LabkitError("a Ray cluster answers at its address", f"{address} ({error})", remedy) from None


def _ray() -> ModuleType:
    try:
        import ray
    except ImportError:
        raise LabkitError("a study on a cluster needs Ray", "no package ray", "pip install 'labkit[cluster]'") from None
    return ray
