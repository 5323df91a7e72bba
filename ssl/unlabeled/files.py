"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """A path beside `file` to write to, which takes its place when all is written; after an error it does not."""
    temporary = file.with_suffix(".writing")
    yield temporary
    os.replace(temporary, file)
