"""Paths as people write them: `~` is a home folder, in every field of a recipe and every option alike."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field


def expand(path: str) -> str:
    """With `~` or `~name` at the beginning replaced; words with colons before it stay: `scratch:~/x`, `mae:~/x.pth`.

    Raises:
        ValueError: no file has such a name.
    """
    if "\0" in path:
        raise ValueError(f"a path without NUL is expected, found {path!r}")
    words = re.match(r"(\w+:)*", path)
    start = words.end() if words else 0
    return path[:start] + os.path.expanduser(path[start:])


def user_path(text: str) -> Path:
    """A path of the command line."""
    return Path(expand(text))


UserPath = Annotated[str, Field(min_length=1), AfterValidator(expand)]
