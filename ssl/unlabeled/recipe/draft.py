"""A recipe as it stands: the file's data, what the command line changed, and the faults of both."""

from __future__ import annotations

import json
from collections.abc import Iterator
from copy import deepcopy
from functools import lru_cache
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from unlabeled.recipe.explain import complaint, follow, missing, telling
from unlabeled.recipe.faults import COMMAND_LINE, WHOLE_FILE, Fault, Place, dotted, look_up, show
from unlabeled.recipe.kinds import Kind, default_of, kind_at, tagged, takes_text
from unlabeled.recipe.reader import REFUSED, Reader, Unreadable, resolve
from unlabeled.recipe.renamed import moves, say

R = TypeVar("R", bound=BaseModel)


@lru_cache(8)  # a program reads its recipe several times before it begins
def _read(text: str) -> tuple[Any, dict[Place, int], list[Fault], set[Place]]:
    """The data of a YAML text, `REFUSED` where there are none, its lines, its faults and what is refused: to copy."""
    reader = Reader(text)
    try:
        data = reader.read()
    except Unreadable as error:
        data = REFUSED
        reader.faults.append(Fault((), error.message, error.line))
    return data, reader.lines, reader.faults, reader.refused


class Draft:
    """The data of a YAML text with all faults found so far. `readable` is False where no data could be had."""

    def __init__(self, text: str) -> None:
        data, lines, faults, refused = _read(text)
        self.data: dict[str, Any] = {}
        self.lines, self.faults, self.refused = dict(lines), list(faults), set(refused)
        self.typed: dict[Place, str] = {}
        self.switched: dict[Place, str | None] = {}
        self.readable = False
        if isinstance(data, dict):
            self.data, self.readable = deepcopy(data), True
            self.rename()
        elif data is not REFUSED:
            self.faults.append(Fault((), f"expected a mapping of fields, found {show(data)}", self.lines[()]))

    def override(self, argument: str) -> None:
        """Apply one `a.b=value`."""
        path, equals, text = argument.partition("=")
        names = path.strip().split(".")
        if not equals or not all(names) or not path.isprintable():
            quotes = "" if equals else ". A value with blanks stands in quotes: 'data.path=/my pictures'"
            message = f"expected FIELD=VALUE such as train.epochs=10, found {argument!r}{quotes}"
            self.faults.append(Fault((), message, COMMAND_LINE))
            return
        try:
            place = self.make_way(names)
        except LookupError as error:
            self.faults.append(Fault(tuple(names), str(error.args[0]), COMMAND_LINE))
            return
        self.forget(place)
        self.put(place, self.value(text.strip(), place), COMMAND_LINE)
        self.typed[place] = text.strip()

    def put(self, place: Place, value: Any, line: int) -> None:
        """Set a place in a section that is there, and note which kind the section was of."""
        self.lines[place] = line
        before = look_up(self.data, place)
        if place[-1] == "name" and line == COMMAND_LINE and isinstance(before, str | None):
            self.switched.setdefault(place[:-1], before)
        look_up(self.data, place[:-1])[place[-1]] = value

    def rename(self) -> None:
        """Take what stands under an old name to its new place."""
        for old, new, value, note in moves(self.data):
            if new is None:
                self.forget(old)
                del look_up(self.data, old[:-1])[old[-1]]
                continue
            line = self.line(old)
            if line != COMMAND_LINE and new != old and look_up(self.data, new) is not None:
                self.faults.append(Fault(old, f"is now {dotted(new)}, which is there too. Remove one of them", line))
                continue
            place = self.make_way([str(name) for name in new], line)
            self.forget(place)
            self.put(place, value, line)
            self.lines |= {place + spot[len(old) :]: n for spot, n in self.lines.items() if spot[: len(old)] == old}
            self.refused |= {place + spot[len(old) :] for spot in self.refused if spot[: len(old)] == old}
            if old in self.typed:
                self.typed[place] = self.typed[old]
            if note:
                say(note)

    def value(self, text: str, place: Place) -> Any:
        """What an override sets `place` to."""
        reader = Reader(text)
        # nothing else begins YAML that is meant on a command line: `*.tar` is a glob there, not an alias
        quoted = text.startswith(("[", "{", '"', "'"))
        try:
            value = reader.read() if quoted else reader.check(resolve(text), text, (), COMMAND_LINE)
        except Unreadable:
            value = reader.check(text, text, (), COMMAND_LINE)
        self.faults += [Fault(place + f.place, f.message, COMMAND_LINE) for f in reader.faults]
        self.refused |= {place + inner for inner in reader.refused}
        return value

    def drop_old_variants(self, schema: type[BaseModel]) -> None:
        """Where the command line gave a section another `name`, drop the file's fields that only the old one has."""
        for place, name in sorted(self.switched.items(), key=lambda item: len(item[0])):
            section, kind = look_up(self.data, place), kind_at(schema, place, self.data)
            variants, before = tagged(kind), name or default_of(kind)
            if not (isinstance(section, dict) and before in variants and section.get("name") in variants):
                continue
            gone = variants[before].model_fields.keys() - variants[section["name"]].model_fields.keys()
            given = {spot[: len(place) + 1] for spot, line in self.lines.items() if line == COMMAND_LINE}
            for field in gone & section.keys():
                if (*place, field) not in given:
                    del section[field]
                    self.forget((*place, field))

    def make_way(self, names: list[str], line: int = COMMAND_LINE) -> Place:
        """The place that `names` point to, with the mappings that lead there. Raises LookupError."""
        node: Any = self.data
        place: Place = ()
        for name in names:
            if node is None:
                node = look_up(self.data, place[:-1])[place[-1]] = {}
                self.lines.setdefault(place, line)
            place = (*place, _key(node, name, place))
            node = node.get(name) if isinstance(node, dict) else node[place[-1]]
        return place

    def forget(self, place: Place) -> None:
        """Drop the lines and the refusals of what is replaced."""
        self.lines = {old: line for old, line in self.lines.items() if old[: len(place)] != place}
        self.refused = {old for old in self.refused if old[: len(place)] != place}
        self.switched = {old: name for old, name in self.switched.items() if old[: len(place)] != place}

    def line(self, place: Place) -> int:
        """The line that decided `place`: its own, or that of what holds it."""
        while place and place not in self.lines:
            place = place[:-1]
        return self.lines.get(place, WHOLE_FILE) if place else WHOLE_FILE

    def validate(self, schema: type[R]) -> R | None:
        """The data as a `schema`, or None and more faults."""
        try:
            # JSON's strict mode takes lists for tuples and integers for floats, and converts nothing else
            return schema.model_validate_json(json.dumps(self.data), strict=True)
        except ValidationError as invalid:
            for error in telling(invalid.errors(include_url=False)):
                for fault in self.explain(schema, error):
                    # of what was refused already, more complaints would be noise
                    if not any(fault.place[:n] in self.refused for n in range(len(fault.place) + 1)):
                        self.faults.append(fault)
            return None

    def explain(self, schema: type[BaseModel], error: ErrorDetails) -> Iterator[Fault]:
        """One error of pydantic in plain words."""
        if error["type"] == "default_factory_not_called":  # a default that follows from a field with a fault of its own
            return
        spot = follow(schema, error["loc"], self.data)
        if spot is None:
            return
        place, kind, owner, whole = spot
        reason, found = error["type"], look_up(self.data, place) if whole else error["input"]
        if reason == "missing" and owner is not None:
            yield from missing(place, owner.model_fields[str(place[-1])])
            return
        if reason == "missing" and not whole:  # an element of a tuple: what was found is the whole of it
            place, kind, *_ = follow(schema, error["loc"][:-1], self.data) or spot
        if reason.startswith("union_tag"):
            place, kind = (*place, "name"), Kind(Literal[tuple(tagged(kind))], ())
            found = found.get("name")
        hint = self.quoting(place, found, owner) if takes_text(kind) else ""
        if reason == "extra_forbidden":
            section = tagged(kind_at(schema, place[:-1], self.data))
            having = [name for name, model in section.items() if place[-1] in model.model_fields]
            hint = f". {', '.join(having)} {'have' if len(having) > 1 else 'has'} it" if having else ""
        yield Fault(place, complaint(error, kind, found, owner) + hint, self.line(place))

    def quoting(self, place: Place, found: object, owner: type[BaseModel] | None) -> str:
        """How to say that a value is text, where YAML reads it as something else."""
        typed = self.typed.get(place)
        if typed is not None and not isinstance(found, str | dict | list):
            empty = "" if typed else ", which an empty value is"
            meaning = owner.model_fields[str(place[-1])].description if owner and not typed else None
            return f"{empty}. Quotes make it text: {dotted(place)}='\"{typed}\"'{f' ({meaning})' if meaning else ''}"
        return f'. Quotes make it text: "{show(found)}"' if isinstance(found, int | float) else ""


def _key(node: Any, name: str, place: Place) -> str | int:
    if isinstance(node, dict):
        return name
    if not isinstance(node, list):
        raise LookupError(f"{dotted(place)} is {show(node)}, which has no fields")
    if not (name.isdecimal() and len(name) < 6 and int(name) < len(node)):
        raise LookupError(f"{dotted(place)} has {len(node)} elements, counted from 0, and no {name!r}")
    return int(name)
