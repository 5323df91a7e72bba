"""Paths of recipes and options, where `~` is the home folder."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field


def expand(path: str) -> str:
    """Replace `~` or `~name` at the beginning, also after words with colons: `scratch:~/x`, `mae:~/x.pth`.

    Raises:
        ValueError: the path holds a NUL.
    """
    if "\0" in path:
        raise ValueError(f"a path without NUL is expected, found {path!r}")
    words = re.match(r"(\w+:)*", path)
    start = words.end() if words else 0
    return path[:start] + os.path.expanduser(path[start:])


def user_path(text: str) -> Path:
    """The path in an option of the command line."""
    return Path(expand(text))


UserPath = Annotated[str, Field(min_length=1), AfterValidator(expand)]
