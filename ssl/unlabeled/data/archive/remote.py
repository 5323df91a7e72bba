"""Files that lie elsewhere: `https://`, `s3://`, `gs://` and whatever else fsspec knows, read in ranges."""

from __future__ import annotations

import functools
import io
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, BinaryIO, NamedTuple, TypeVar

from unlabeled.data.archive import http
from unlabeled.data.archive.http import Identity
from unlabeled.errors import Interrupted, Stopped, UserError, first_line

HEADERS = 1 << 16  # bytes fetched at first while headers are read
RANGE = 1 << 22  # bytes of the largest range that is asked for to save others
NEAR = 1 << 20  # headers so many bytes apart are read in one range: a request takes longer
GAP = 1 << 17  # so are pictures, which come side by side anyhow
HELD = 1 << 28  # bytes read before they are asked for
AT_ONCE = 16  # files asked about
CONNECTIONS = 32  # ranges asked for at once by one process
WAITS = (0.2, 1.0, 5.0, 15.0)  # seconds before a range is asked for again
SYSTEMS = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs"}  # what fsspec needs, by how a path begins
AGAIN = "Nothing is lost: the same command goes on when it can be had again."
FOR_GOOD = (http.Unsuitable, FileNotFoundError, PermissionError)
TAGS = ("ETag", "etag", "mtime", "LastModified", "Last-Modified", "created")

_thread = threading.local()  # in one of `side_by_side`: `ended`, whether nobody waits for its answer any more
S = TypeVar("S")
T = TypeVar("T")


def is_remote(path: str) -> bool:
    """Whether a path names a file system."""
    return "://" in path


def open_remote(path: str, file: Identity) -> BinaryIO:
    """A file to read from its beginning."""
    return io.BufferedReader(_Ranges(path, file), RANGE)


class _Ranges(io.RawIOBase):
    """A file that lies elsewhere, read where it is asked for: in ever larger ranges while what is asked for lies near
    the last one, as headers of small members do."""

    def __init__(self, path: str, file: Identity) -> None:
        self._path, self._file, self._at, self._end, self._asked = path, file, 0, 0, HEADERS // 2

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, location: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._file.size}[location]
        return self._at

    def readinto(self, buffer: Any) -> int:
        near = 0 <= self._at - self._end < NEAR
        self._asked = min(2 * self._asked, RANGE) if near else HEADERS
        size = max(0, min(self._asked, len(buffer), self._file.size - self._at))
        if size:
            buffer[:size] = read_range(self._path, self._at, size, self._file)
            self._at = self._end = self._at + size
        return size


def identity(path: str) -> Identity:
    """Size in bytes, and what else tells that a file is still the same: its tag or its date, where there is one. Raises
    UserError when it or ranges of it cannot be had, Interrupted when the network or the server fail, also when asked
    again."""
    if _is_http(path):
        return beginning(path, 1)[1]
    system, name = _system(path)
    return _tried(path, lambda: _info(system, name), for_good=FOR_GOOD)


def beginning(path: str, size: int) -> tuple[bytes, Identity]:
    """The first bytes of a file, all where it has fewer, and its `identity`. Raises as that."""
    if _is_http(path):
        system, name = _system(path)
        return _tried(path, lambda: http.read(system, name, 0, size), for_good=FOR_GOOD)
    file = identity(path)
    return read_range(path, 0, min(size, file.size), file), file


def whole_file(path: str) -> bytes | None:
    """The bytes of a small file, None where it is not there or may not be read. Raises Interrupted when the network or
    the server fail, also when asked again."""
    try:
        data, file = beginning(path, RANGE)
    except Interrupted:
        raise
    except UserError:
        return None
    return data + read_range(path, len(data), file.size - len(data), file)


def _info(system: Any, name: str) -> Identity:
    info = system.info(name)
    if info.get("size") is None:
        raise http.Unsuitable("its size is not known")
    tag = next((info[key] for key in TAGS if info.get(key)), "")
    return Identity(int(info["size"]), str(tag))


def identities(paths: Sequence[str]) -> list[Identity]:
    """`identity` of many files, asked for side by side."""
    return list(side_by_side(identity, paths))


def side_by_side(ask: Callable[[S], T], whom: Iterable[S]) -> Iterator[T]:
    """The answers for each, in order, of AT_ONCE asked at a time. Where the caller ends early, no more are asked, and
    those being asked ask for no more."""
    ended = threading.Event()
    pool = ThreadPoolExecutor(AT_ONCE, initializer=partial(setattr, _thread, "ended", ended))
    try:
        yield from pool.map(ask, whom)
    finally:
        ended.set()
        pool.shutdown(wait=False, cancel_futures=True)


@functools.lru_cache(maxsize=4096)
def identity_seen_by(pid: int, path: str) -> Identity:
    """`identity`, asked for once per process."""
    return identity(path)


def read_range(path: str, start: int, size: int, file: Identity) -> bytes:
    """Read a range of a file, unchanged since it was indexed: skipped images must not depend on the network. Raises
    UserError when it is another file by now, Interrupted when it cannot be had, also when asked for again."""
    if not size:
        return b""
    system, name = _system(path)
    if _is_http(path):
        return _tried(path, lambda: http.read(system, name, start, size, file)[0])
    if identity_seen_by(os.getpid(), path) != file:
        raise _changed(path)
    return _tried(path, lambda: _cut(system, name, start, size))


def _cut(system: Any, name: str, start: int, size: int) -> bytes:
    data = bytes(system.cat_file(name, start=start, end=start + size))
    if len(data) != size:
        raise ValueError(f"asked for {size:,} bytes, was sent {len(data):,}")
    return data


class Piece(NamedTuple):
    """A part of a file, as `read_range` takes it."""

    path: str
    start: int
    size: int
    file: Identity


class _Range:
    """Neighbouring pieces of a file, read at once."""

    def __init__(self, first: Piece) -> None:
        self.path, self.start, _, self.file = first
        self.end, self.left = self.start, 0  # `left`: how many are still to be taken
        self.coming: Future[bytes] | None = None

    def takes(self, piece: Piece) -> bool:
        """Whether a piece that begins later is worth one range with these."""
        whole = piece.start + piece.size - self.start
        return piece.path == self.path and piece.start - self.end <= GAP and whole <= RANGE

    def add(self, piece: Piece) -> None:
        self.end, self.left = max(self.end, piece.start + piece.size), self.left + 1


class Ahead:
    """Pieces of remote files that are read side by side before they are taken, neighbours in one range, at most about
    HELD bytes at a time.

    Args:
        pieces: in the order in which they will be taken.
        connections: the most ranges asked for at once.
    """

    def __init__(self, pieces: Sequence[Piece], connections: int) -> None:
        self._threads, self._held = _threads_of(os.getpid(), connections), 0
        self._ranges = joined(pieces)
        self._waiting = deque(dict.fromkeys(self._ranges[piece] for piece in pieces))
        self._begin()

    def take(self, piece: Piece) -> bytes:
        """The bytes of a piece, read now where they were not to come. Raises as `read_range`."""
        whole = self._ranges.get(piece)
        if whole is None or not whole.left:
            return read_range(*piece)
        coming = whole.coming or self._ask(whole)
        start = piece.start - whole.start
        data = coming.result()[start : start + piece.size]
        whole.left -= 1
        if not whole.left:
            whole.coming, self._held = None, self._held - (whole.end - whole.start)
            self._begin()
        return data

    def _begin(self) -> None:
        """Ask for the next ranges, as many as may be held."""
        while self._waiting and self._held + self._waiting[0].end - self._waiting[0].start <= HELD:
            whole = self._waiting.popleft()
            if whole.left and whole.coming is None:
                self._ask(whole)

    def _ask(self, whole: _Range) -> Future[bytes]:
        size = whole.end - whole.start
        self._held += size
        whole.coming = self._threads.submit(read_range, whole.path, whole.start, size, whole.file)
        return whole.coming

    def __del__(self) -> None:
        for whole in self._ranges.values():
            if whole.coming is not None:
                whole.coming.cancel()


def joined(pieces: Sequence[Piece]) -> dict[Piece, _Range]:
    """The range in which each piece is read."""
    ranges: dict[Piece, _Range] = {}
    whole = None
    for piece in sorted(pieces):
        if whole is None or not whole.takes(piece):
            whole = _Range(piece)
        whole.add(piece)
        ranges[piece] = whole
    return ranges


@functools.lru_cache(maxsize=4)
def _threads_of(pid: int, number: int) -> ThreadPoolExecutor:
    """Threads of this process: they do not outlive a fork."""
    return ThreadPoolExecutor(number)


def _tried(path: str, read: Callable[[], T], for_good: tuple[type[Exception], ...] = ()) -> T:
    """Call `read`, again after a while unless an error is `for_good`: networks and servers fail."""
    for wait in (*WAITS, None):
        if (ended := getattr(_thread, "ended", None)) is not None and ended.is_set():
            raise Stopped("nobody waits for the answer")
        try:
            return read()
        except http.Changed:
            raise _changed(path) from None
        except for_good as error:
            raise UserError(f"{path!r} cannot be read: {first_line(error)}. Mend the address or the rights.") from error
        except Exception as error:  # every file system raises its own
            if wait is None:
                raise Interrupted(f"{path!r} cannot be read: {first_line(error)}. {AGAIN}") from error
        time.sleep(wait)
    raise AssertionError("the last try raises")


def _changed(path: str) -> UserError:
    return UserError(f"{path!r} has changed since it was indexed. Start again: its pictures are looked for anew")


def _is_http(path: str) -> bool:
    return path.startswith(("http://", "https://"))


def matching(path: str) -> Sequence[str]:
    """The files that a path with `*` names, sorted; the path itself where there is none. Raises UserError when the file
    system does not say, or (Interrupted) cannot be asked."""
    if "*" not in path:
        return [path]
    system, name = _system(path)
    found = _tried(path, lambda: system.glob(name), for_good=(FileNotFoundError, PermissionError, NotImplementedError))
    return sorted(map(system.unstrip_protocol, found))


def _system(path: str) -> tuple[Any, str]:
    return _system_of(os.getpid(), path)


@functools.lru_cache(maxsize=4096)
def _system_of(pid: int, path: str) -> tuple[Any, str]:
    """fsspec's file system of a path, one per process: connections do not outlive a fork."""
    try:
        import fsspec
    except ImportError as error:
        raise UserError(f"{path!r} needs fsspec: pip install 'fsspec[http]'") from error
    try:
        system, name = fsspec.core.url_to_fs(path)
    except ImportError as error:
        package = SYSTEMS.get(path.partition(":")[0])
        advice = f"pip install {package}" if package else first_line(error)
        raise UserError(f"{path!r} needs a library that is not installed: {advice}") from error
    except OSError as error:  # some connect at once
        raise Interrupted(f"{path!r} cannot be reached: {first_line(error)}. {AGAIN}") from error
    except Exception as error:  # every file system raises its own
        raise UserError(f"{path!r} cannot be reached: {first_line(error)}. Mend the address or the rights.") from error
    return system, name
