"""YAML events to plain data with lines. Anchors, aliases and tags are refused while the stream is read."""

from __future__ import annotations

import math
import re
from typing import Any

from ruamel.yaml import YAML, events
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.reader import ReaderError

from unlabeled.recipe.faults import Fault, Place, show

MAX_DEPTH = 32

_NULL = {"", "~", "null", "Null", "NULL"}
_BOOLEAN = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INTEGER = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_NUMBER = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")

# stands for a value that was refused: pydantic may complain about it, and that complaint is dropped
REFUSED = math.nan


class Unreadable(Exception):
    """What stops the reading: a syntax error and the like."""

    def __init__(self, message: str, line: int) -> None:
        super().__init__(message)
        self.message, self.line = message, line


def resolve(text: str) -> bool | int | float | str | None:
    """A plain scalar by YAML 1.2's core schema (section 10.3.2)."""
    if text in _NULL:
        return None
    if text in _BOOLEAN:
        return _BOOLEAN[text]
    if _INTEGER.fullmatch(text):
        return _integer(text)
    if _NUMBER.fullmatch(text):
        return float(text)
    return math.nan if _NOT_FINITE.fullmatch(text) else text


def _integer(text: str) -> int | float:
    try:
        value = int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))
    except ValueError:  # Python refuses thousands of digits
        return math.inf
    # no float holds it, so a field of floats would see infinity
    return value if value.bit_length() <= 1023 else math.inf


class Reader:
    """Builds plain data out of YAML events, noting the line of every place and what is refused."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.events = YAML(typ="safe", pure=True).parse(text)
        self.lines: dict[Place, int] = {}
        self.faults: list[Fault] = []
        self.refused: set[Place] = set()

    def read(self) -> Any:
        """The document's data, None when there is none. Raises Unreadable."""
        try:
            return self.document()
        except MarkedYAMLError as error:
            line = min(error.problem_mark.line + 1, len(self.text.splitlines()))
            begun = error.context_mark and error.context_mark.line != error.problem_mark.line
            since = f" begun on line {error.context_mark.line + 1}" if begun else ""
            context = f" ({error.context}{since})" if error.context else ""
            raise Unreadable(f"not YAML: {error.problem}{context}", line) from None
        except ReaderError as error:
            line = self.text.count("\n", 0, error.position) + 1
            raise Unreadable(f"not YAML: a character {chr(error.character)!r}", line) from None
        except (YAMLError, ValueError, OverflowError) as error:  # an escape such as "\ud800" or "\UFFFFFFFF"
            line = max(self.lines.values(), default=1)
            raise Unreadable(f"not YAML, here or just below: {error}", line) from None

    def document(self) -> Any:
        next(self.events)
        start = next(self.events)
        if isinstance(start, events.StreamEndEvent):
            return {}
        if start.version or start.tags:
            raise Unreadable("recipes are plain YAML 1.2: remove the line that begins with %", 1)
        data = self.node(next(self.events), ())
        next(self.events)
        if not isinstance(after := next(self.events), events.StreamEndEvent):
            raise Unreadable("a recipe is one document: remove what follows ---", after.start_mark.line + 1)
        return data

    def node(self, event: Any, place: Place) -> Any:
        line = event.start_mark.line + 1
        self.lines.setdefault(place, line)
        if len(place) > MAX_DEPTH:
            raise Unreadable(f"nested more than {MAX_DEPTH} levels deep", line)
        if isinstance(event, events.AliasEvent):
            return self.refuse(place, f"recipes are plain: no alias *{event.anchor}. Write it out", line)
        if event.anchor:
            self.fault(place, f"recipes are plain: no anchors. Remove &{event.anchor}", line)
        if isinstance(event, events.MappingStartEvent):
            value: Any = self.mapping(place)
        elif isinstance(event, events.SequenceStartEvent):
            value = self.sequence(place)
        else:
            plain = resolve(event.value) if event.implicit[0] else event.value
            value = self.check(plain, event.value, place, line)
        if event.tag:
            tag = str(event.tag).replace("tag:yaml.org,2002:", "!!")
            return self.refuse(place, f"recipes are plain: no tags. Remove {tag}", line)
        return value

    def check(self, value: Any, text: str, place: Place, line: int) -> Any:
        if isinstance(value, float) and not math.isfinite(value):
            return self.refuse(place, f"expected a finite number, found {text[:60]}", line)
        if isinstance(value, str) and any("\ud800" <= c <= "\udfff" for c in value):
            return self.refuse(place, f"expected Unicode text, found {value!r}", line)
        return value

    def sequence(self, place: Place) -> list[Any]:
        items: list[Any] = []
        while not isinstance(event := next(self.events), events.SequenceEndEvent):
            items.append(self.node(event, (*place, len(items))))
        return items

    def mapping(self, place: Place) -> dict[str, Any]:
        items: dict[str, Any] = {}
        while not isinstance(event := next(self.events), events.MappingEndEvent):
            line = event.start_mark.line + 1
            key = self.node(event, (*place, "?"))
            if not isinstance(key, str):
                if key is not REFUSED:
                    self.fault(place, f"expected names as keys, found {show(key)}. Quote it if it is a name", line)
                self.node(next(self.events), (*place, "?"))
                continue
            spot = (*place, key)
            if key in items:
                self.fault(spot, f"written twice, first on line {self.lines[spot]}", line)
            self.lines.setdefault(spot, line)
            items.setdefault(key, self.node(next(self.events), spot))
        return items

    def fault(self, place: Place, message: str, line: int) -> None:
        self.faults.append(Fault(place, message, line))

    def refuse(self, place: Place, message: str, line: int) -> float:
        self.fault(place, message, line)
        self.refused.add(place)
        return REFUSED
