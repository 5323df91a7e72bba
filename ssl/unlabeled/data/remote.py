"""Files that lie elsewhere: `https://`, `s3://`, `gs://` and whatever else fsspec knows, read in ranges."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, BinaryIO, cast

from unlabeled.errors import UserError, first_line

HEADERS = 1 << 16  # bytes fetched at a time while headers are read
AT_ONCE = 16  # files asked about
WAITS = (0.2, 1.0, 5.0)  # seconds before a range is asked for again


def is_remote(path: str) -> bool:
    """Whether a path names a file system."""
    return "://" in path


def open_remote(path: str) -> BinaryIO:
    """A file to read from its beginning.

    Raises:
        UserError: it cannot be had.
    """
    system, name = _system(path)
    try:
        return cast(BinaryIO, system.open(name, "rb", block_size=HEADERS, cache_type="readahead"))
    except Exception as error:  # every file system raises its own
        raise UserError(f"{path!r} cannot be read: {first_line(error)}") from error


def identity(path: str) -> tuple[int, str]:
    """Size in bytes, and what else tells that a file is still the same: its tag or its date, where there is one.

    Raises:
        UserError: it cannot be had.
    """
    system, name = _system(path)
    try:
        info = system.info(name)
    except Exception as error:
        raise UserError(f"{path!r} cannot be read: {first_line(error)}") from error
    tag = next((info[key] for key in ("ETag", "etag", "mtime", "LastModified", "created") if info.get(key)), "")
    return int(info["size"]), str(tag)


def identities(paths: Sequence[str]) -> list[tuple[int, str]]:
    """`identity` of many files, asked for side by side."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(identity, paths))


@functools.lru_cache(maxsize=4096)
def identity_seen_by(pid: int, path: str) -> tuple[int, str]:
    """`identity`, asked for once per process."""
    return identity(path)


def read_range(path: str, start: int, size: int, waits: tuple[float, ...] = WAITS) -> bytes:
    """Some bytes of a file, tried a few times: which pictures are skipped must not depend on the network.

    Raises:
        UserError: they cannot be had.
    """
    system, name = _system(path)
    try:
        return bytes(system.cat_file(name, start=start, end=start + size))
    except Exception as error:
        if not waits:
            raise UserError(f"{path!r} cannot be read any more: {first_line(error)}") from error
    time.sleep(waits[0])
    return read_range(path, start, size, waits[1:])


def matching(path: str) -> Sequence[str]:
    """The files that a path with `*` names, sorted; the path itself where there is none.

    Raises:
        UserError: the file system cannot be asked.
    """
    if "*" not in path:
        return [path]
    system, name = _system(path)
    try:
        return sorted(system.unstrip_protocol(found) for found in system.glob(name))
    except Exception as error:
        raise UserError(f"{path!r} cannot be listed: {first_line(error)}") from error


def _system(path: str) -> tuple[Any, str]:
    return _system_of(os.getpid(), path)


@functools.lru_cache(maxsize=4096)
def _system_of(pid: int, path: str) -> tuple[Any, str]:
    """fsspec's file system of a path, one per process: connections do not outlive a fork."""
    try:
        import fsspec
    except ImportError as error:
        raise UserError(f"{path!r} needs fsspec: pip install 'unlabeled[data]'") from error
    try:
        system, name = fsspec.core.url_to_fs(path)
    except (ImportError, ValueError) as error:
        raise UserError(f"{path!r} cannot be reached: {first_line(error)}") from error
    return system, name
