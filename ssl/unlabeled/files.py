"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from unlabeled.errors import UserError


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """A path beside `file` to write to, which takes its place when all is written; after an error it does not."""
    temporary = file.with_suffix(".writing")
    yield temporary
    os.replace(temporary, file)


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


def write_text(file: Path, text: str) -> None:
    """A file of text, whole or not at all, and the folders above it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as temporary:
        temporary.write_text(text, encoding="utf-8")
