"""Where files are kept, a folder of this machine or one at a URL of fsspec, and how a file appears there: whole."""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

from labkit.errors import LabkitError

LOCAL = ("file", "local")
TEMPORARY = ".part-"
STALE_S = 3600.0  # a part is written in seconds: older temporaries belong to a process that was killed
_NO_HARD_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EOPNOTSUPP)


class Remote:
    """A file or folder at a URL of fsspec, e.g. ``s3://bucket/runs``, with the methods of a `pathlib.Path` that we need.

    What a name holds appears whole there: an object store's promise.

    Raises LabkitError for a protocol that is unknown or whose package is not installed.
    """

    def __init__(self, url: str) -> None:
        import fsspec

        try:
            self._system, self._key = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            remedy = f"Write e.g. s3://bucket/folder, or the path of a folder. ({error})"
            raise LabkitError("a URL has a protocol that fsspec opens", url, remedy) from error

    def __truediv__(self, name: str) -> Remote:
        return self._at(f"{self._key.rstrip('/')}/{name}")

    def __str__(self) -> str:
        return self._system.unstrip_protocol(self._key)

    def __lt__(self, other: Remote) -> bool:
        return self._key < other._key

    def _at(self, key: str) -> Remote:
        other = object.__new__(type(self))
        other._system, other._key = self._system, key
        return other

    @property
    def name(self) -> str:
        return self._key.rpartition("/")[2]

    @property
    def stem(self) -> str:
        return Path(self.name).stem

    @property
    def parent(self) -> Remote:
        return self._at(self._key.rpartition("/")[0])

    def exists(self) -> bool:
        self._system.invalidate_cache()  # of listings: others write here, too
        return self._system.exists(self._key)

    def is_file(self) -> bool:
        self._system.invalidate_cache()
        return self._system.isfile(self._key)

    def iterdir(self) -> Iterator[Remote]:
        self._system.invalidate_cache()
        return (self._at(key) for key in self._system.ls(self._key, detail=False) if key.strip("/") != self._key.strip("/"))

    def glob(self, pattern: str) -> Iterator[Remote]:
        self._system.invalidate_cache()
        return map(self._at, self._system.glob(f"{glob.escape(self._key)}/{pattern}"))

    def mkdir(self, parents: bool = False, exist_ok: bool = False) -> None:
        """Folders are made as files are written; where they must be there before, they are made here, parents too."""
        self._system.makedirs(self._key, exist_ok=exist_ok)

    def read_bytes(self) -> bytes:
        return self._system.cat_file(self._key)

    def read_text(self, encoding: str = "utf-8") -> str:
        return self.read_bytes().decode(encoding)

    def write_text(self, text: str, encoding: str = "utf-8") -> None:
        """Put a file in the place of what is there."""
        self._system.pipe_file(self._key, text.encode(encoding))

    def create(self, data: bytes) -> None:
        """Write a file. Raises FileExistsError if one is there, which stays."""
        if self.exists():  # some protocols cannot ask for it with the write itself
            raise FileExistsError(str(self))
        self._system.pipe_file(self._key, data, mode="create")


def place(where: str | Path | Remote) -> Path | Remote:
    """The folder or file meant by a path or by a URL; ``file://`` is a path.

    >>> place("runs/quick"), place("file:///runs/quick")
    (PosixPath('runs/quick'), PosixPath('/runs/quick'))
    """
    if isinstance(where, Remote) or "://" not in str(where):
        return where if isinstance(where, Remote) else Path(where)
    protocol, _, rest = str(where).partition("://")
    return Path(rest) if protocol in LOCAL else Remote(str(where))


def write_once(data: bytes | memoryview, final: Path | Remote) -> bool:
    """Make a file appear whole, in one step; False if one is there already, which stays."""
    if isinstance(final, Remote):
        try:
            final.create(bytes(data))
        except FileExistsError:
            return False
        return True
    with _temporary(final, data) as temporary:
        _sweep(final.parent, temporary.stat().st_mtime)
        try:
            os.link(temporary, final)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in _NO_HARD_LINKS:
                raise
            if final.exists():  # some network drives have no hard links: there, two writers may race, both being whole
                return False
            os.replace(temporary, final)
        return True


def replace(text: str, final: Path | Remote) -> None:
    """Put a whole file in the place of an older one, in one step."""
    if isinstance(final, Remote):
        final.write_text(text)
        return
    with _temporary(final, text.encode()) as temporary:
        os.replace(temporary, final)


@contextlib.contextmanager
def _temporary(final: Path, data: bytes | memoryview) -> Iterator[Path]:
    """A file beside another one that is on the disk for good; gone afterwards, if it is still there."""
    temporary = final.with_name(TEMPORARY + uuid.uuid4().hex)
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _sweep(folder: Path, now: float) -> None:
    """Remove what killed writers left. `now` is a modification time, by the clock of the same file system."""
    for temporary in folder.glob(f"{TEMPORARY}*"):
        with contextlib.suppress(OSError):
            if now - temporary.stat().st_mtime > STALE_S:
                temporary.unlink()
