"""What is wrong with a recipe, and where: places, values and faults in words."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable
from enum import Enum
from pathlib import PurePath
from typing import Any, NamedTuple

from pydantic import BaseModel

from unlabeled.errors import UserError

Place = tuple[str | int, ...]

WHOLE_FILE, COMMAND_LINE = 0, -1  # where a mistake is, if not on a line of the file


class RecipeError(UserError):
    """All mistakes of a recipe, one on each line: file and line, field, what was found, what was expected."""


class Fault(NamedTuple):
    """What is wrong with a field, and the line that says so (or `WHOLE_FILE`, `COMMAND_LINE`)."""

    place: Place
    message: str
    line: int


def report(faults: Iterable[Fault], where: str) -> RecipeError:
    """All faults in one error, in the order of the file, the command line last."""
    ordered = sorted(dict.fromkeys(faults), key=lambda fault: (fault.line == COMMAND_LINE, fault.line))
    special = {COMMAND_LINE: "command line", WHOLE_FILE: where}
    origins = [special.get(fault.line, f"{where}:{fault.line}") for fault in ordered]
    width = max(map(len, origins))
    lines = (
        f"{origin:<{width}}  {dotted(fault.place)}{': ' if fault.place else ''}{fault.message}"
        for origin, fault in zip(origins, ordered, strict=True)
    )
    return RecipeError("\n".join(lines))


def dotted(place: Place) -> str:
    """A place as a recipe names it: `optim.lr`."""
    return ".".join(part if str(part).isprintable() else repr(part) for part in map(str, place))


def look_up(data: Any, place: Place) -> Any:
    """What `data` holds at `place`; None beyond its end."""
    try:
        return functools.reduce(lambda node, key: node[key], place, data)
    except (LookupError, TypeError):
        return None


def show(value: object, width: int = 60) -> str:
    """A value as a recipe would hold it, in one line, shortened to `width` characters."""
    if isinstance(value, BaseModel):
        value = value.model_dump()
    if isinstance(value, Enum):
        value = value.value
    if value is None or isinstance(value, bool):
        text = json.dumps(value)
    elif isinstance(value, dict):
        text = "{" + ", ".join(f"{dotted((key,))}: {show(item)}" for key, item in value.items()) + "}"
    elif isinstance(value, list | tuple | set | frozenset):
        text = "[" + ", ".join(show(item) for item in value) + "]"
    else:
        text = repr(str(value)) if isinstance(value, str | PurePath) else repr(value)
    return text if len(text) <= width else text[: width - 3] + "..."
