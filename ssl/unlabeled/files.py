"""Write files and folders whole or not at all; lock a folder; read files of JSON lines that a crash may have cut."""

from __future__ import annotations

import csv
import ctypes
import errno
import fcntl
import json
import logging
import os
import platform
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, BinaryIO

from unlabeled.errors import UserError

LOCK = ".lock"
WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
log = logging.getLogger(__name__)


@contextmanager
def replacing(file: Path, several: bool = False) -> Iterator[Path]:
    """Yield a path beside `file` to write to; rename it to `file` at the end, remove it after an error.

    With `several`, other processes may be writing the same file.
    """
    temporary = file.with_name(f".{file.name}.{os.getpid()}" if several else f"{file.name}.writing")
    try:
        yield temporary
        os.replace(temporary, file)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def write_text(file: Path, text: str) -> None:
    """Write a text file whole or not at all, making the folders above it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as temporary:
        temporary.write_text(text, encoding="utf-8")


def check_writable(files: Mapping[str, Path | None]) -> None:
    """Raise UserError when a file, by the option that named it, could not be written in the end."""
    for option, file in files.items():
        if file is None:
            continue
        if file.is_dir():
            raise UserError(f"{option} {file} is a folder; expected a file to write. Name one in it.")
        tried = file.with_name(f".{file.name}-tried")
        try:
            write_text(tried, "")
            tried.unlink()
        except OSError as error:
            raise UserError(f"{option} {file} cannot be written: {error.strerror}. Name another file.") from error


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """Yield a new folder beside `folder` to fill and flush; put it in place at the end, remove it after an error."""
    temporary = folder.with_name(f".{folder.name}-writing")
    try:
        remove(temporary)
        temporary.mkdir(parents=True)
        yield temporary
        replace_folder(temporary, folder)
    except BaseException:
        with suppress(OSError):
            remove(temporary)
        raise


def replace_folder(new: Path, old: Path) -> None:
    """Put a folder in the place of another by renaming alone, and flush that: a reader finds the one or the other.

    Where the system cannot exchange two names, `readable(old)` finds the old one meanwhile, also after a kill.
    """
    gone = new if _exchange(new, old) else former(old)
    if gone != new:
        if os.path.lexists(old):
            remove(gone)
            old.rename(gone)
        new.rename(old)
    sync(old.parent)
    with suppress(OSError):  # somebody may be reading it
        remove(gone)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two names in one step; return False where the system or the file system has no such step."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        return False
    here, exchange = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of Linux
    return libc.renameat2(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0


def former(folder: Path) -> Path:
    """The name of a folder while another takes its place, on systems that cannot exchange names."""
    return folder.with_name(f".{folder.name}-former")


def readable(folder: Path) -> Path:
    """The folder to read: `folder`, or its former self where replacing it was cut short."""
    return former(folder) if not os.path.lexists(folder) and former(folder).is_dir() else folder


def remove(path: Path) -> None:
    """Remove a file, a folder, or a link (never its target); do nothing where there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def flush(folder: Path) -> None:
    """Flush the files of a folder to disk, and its entries."""
    for file in folder.iterdir():
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
    sync(folder)


def sync(folder: Path) -> None:
    """Flush a folder's entries to disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def claim(folder: Path, field: str) -> IO[str]:
    """Make the folder that a recipe's `field` names; lock it as long as this process lives or the result is open.

    The file of the lock says who has it, see `claimant`. Some file systems of clusters have no locks: that is logged.

    Raises:
        UserError: it cannot be written to, or another process has it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / LOCK, "a+", encoding="utf-8")  # noqa: SIM115 - held until the process ends
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}. Choose another {field}.") from error
    try:
        # lockf, not flock: loader workers must not inherit it and hold it for seconds after a killed run
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in WITHOUT_LOCKS:
            lock.close()
            who = claimant(folder).rpartition(",")[0]
            said = f"another run is writing to {folder}{who and f' ({who})'}. Wait for it, stop it, or choose another "
            raise UserError(f"{said}{field}.") from error
        log.warning("%s has no locks (%s): start no second run there", folder, error.strerror)
    with suppress(OSError):  # a full disk is met where something worth writing is written
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {platform.node()}, {time.time_ns()}")
        lock.flush()
        os.fsync(lock.fileno())
    return lock


def claimant(folder: Path) -> str:
    """The process that claims a folder or did last, its machine, and when (ns); '' where this machine sees none.

    The process that has the folder must not ask: closing the file gives up its lock.
    """
    try:
        os.listdir(folder)  # a network file system may remember that there was no such file
        return (folder / LOCK).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""


def json_lines(file: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a file of JSON lines: none without a file, {} for a broken line. Raises UserError."""
    try:
        with file.open("rb") as lines:
            yield from map(json_object, lines)
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}. Move it away, or make it readable.") from error


def json_object(line: bytes) -> dict[str, Any]:
    """Parse the object on a line; {} where a crash, a full disk or a bad sector left none."""
    try:
        found = json.loads(line.decode())
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def end_line(file: BinaryIO) -> None:
    """End the last line of a file that is open in "ab+", where it was cut short."""
    if size := file.seek(0, os.SEEK_END):
        file.seek(size - 1)
    if file.read() not in (b"", b"\n"):
        file.write(b"\n")


def write_csv(file: Path, head: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a table whole or not at all; text that is no UTF-8 as it is, as tables are read."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as new, new.open("w", newline="", encoding="utf-8", errors="surrogateescape") as out:
        csv.writer(out).writerow(head)
        csv.writer(out).writerows(rows)
