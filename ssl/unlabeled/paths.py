"""Paths of recipes and options, where `~` is the home folder."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field


def expand(path: str) -> str:
    """Replace a leading `~` or `~name`, also after words with colons: `mae:~/x.pth`, `package.module:name:~/x`.

    Raises ValueError at a NUL.
    """
    if "\0" in path:
        raise ValueError(f"a path without NUL is expected, found {path!r}")
    words = re.findall(r"^(?:[\w.]+:)*", path)[0]
    return words + os.path.expanduser(path.removeprefix(words))


def user_path(text: str) -> Path:
    """The path in an option of the command line."""
    return Path(expand(text))


UserPath = Annotated[str, Field(min_length=1), AfterValidator(expand)]
