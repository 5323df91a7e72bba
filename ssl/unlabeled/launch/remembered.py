"""Texts of `--help SECTION` that were shown before, so that torch and timm need not be imported again (seconds).

A text is kept in `~/.cache/unlabeled` with a key over the package's files, the machine's cores and the width of the
terminal: after any change it is made anew.
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path

from unlabeled.files import write_text

PACKAGE = Path(__file__).parents[1]


def recall(program: str, section: str) -> str | None:
    """The text that `--help SECTION` of a program shows; None = it has to be made."""
    with suppress(OSError, ValueError, RuntimeError):
        key, _, text = _file(program, section).read_text(encoding="utf-8").partition("\n")
        return text if key == _key() else None
    return None


def keep(program: str, section: str, text: str) -> None:
    """Keep a text for `recall`; a disk that cannot be written is no reason to fail."""
    with suppress(OSError, RuntimeError):
        write_text(_file(program, section), f"{_key()}\n{text}")


def _file(program: str, section: str) -> Path:
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "unlabeled"
    return folder / f"help-{program}-{blake2b(section.encode(), digest_size=8).hexdigest()}.txt"


def _key() -> str:
    """Digest of everything that a help text depends on."""
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    parts = [f"{PACKAGE} {cores} {os.environ.get('LOCAL_WORLD_SIZE')} {shutil.get_terminal_size().columns}"]
    for file in sorted(PACKAGE.rglob("*.py")):
        found = file.stat()
        parts.append(f"{file.relative_to(PACKAGE)} {found.st_size} {found.st_mtime_ns}")
    return blake2b("\n".join(parts).encode(), digest_size=16).hexdigest()
