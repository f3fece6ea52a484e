"""Rows on disk: one Parquet part for each run, written whole or not at all, and queried with DuckDB."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import errno
import importlib.metadata
import json
import os
import platform
import re
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock
import pyarrow as pa
import pyarrow.parquet as pq

from labkit.errors import Failure, LabkitError
from labkit.places import TEMPORARY, Remote, place, replace, write_once
from labkit.records import ItemRow, columns

if TYPE_CHECKING:
    import pandas as pd

_ARROW = {"str": pa.string(), "int": pa.int64(), "float": pa.float64()}
SCHEMA = pa.schema([pa.field(f.name, _ARROW[f.type], nullable=False) for f in dataclasses.fields(ItemRow)])
"""Arrow schema of every part: the fields of `ItemRow`."""

_STRINGS = [field.name for field in SCHEMA if field.type == pa.string()]
_READ = pa.schema([f.with_type(pa.dictionary(pa.int32(), f.type)) if f.name in _STRINGS else f for f in SCHEMA])
# Items count up, and values are float32 in a float64 column: a third smaller than without encodings.
_ENCODINGS = {"item": "DELTA_BINARY_PACKED", "value": "BYTE_STREAM_SPLIT"}
_COMPACT = {"compression": "zstd", "compression_level": 9, "use_dictionary": _STRINGS, "column_encoding": _ENCODINGS}
_MARKER = "store.json"
_FORMAT = {"format": "labkit store", "version": 1}
_METADATA = b"labkit.provenance"
_PROVENANCE = ("run", "commit", "dirty", "versions", "device", "config", "artifacts", "wall_s")
_PACKAGES = ("labkit", "torch", "transformers", "safetensors", "numpy", "scipy", "pandas", "pyarrow", "duckdb")
_REMEDIES = {
    errno.ENOSPC: "Free some space or choose another folder, then run again: what was there is unchanged.",
    errno.EDQUOT: "Free some of your quota or choose another folder, then run again: what was there is unchanged.",
}


def provenance(config: Mapping[str, Any], artifacts: Mapping[str, str], wall_s: float, device: str) -> dict[str, Any]:
    """Where rows come from: commit, versions and machine, beside what the caller alone knows.

    Parameters
    ----------
    config : what was run (JSON); artifacts : sha256 by name of what was loaded; wall_s : seconds it took;
    device : e.g. "cpu" or the name of the GPU.

    Returns
    -------
    dict of JSON values. ``commit`` and ``dirty`` (the package differs from the commit) are None outside of a checkout.
    """
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    # An installed copy may lie in a virtual environment inside some other project's checkout: ours tracks this file.
    commit = _git("rev-parse", "HEAD") if _git("ls-files", "--error-unmatch", Path(__file__).name) else None
    return {
        "commit": commit,
        "dirty": None if commit is None else bool(_git("status", "--porcelain", "--", ".")),
        "versions": versions,
        "device": device,
        "config": dict(config),
        "artifacts": dict(artifacts),
        "wall_s": wall_s,
        "platform": platform.platform(),
        "cpu": _cpu(),
        "utc": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _git(*arguments: str) -> str | None:
    """What git prints about the folder of this package, or None if it fails."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}  # set inside of hooks
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _cpu() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


class Store:
    """A folder of rows, on this machine or at a URL of fsspec, e.g. ``s3://bucket/runs``.

    ``store.json`` marks it, ``rows/<run>.parquet`` holds the rows of one run with their provenance in its footer, and
    ``locks/`` tells the processes that share it apart (at a URL nothing does: there a run may be measured twice, and is
    kept once). A part is there or not: it is never half-written, and never written over.

    Parameters
    ----------
    path : the folder, or its URL.
    create : make it if it is absent or empty; a store that is there already is opened.

    Raises
    ------
    LabkitError
        The folder is not a store, or cannot be written.
    """

    def __init__(self, path: str | Path | Remote, create: bool = False) -> None:
        self.path = place(path)
        if (self.path / _MARKER).is_file():
            _check_marker(self.path / _MARKER)
            return
        if not create:
            remedy = "Name the folder of an earlier run, or make one: labkit run quick --out FOLDER."
            raise LabkitError(f"a store is a folder with {_MARKER}", str(path), remedy)
        with _disk(self.path):
            there = list(self.path.iterdir()) if self.path.exists() else []
            others = any(not entry.name.startswith(TEMPORARY) for entry in there)
            if others and not (self.path / _MARKER).is_file():  # looked at again: another process may just have made it
                raise LabkitError("a new store needs an empty folder", str(path), "Name one that is empty or absent.")
            self.path.mkdir(parents=True, exist_ok=True)
            write_once(json.dumps(_FORMAT).encode(), self.path / _MARKER)

    def __repr__(self) -> str:
        return f"Store({str(self.path)!r}, {len(self.runs())} runs)"

    def runs(self) -> tuple[str, ...]:
        """Names of the runs whose rows are here, sorted."""
        return tuple(part.stem for part in self._parts())

    def has(self, run: str) -> bool:
        return self._part(run).is_file()

    def write(self, run: str, rows: pd.DataFrame | Mapping[str, Sequence], provenance: Mapping[str, Any]) -> bool:
        """Keep the rows of a run and their provenance, both in one atomic step.

        Parameters
        ----------
        run : name of the run, see `labkit.addresses.run_id`.
        rows : the columns of `ItemRow`; ``run`` holds `run` throughout.
        provenance : JSON values, see `provenance`.

        Returns
        -------
        False if the run is here already: what is here stays.
        """
        absent = [name for name in SCHEMA.names if name not in rows]
        if absent:
            raise LabkitError("rows have every column of ItemRow", f"rows without {', '.join(absent)}", "Add them.")
        try:
            arrays = [pa.array(rows[field.name], field.type, from_pandas=False) for field in SCHEMA]
            table = pa.Table.from_arrays(arrays, schema=SCHEMA)
            table.validate(full=True)
            if any(column.null_count for column in table.columns):
                raise ValueError("there are nulls among the rows")
            footer = json.dumps(dict(provenance), allow_nan=False).encode()
        except (pa.ArrowException, TypeError, ValueError) as error:
            raise LabkitError("rows have the types of ItemRow, provenance is JSON", run, str(error)) from error
        others = set(table["run"].unique().to_pylist()) - {run}
        if others:
            raise LabkitError(f"rows of run {run} carry its name", min(others), "Set the column `run`.")
        buffer = pa.BufferOutputStream()
        table = table.replace_schema_metadata({_METADATA: footer})
        pq.write_table(table, buffer, write_page_checksum=True, **_COMPACT)
        return self._keep(run, buffer.getvalue())

    def export(self, run: str) -> bytes:
        """The part of a run, for the `adopt` of another store."""
        return self._part(run).read_bytes()

    def adopt(self, run: str, part: bytes) -> bool:
        """Keep the part of a run as another store has written it; False if the run is here already.

        Raises LabkitError for a part that is damaged or of another run.
        """
        if (others := set(_read(pa.BufferReader(part), run)["run"].unique().to_pylist()) - {run}):
            raise LabkitError(f"rows of run {run} carry its name", min(others), "Adopt it by its own name.")
        return self._keep(run, part)

    def put(self, name: str, text: str) -> None:
        """Keep a text beside the rows, in the place of an earlier one of that name; it is there whole or not at all."""
        with _disk(self.path / name):
            replace(text, self.path / name)

    def scratch(self, run: str) -> Path:
        """A folder of this machine for what a run needs to go on after a kill; nobody makes it here."""
        return (self.path if isinstance(self.path, Path) else Path.home() / ".cache" / "labkit") / "training" / run

    @contextlib.contextmanager
    def claim(self, run: str) -> Iterator[bool]:
        """Whether this process may do the run: True for one process at a time, never waiting.

        The operating system drops the lock when the process ends, however it ends. At a URL there are no locks: True.
        """
        if isinstance(self.path, Remote):
            yield True
            return
        lock = filelock.FileLock(self.path / "locks" / f"{self._part(run).stem}.lock", timeout=0)
        with _disk(lock.lock_file):
            Path(lock.lock_file).parent.mkdir(exist_ok=True)
            try:
                lock.acquire()
            except filelock.Timeout:
                pass
        try:
            yield lock.is_locked
        finally:
            lock.release()

    def frame(self, where: str | None = None) -> pd.DataFrame:
        """All rows, or those for which a DuckDB condition holds, with the columns of `ItemRow`, sorted by all of them.

        Examples
        --------
        >>> store.frame("ability = 'recall' and metric = 'exact_match'")  # doctest: +SKIP
        """
        condition = f"WHERE {where}" if where else ""
        query = f"SELECT {', '.join(columns(ItemRow))} FROM rows {condition} ORDER BY ALL"
        # By way of Arrow: several times faster than DuckDB's own frames, in half of the memory.
        return self._ask(query, lambda asked: asked.sql(query).to_arrow_table().to_pandas(self_destruct=True))

    def sql(self, query: str) -> pd.DataFrame:
        """The answer of DuckDB to a query over the view ``rows``."""
        return self._ask(query, lambda asked: asked.execute(query).df())

    def _ask(self, query: str, take: Callable[[Any], pd.DataFrame]) -> pd.DataFrame:
        import duckdb  # a machine that only measures and writes need not have it

        rows = pa.concat_tables([_read(_source(part), part) for part in self._parts()] or [SCHEMA.empty_table()])
        with duckdb.connect() as connection:
            connection.execute("SET enable_progress_bar = false")  # in a notebook it would stay in the output
            connection.register("rows", rows)
            del rows
            try:
                return take(connection)
            except (duckdb.OutOfMemoryException, MemoryError) as error:
                remedy = "Ask for fewer rows, with a condition, or on a machine with more memory."
                raise Failure("the answer to a query fits into memory", query, f"{remedy} ({error})") from error
            except duckdb.Error as error:
                raise LabkitError("a query is DuckDB SQL over `rows`", query, str(error)) from error

    def provenance(self) -> pd.DataFrame:
        """One row a run: run, commit, dirty, versions, device, config, artifacts, wall_s, and what else was kept."""
        import pandas as pd

        records = [{**_footer(part), "run": part.stem} for part in self._parts()]
        others = dict.fromkeys(key for record in records for key in record if key not in _PROVENANCE)
        return pd.DataFrame(records, columns=[*_PROVENANCE, *others])

    def _parts(self) -> list[Path] | list[Remote]:
        return sorted((self.path / "rows").glob("*.parquet"))

    def _keep(self, run: str, part: bytes | pa.Buffer) -> bool:
        final = self._part(run)
        with _disk(final):
            final.parent.mkdir(exist_ok=True)
            return write_once(part, final)

    def _part(self, run: str) -> Path | Remote:
        if not re.fullmatch(r"[\w-]+", run):
            raise LabkitError("a run is named by letters, digits, - and _", run, "Name it with addresses.run_id(config).")
        return self.path / "rows" / f"{run}.parquet"


def _check_marker(marker: Path | Remote) -> None:
    """Raise LabkitError for a store of another format or version: what is in it may be whole."""
    try:
        found = json.loads(marker.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        remedy = "Put it back, or name another folder."
        raise LabkitError(f"{_MARKER} says what a store is", f"{marker} ({error})", remedy) from error
    if found != _FORMAT:
        remedy = "Open it with the labkit that made it, or a newer one."
        raise LabkitError(f"a store is one of this labkit, {_FORMAT}", found, remedy)


def _source(part: Path | Remote) -> Path | pa.BufferReader:
    return pa.BufferReader(part.read_bytes()) if isinstance(part, Remote) else part


def _read(source: Path | pa.BufferReader, name: object) -> pa.Table:
    with _whole(name), pq.ParquetFile(source, read_dictionary=_STRINGS, page_checksum_verification=True) as file:
        if not file.schema_arrow.equals(_READ):
            raise ValueError("its columns are not those of ItemRow")
        return file.read().replace_schema_metadata()


def _footer(part: Path | Remote) -> dict[str, Any]:
    with _whole(part):
        return json.loads(pq.read_metadata(_source(part)).metadata[_METADATA])


@contextlib.contextmanager
def _whole(part: object) -> Iterator[None]:
    try:
        yield
    except (OSError, UnicodeEncodeError) as error:
        if isinstance(error, OSError) and error.errno is None:  # Arrow's word for a damaged file
            raise LabkitError(*_damaged(part, error)) from error
        remedy = f"Look at its permissions, at the drive and at the encoding of names; it is as it was. ({error})"
        raise LabkitError("a part of a store can be read", str(part), remedy) from error
    except (KeyError, TypeError, ValueError, pa.ArrowException) as error:
        raise LabkitError(*_damaged(part, error)) from error


def _damaged(part: object, error: Exception) -> tuple[str, str, str]:
    return "a part is a whole Parquet file of rows and their provenance", str(part), f"Delete it and run again. ({error})"


@contextlib.contextmanager
def _disk(path: str | Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        remedy = _REMEDIES.get(error.errno, "Choose a folder you may write to.")
        kind = Failure if error.errno in _REMEDIES else LabkitError  # a full disk is nobody's bad input
        raise kind(f"a store needs to write to {path}", error.strerror or str(error), remedy) from error
