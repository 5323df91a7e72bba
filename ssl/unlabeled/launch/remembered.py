"""Help texts that were shown before, so that `--help` need not import torch and timm again (seconds).

A text is kept in `~/.cache/unlabeled` with a key over the package's files, the machine's cores and the width of the
terminal: after any change it is made anew.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path

from unlabeled.files import write_text

PACKAGE = Path(__file__).parents[1]
FLAGS = ("-h", "--help")


def recall(program: str, words: Sequence[str]) -> str | None:
    """The text that a command line of only `--help` or `--help SECTION` shows; None = it has to be made."""
    if not _is_help(words):
        return None
    with suppress(OSError, ValueError, RuntimeError):
        key, _, text = _file(program, words).read_text(encoding="utf-8").partition("\n")
        return text if key == _key() else None
    return None


def keep(program: str, words: Sequence[str], text: str) -> None:
    """Keep a text for `recall`; a disk that cannot be written is no reason to fail."""
    if _is_help(words):
        with suppress(OSError, RuntimeError):
            write_text(_file(program, words), f"{_key()}\n{text}")


def _is_help(words: Sequence[str]) -> bool:
    return 0 < len(words) < 3 and words[0] in FLAGS and not (len(words) == 2 and os.path.exists(words[1]))


def _file(program: str, words: Sequence[str]) -> Path:
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "unlabeled"
    section = blake2b(" ".join(words[1:]).encode(), digest_size=8).hexdigest()
    return folder / f"help-{program}-{section}.txt"


def _key() -> str:
    """Digest of everything that a help text depends on."""
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    parts = [f"{PACKAGE} {cores} {os.environ.get('LOCAL_WORLD_SIZE')} {shutil.get_terminal_size().columns}"]
    for file in sorted(PACKAGE.rglob("*.py")):
        found = file.stat()
        parts.append(f"{file.relative_to(PACKAGE)} {found.st_size} {found.st_mtime_ns}")
    return blake2b("\n".join(parts).encode(), digest_size=16).hexdigest()
