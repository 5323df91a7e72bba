"""Read files of JSON lines that a run may still be writing: what was appended, or only their ends."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from unlabeled.files import json_object

BLOCK = 256 << 10  # bytes read and parsed at a time: other threads wait meanwhile
SEEN = 256  # bytes before the place where reading stopped; other ones there mean another file
END = 32 << 10  # bytes that `end` reads


class Growing:
    """A file of JSON lines, read on from where the last reading stopped."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._offset, self._seen = 0, b""

    def replaced(self) -> bool:
        """Whether the next reading begins at the start: the first one, and where the file was replaced, cut back or
        cannot be read."""
        try:
            with _open(self.file) as opened:
                opened.seek(self._offset - len(self._seen))
                goes_on = opened.read(len(self._seen)) == self._seen
        except OSError:
            goes_on = False
        if not goes_on:
            self._offset, self._seen = 0, b""
        return self._offset == 0

    def read(self) -> Iterator[list[dict[str, Any]]]:
        """Yield objects in blocks, {} for a broken line; a line without its end is left for the next reading."""
        rest = b""
        with suppress(OSError), _open(self.file) as opened:
            opened.seek(self._offset)
            while block := opened.read(BLOCK):
                lines, mark, rest = (rest + block).rpartition(b"\n")
                if mark:
                    self._offset += len(lines) + 1
                    self._seen = (self._seen + lines[-SEEN:] + mark)[-SEEN:]
                    yield _objects(lines.split(b"\n"))


def end(file: Path, size: int = END) -> list[dict[str, Any]]:
    """The objects at the end of a file of JSON lines, those that are broken or not ended yet left out; none where it
    cannot be read."""
    return [found for found in _objects(last_lines(file, size)) if found]


def last_lines(file: Path, size: int) -> list[bytes]:
    """The lines of the last `size` bytes of a file, those that are cut left out; none where it cannot be read."""
    try:
        with _open(file) as opened:
            start = max(0, opened.seek(0, os.SEEK_END) - size)
            opened.seek(start)
            lines = opened.read(size).split(b"\n")
    except OSError:
        return []
    return lines[1 if start else 0 : -1]


def _objects(lines: list[bytes]) -> list[dict[str, Any]]:
    """The object of each line, {} for a broken one."""
    try:
        found = json.loads(b"[%s]" % b",".join(lines))  # all at once is twice as fast
    except (ValueError, RecursionError):
        found = []
    if len(found) == len(lines) and all(isinstance(one, dict) for one in found):
        return found
    return [json_object(line) for line in lines]


def whole(file: Path, most: int = 1 << 20) -> dict[str, Any]:
    """The object of a JSON file of at most `most` bytes; {} where there is none."""
    return json_object(text(file, most).encode())


def text(file: Path, most: int = 1 << 20) -> str:
    """The first `most` bytes of a text file; '' where it cannot be read."""
    try:
        with _open(file) as opened:
            return opened.read(most).decode(errors="replace")
    except OSError:
        return ""


def finite(value: object) -> float | None:
    """A finite number, also one written as text; None where there is none."""
    number = math.nan
    if isinstance(value, int | float | str) and not isinstance(value, bool):
        with suppress(ValueError, OverflowError):
            number = float(value)
    return number if math.isfinite(number) else None


def _open(file: Path) -> BinaryIO:
    """Open a regular file; a pipe of that name might never end. Raises OSError."""
    if not file.is_file():
        raise FileNotFoundError(file)
    return file.open("rb")
