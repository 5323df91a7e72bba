"""Typed recipes: YAML and `a.b=value` overrides in, a frozen pydantic model out, every mistake at once.

A recipe is plain YAML 1.2 (core schema): mappings, lists, text, numbers, true, false and null. Anchors,
aliases and tags are refused while the event stream is read, so that nothing hostile is ever built.
"""

from __future__ import annotations

import difflib
import functools
import io
import json
import math
import re
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from enum import Enum
from itertools import zip_longest
from pathlib import Path, PurePath
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, TypeGuard, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticUndefined
from ruamel.yaml import YAML, events
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.reader import ReaderError
from ruamel.yaml.representer import SafeRepresenter

from unlabeled.errors import UserError

R = TypeVar("R", bound=BaseModel)
Place = tuple[str | int, ...]

MAX_BYTES = 1_000_000
MAX_DEPTH = 32
WIDTH = 100

# where a mistake is, if not on a line of the file
WHOLE_FILE = 0
COMMAND_LINE = -1


class RecipeError(UserError):
    """All mistakes of a recipe, one on each line: file and line, field, what was found, what was expected."""


def load(schema: type[R], path: str | Path, overrides: Sequence[str] = ()) -> R:
    """Read a recipe file.

    Args:
        schema: the frozen pydantic model that the file must fit.
        path: a UTF-8 YAML file of at most `MAX_BYTES` bytes.
        overrides: `a.b=value`, applied in order; the value is read as YAML, or as text where it is no YAML.
            A number picks an element of a list: `views.0.count=2`.

    Raises:
        RecipeError: listing everything wrong with the file, its fields and the overrides.
    """
    return parse(schema, _read(Path(path)), overrides, where=str(path))


def parse(schema: type[R], text: str, overrides: Sequence[str] = (), where: str = "recipe") -> R:
    """The same as `load` from text; `where` names it in errors."""
    document = _Document(text)
    for override in overrides:
        document.override(override)
    recipe = document.validate(schema) if document.readable else None
    if document.faults:
        raise _report(document.faults, where)
    assert recipe is not None
    return recipe


def dump(recipe: BaseModel) -> str:
    """YAML of all fields of a recipe, which `parse` reads back to an equal object."""
    yaml = YAML(typ="safe", pure=True)
    yaml.Representer = _Representer
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False
    stream = io.StringIO()
    yaml.dump(recipe.model_dump(mode="json", round_trip=True), stream)
    return stream.getvalue()


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except IsADirectoryError:
        raise RecipeError(f"{path}: expected a recipe file, found a folder") from None
    except FileNotFoundError:
        near = _suggest(path.name, [p.name for p in path.parent.glob("*.yaml")])
        raise RecipeError(f"{path}: no such recipe{near}") from None
    except (OSError, ValueError) as error:
        raise RecipeError(f"{path}: cannot be read: {error}") from None
    if len(content) > MAX_BYTES:
        raise RecipeError(f"{path}: larger than {MAX_BYTES:,} bytes, which no recipe is")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        found = f"{content[error.start]:#04x}"
        raise RecipeError(f"{path}:{line}  expected UTF-8 text, found byte {found}") from None


# faults: what is wrong, and where


class _Fault(NamedTuple):
    place: Place
    message: str
    line: int


def _report(faults: Iterable[_Fault], where: str) -> RecipeError:
    ordered = sorted(dict.fromkeys(faults), key=lambda fault: (fault.line == COMMAND_LINE, fault.line))
    origins = [_origin(fault.line, where) for fault in ordered]
    width = max(map(len, origins))
    lines = (
        f"{origin:<{width}}  {_dotted(fault.place)}{': ' if fault.place else ''}{fault.message}"
        for origin, fault in zip(origins, ordered, strict=True)
    )
    return RecipeError("\n".join(lines))


def _origin(line: int, where: str) -> str:
    return {COMMAND_LINE: "command line", WHOLE_FILE: where}.get(line, f"{where}:{line}")


def _dotted(place: Place) -> str:
    return ".".join(part if str(part).isprintable() else repr(part) for part in map(str, place))


def _show(value: object, width: int = 60) -> str:
    """A value as a recipe would hold it, in one line, shortened to `width` characters."""
    if isinstance(value, BaseModel):
        value = value.model_dump()
    if isinstance(value, Enum):
        value = value.value
    if value is None or isinstance(value, bool):
        text = json.dumps(value)
    elif isinstance(value, dict):
        text = "{" + ", ".join(f"{_dotted((key,))}: {_show(item)}" for key, item in value.items()) + "}"
    elif isinstance(value, list | tuple | set | frozenset):
        text = "[" + ", ".join(_show(item) for item in value) + "]"
    else:
        text = repr(str(value)) if isinstance(value, str | PurePath) else repr(value)
    return text if len(text) <= width else text[: width - 3] + "..."


def _suggest(word: object, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(str(word), list(names), n=1)
    return f". Did you mean {near[0]!r}?" if near else ""


# reading: YAML events to plain data with lines

_NULL = {"", "~", "null", "Null", "NULL"}
_BOOLEAN = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INTEGER = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_NUMBER = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")

# stands for a value that was refused: pydantic may complain about it, and that complaint is dropped
_REFUSED = math.nan


class _Unreadable(Exception):
    """What stops the reading: a syntax error and the like."""

    def __init__(self, message: str, line: int) -> None:
        super().__init__(message)
        self.message, self.line = message, line


def _resolve(text: str) -> bool | int | float | str | None:
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


class _Reader:
    """Builds plain data out of YAML events, noting the line of every place and what is refused."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.events = YAML(typ="safe", pure=True).parse(text)
        self.lines: dict[Place, int] = {}
        self.faults: list[_Fault] = []
        self.refused: set[Place] = set()

    def read(self) -> Any:
        """The document's data, None when there is none. Raises _Unreadable."""
        try:
            return self.document()
        except MarkedYAMLError as error:
            line = min(error.problem_mark.line + 1, len(self.text.splitlines()))
            raise _Unreadable(_syntax(error), line) from None
        except ReaderError as error:
            line = self.text.count("\n", 0, error.position) + 1
            raise _Unreadable(f"not YAML: a character {chr(error.character)!r}", line) from None
        except (YAMLError, ValueError, OverflowError) as error:  # an escape such as "\ud800" or "\UFFFFFFFF"
            line = max(self.lines.values(), default=1)
            raise _Unreadable(f"not YAML, here or just below: {error}", line) from None

    def document(self) -> Any:
        next(self.events)
        start = next(self.events)
        if isinstance(start, events.StreamEndEvent):
            return {}
        if start.version or start.tags:
            raise _Unreadable("recipes are plain YAML 1.2: remove the line that begins with %", 1)
        data = self.node(next(self.events), ())
        next(self.events)
        if not isinstance(after := next(self.events), events.StreamEndEvent):
            raise _Unreadable("a recipe is one document: remove what follows ---", after.start_mark.line + 1)
        return data

    def node(self, event: Any, place: Place) -> Any:
        line = event.start_mark.line + 1
        self.lines.setdefault(place, line)
        if len(place) > MAX_DEPTH:
            raise _Unreadable(f"nested more than {MAX_DEPTH} levels deep", line)
        if isinstance(event, events.AliasEvent):
            return self.refuse(place, f"recipes are plain: no alias *{event.anchor}. Write it out", line)
        if event.anchor:
            self.fault(place, f"recipes are plain: no anchors. Remove &{event.anchor}", line)
        value = self.content(event, place, line)
        if event.tag:
            return self.refuse(place, f"recipes are plain: no tags. Remove {_local(event.tag)}", line)
        return value

    def content(self, event: Any, place: Place, line: int) -> Any:
        if isinstance(event, events.MappingStartEvent):
            return self.mapping(place)
        if isinstance(event, events.SequenceStartEvent):
            return self.sequence(place)
        value = _resolve(event.value) if event.implicit[0] else event.value
        return self.check(value, event.value, place, line)

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
                self.odd_key(key, place, line)
                continue
            spot = (*place, key)
            if key in items:
                self.fault(spot, f"written twice, first on line {self.lines[spot]}", line)
            self.lines.setdefault(spot, line)
            value = self.node(next(self.events), spot)
            items.setdefault(key, value)
        return items

    def odd_key(self, key: Any, place: Place, line: int) -> None:
        if key is not _REFUSED:
            self.fault(place, f"expected names as keys, found {_show(key)}. Quote it if it is a name", line)
        self.node(next(self.events), (*place, "?"))

    def fault(self, place: Place, message: str, line: int) -> None:
        self.faults.append(_Fault(place, message, line))

    def refuse(self, place: Place, message: str, line: int) -> float:
        self.fault(place, message, line)
        self.refused.add(place)
        return _REFUSED


def _syntax(error: MarkedYAMLError) -> str:
    begun = error.context_mark and error.context_mark.line != error.problem_mark.line
    since = f" begun on line {error.context_mark.line + 1}" if begun else ""
    context = f" ({error.context}{since})" if error.context else ""
    return f"not YAML: {error.problem}{context}"


def _local(tag: object) -> str:
    return str(tag).replace("tag:yaml.org,2002:", "!!")


# the document: a file's data, what the command line changed, and the faults of both


class _Document:
    def __init__(self, text: str) -> None:
        reader = _Reader(text)
        self.data: dict[str, Any] = {}
        self.lines, self.faults, self.refused = reader.lines, reader.faults, reader.refused
        self.readable = False
        try:
            data = reader.read()
        except _Unreadable as error:
            self.faults.append(_Fault((), error.message, error.line))
            return
        if isinstance(data, dict):
            self.data, self.readable = data, True
        elif data is not _REFUSED:
            line = self.lines[()]
            self.faults.append(_Fault((), f"expected a mapping of fields, found {_show(data)}", line))

    def override(self, argument: str) -> None:
        """Apply one `a.b=value`."""
        path, equals, text = argument.partition("=")
        names = path.strip().split(".")
        if not equals or not all(names) or not path.isprintable():
            message = f"expected FIELD=VALUE such as optim.lr=0.1, found {argument!r}"
            self.faults.append(_Fault((), message, COMMAND_LINE))
            return
        try:
            place = self.make_way(names)
        except LookupError as error:
            self.faults.append(_Fault(tuple(names), str(error.args[0]), COMMAND_LINE))
            return
        self.forget(place)
        self.lines[place] = COMMAND_LINE
        _look_up(self.data, place[:-1])[place[-1]] = self.value(text.strip(), place)

    def value(self, text: str, place: Place) -> Any:
        reader = _Reader(text)
        # nothing else begins YAML that is meant on a command line: `*.tar` is a glob there, not an alias
        quoted = text.startswith(("[", "{", '"', "'"))
        try:
            value = reader.read() if quoted else reader.check(_resolve(text), text, (), COMMAND_LINE)
        except _Unreadable:
            value = reader.check(text, text, (), COMMAND_LINE)
        self.faults += [_Fault(place + f.place, f.message, COMMAND_LINE) for f in reader.faults]
        self.refused |= {place + inner for inner in reader.refused}
        return value

    def make_way(self, names: list[str]) -> Place:
        """The place that `names` point to, with the mappings that lead there. Raises LookupError."""
        node: Any = self.data
        place: Place = ()
        for name in names:
            if node is None:
                node = _look_up(self.data, place[:-1])[place[-1]] = {}
                self.lines.setdefault(place, COMMAND_LINE)
            place = (*place, _key(node, name, place))
            node = node.get(name) if isinstance(node, dict) else node[place[-1]]
        return place

    def forget(self, place: Place) -> None:
        """Drop the lines and the refusals of what an override replaces."""
        self.lines = {old: line for old, line in self.lines.items() if old[: len(place)] != place}
        self.refused = {old for old in self.refused if old[: len(place)] != place}

    def line(self, place: Place) -> int:
        """The line that decided `place`: its own, or that of what holds it."""
        while place and place not in self.lines:
            place = place[:-1]
        return self.lines.get(place, WHOLE_FILE) if place else WHOLE_FILE

    def validate(self, schema: type[R]) -> R | None:
        try:
            # JSON's strict mode takes lists for tuples and integers for floats, and converts nothing else
            return schema.model_validate_json(json.dumps(self.data), strict=True)
        except ValidationError as invalid:
            for error in invalid.errors(include_url=False):
                faults = self.explain(schema, error)
                self.faults += [fault for fault in faults if not self.covered(fault.place)]
            return None

    def covered(self, place: Place) -> bool:
        return any(place[:n] in self.refused for n in range(len(place) + 1))

    def explain(self, schema: type[BaseModel], error: ErrorDetails) -> Iterator[_Fault]:
        """One error of pydantic in plain words."""
        spot = _follow(schema, error["loc"], self.data)
        if spot is None:
            return
        place, kind, owner, whole = spot
        reason, found = error["type"], _look_up(self.data, place) if whole else error["input"]
        if reason == "missing" and owner is not None:
            yield from _missing(place, owner.model_fields[str(place[-1])])
            return
        if reason == "missing" and not whole:  # an element of a tuple: what was found is the whole of it
            place, kind, *_ = _follow(schema, error["loc"][:-1], self.data) or spot
        if reason.startswith("union_tag"):
            place, kind = (*place, "name"), _Kind(Literal[tuple(_tagged(kind))], ())
            found = found.get("name")
        yield _Fault(place, _message(error, kind, found, owner), self.line(place))


def _look_up(data: Any, place: Place) -> Any:
    """What `data` holds at `place`; None beyond its end."""
    try:
        return functools.reduce(lambda node, key: node[key], place, data)
    except (LookupError, TypeError):
        return None


def _key(node: Any, name: str, place: Place) -> str | int:
    if isinstance(node, dict):
        return name
    if not isinstance(node, list):
        raise LookupError(f"{_dotted(place)} is {_show(node)}, which has no fields")
    if not (name.isdecimal() and len(name) < 6 and int(name) < len(node)):
        raise LookupError(f"{_dotted(place)} has {len(node)} elements, counted from 0, and no {name!r}")
    return int(name)


# explaining: where an error of pydantic is, and what was expected there


class _Kind(NamedTuple):
    """An annotation without its wrapping, and the bounds that were wrapped around it."""

    type: Any
    rules: tuple[Any, ...]


class _Spot(NamedTuple):
    """A place in a recipe and what belongs there.

    Attributes:
        owner: the model whose field it is, if it is one.
        whole: whether pydantic pointed deeper, into members of a union of which none fits.
    """

    place: Place
    kind: _Kind
    owner: type[BaseModel] | None = None
    whole: bool = False


def _unwrap(annotation: Any, rules: tuple[Any, ...] = ()) -> _Kind:
    if get_origin(annotation) is not Annotated:
        return _Kind(annotation, rules)
    inner, *extra = get_args(annotation)
    more = (rule.metadata if isinstance(rule, FieldInfo) else [rule] for rule in extra)
    return _unwrap(inner, rules + tuple(rule for some in more for rule in some))


def _kind(field: FieldInfo) -> _Kind:
    return _unwrap(field.annotation, tuple(field.metadata))


def _members(kind: _Kind) -> list[_Kind]:
    """The alternatives of a union, flattened; the kind itself if it is none."""
    if get_origin(kind.type) not in (Union, UnionType):
        return [kind]
    return [member for inner in get_args(kind.type) for member in _members(_unwrap(inner, kind.rules))]


def _is_model(kind: _Kind) -> bool:
    return isinstance(kind.type, type) and issubclass(kind.type, BaseModel)


def _tagged(kind: _Kind) -> dict[str, type[BaseModel]]:
    """The models of a union discriminated by `name`, by their names; empty for other kinds."""
    models = [member.type for member in _members(kind) if _is_model(member)]
    if len(models) < 2 or not all("name" in model.model_fields for model in models):
        return {}
    return {tag: model for model in models for tag in get_args(model.model_fields["name"].annotation)}


def _inner(kind: _Kind, key: str | int) -> _Kind:
    """The kind of a field or an element."""
    if _is_model(kind):
        fields = kind.type.model_fields
        return _kind(fields[key]) if key in fields else _Kind(Any, ())
    args = get_args(kind.type)
    if isinstance(key, int) and get_origin(kind.type) is tuple and Ellipsis not in args:
        return _unwrap(args[key])
    return _unwrap(args[-1 if get_origin(kind.type) is dict else 0]) if args else _Kind(Any, ())


def _follow(schema: type[BaseModel], location: Place, data: Any) -> _Spot | None:
    """Walk pydantic's location, less its labels for a union's members; None if another error tells more."""
    place: Place = ()
    kind, owner = _Kind(schema, ()), None
    for part in location:
        members = [member for member in _members(kind) if member.type is not NoneType]
        if part in (tags := _tagged(kind)):
            kind = _Kind(tags[str(part)], ())
            continue
        if len(members) > 1:
            models = [member.type for member in members if _is_model(member)]
            meant = isinstance(_look_up(data, place), dict) and (len(models) == 1 or tags)
            if not meant:
                return _Spot(place, kind, whole=True)
            # a mapping can only mean a model, so what the other members say about it is noise
            if not any(model.__name__ in str(part) for model in models):
                return None
            kind = _Kind(Union[tuple(models)], ())  # noqa: UP007 - made at run time
            continue
        owner = members[0].type if _is_model(members[0]) else None
        kind = _inner(members[0], part)
        place = (*place, part)
    return _Spot(place, kind, owner)


def _missing(place: Place, field: FieldInfo) -> Iterator[_Fault]:
    """What to add: the field, or, where it is a section, the fields of it that are required."""
    kind = _kind(field)
    needed = kind.type.model_fields.items() if _is_model(kind) else ()
    inner = [(name, child) for name, child in needed if child.is_required()]
    for name, child in inner:
        yield from _missing((*place, name), child)
    if inner:
        return
    tags = _tagged(kind)
    place = (*place, "name") if tags else place
    meaning = f" ({field.description.rstrip('.')})" if field.description else ""
    choice = f" Names: {', '.join(tags)}." if tags else ""
    yield _Fault(place, f"missing{meaning}.{choice} Add it, or pass {_dotted(place)}=VALUE", WHOLE_FILE)


_MISFITS = re.compile(
    r".*_type|.*_parsing|greater_than.*|less_than.*|multiple_of|.*too_short|.*too_long|string_pattern_mismatch"
    r"|literal_error|enum|union_tag_.*|int_from_float|finite_number|none_required|missing"
)


def _message(error: ErrorDetails, kind: _Kind, found: object, owner: type[BaseModel] | None) -> str:
    if error["type"] == "extra_forbidden" and owner is not None:
        return _unknown(str(error["loc"][-1]), owner)
    if error["type"] == "union_tag_not_found":
        return f"missing. It is {_words(kind)}"
    if error["type"] in ("value_error", "assertion_error"):
        return str(error["ctx"]["error"])
    if not _MISFITS.fullmatch(error["type"]):
        return error["msg"]
    return f"expected {_spelled(_words(kind))}, found {_show(found)}{_instead(found, kind)}"


def _unknown(name: str, owner: type[BaseModel]) -> str:
    near = _suggest(name.lower(), owner.model_fields)
    return f"unknown field{near or '. Known here: ' + ', '.join(owner.model_fields)}"


def _instead(found: object, kind: _Kind) -> str:
    if not isinstance(found, str):
        return ""
    if found in _tagged(kind):
        return f". Did you mean {{name: {found}}}?"
    return _suggest(found, map(str, _options(kind)))


def _options(kind: _Kind) -> list[object]:
    """The values that a kind names one by one."""
    if get_origin(kind.type) is Literal:
        return list(get_args(kind.type))
    if isinstance(kind.type, type) and issubclass(kind.type, Enum):
        return [option.value for option in kind.type]
    members = _members(kind)
    return [option for member in members for option in _options(member)] if len(members) > 1 else []


# words: kinds as people say them

_NOUNS = {float: "number", int: "integer", str: "text", bool: "true or false", NoneType: "null"}
_BOUNDS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<=", "multiple_of": "in steps of", "pattern": "like"}
_SPELLED = {" >= ": " of at least ", " <= ": " no more than ", " > ": " greater than ", " < ": " less than "}


def _words(kind: _Kind) -> str:
    """Such as `number > 0`, `one of: a, b`, `list of 2 integers` or `text or null`."""
    members = _members(kind)
    if len(members) > 1:
        tags = _tagged(kind)
        named = [f"mapping with name: {', '.join(tags)}"] if tags else []
        return " or ".join(named + [_words(each) for each in members if not (tags and _is_model(each))])
    if options := _options(kind):
        return ("one of: " if len(options) > 1 else "") + ", ".join(map(_bare, options))
    if get_origin(kind.type) in (list, tuple, set, frozenset, Sequence):
        return _list_words(kind)
    if _is_model(kind) or get_origin(kind.type) is dict:
        return "mapping"
    return _noun(kind.type) + ("" if kind.type is NoneType else _bounds(kind.rules))


def _noun(type_: Any) -> str:
    if isinstance(type_, type) and issubclass(type_, PurePath):
        return "path"
    return _NOUNS.get(type_, getattr(type_, "__name__", str(type_)))


def _bare(option: object) -> str:
    return option if isinstance(option, str) else _show(option)


def _rule(rules: tuple[Any, ...], name: str) -> Any:
    return next((value for rule in rules if (value := getattr(rule, name, None)) is not None), None)


def _bounds(rules: tuple[Any, ...]) -> str:
    count = _count(_rule(rules, "min_length"), _rule(rules, "max_length"))
    length = f" of {count}characters" if count else ""
    found = {word: _rule(rules, name) for name, word in _BOUNDS.items()}
    bounds = " and ".join(f"{word} {bound}" for word, bound in found.items() if bound is not None)
    bounds = re.sub(r">= (.+) and <= ", r"from \1 to ", bounds)
    return f"{length} {bounds}".rstrip()


def _count(least: int | None, most: int | None) -> str:
    if least == most:
        return "" if least is None else f"{least} "
    if most is None:
        return f"{least} or more "
    return f"{least} to {most} " if least else f"up to {most} "


def _list_words(kind: _Kind) -> str:
    items = [_words(_unwrap(item)) for item in get_args(kind.type) if item is not Ellipsis]
    if len(set(items)) > 1:
        return f"list of {len(items)}: {', '.join(items)}"
    least, most = _rule(kind.rules, "min_length"), _rule(kind.rules, "max_length")
    if get_origin(kind.type) is tuple and Ellipsis not in get_args(kind.type):
        least = most = len(items)
    return f"list of {_count(least, most)}{_plural(items[0])}"


def _plural(words: str) -> str:
    noun, space, rest = words.partition(" ")
    simple = noun in ("number", "integer", "path", "list", "mapping") and " or " not in rest
    return f"{noun}s{space}{rest}" if simple else words if words == "text" else f"values ({words})"


def _spelled(words: str) -> str:
    for symbol, spelled in _SPELLED.items():
        words = words.replace(symbol, spelled)
    article = {"number": "a ", "integer": "an ", "list": "a ", "mapping": "a ", "path": "a "}
    return article.get(words.split(" ")[0], "") + words


# describing: the text of --help


def describe(schema: type[BaseModel]) -> str:
    """Every field of a schema, depth first: `a.b  TYPE = DEFAULT` and its meaning, 100 columns wide."""
    text = "\n".join(_fields(schema, "", None, 0)).strip("\n")
    return re.sub(r"\n{3,}", "\n\n", text) + "\n"


def _fields(
    model: type[BaseModel], prefix: str, instance: object, indent: int, hidden: str | None = None
) -> Iterator[str]:
    for name, field in model.model_fields.items():
        default = getattr(instance, name) if isinstance(instance, model) else _default(field)
        if name != hidden:
            yield from _field(prefix + name, field, default, indent)


def _default(field: FieldInfo) -> object:
    # a factory that looks at other fields has no one default
    late = field.default_factory_takes_validated_data
    return PydanticUndefined if late else field.get_default(call_default_factory=True)


def _field(path: str, field: FieldInfo, default: object, indent: int) -> Iterator[str]:
    kind = _kind(field)
    item = _unwrap(get_args(kind.type)[0]) if get_origin(kind.type) in (list, tuple) else kind
    section = any(map(_is_model, _members(item)))
    if section:
        yield ""
    head = path if _is_model(kind) else f"{path}  {_words(kind)}"
    yield from _wrap(head + _state(field, default, kind), indent, indent + 8)
    yield from _wrap(field.description or "", indent + 4, indent + 4)
    if section:
        yield from _section(path if item is kind else f"{path}.N", item, default, indent)
        yield ""


def _state(field: FieldInfo, default: object, kind: _Kind) -> str:
    if field.is_required():
        return "  (required)"
    if default is PydanticUndefined:
        return "  (default follows from other fields)"
    return "" if isinstance(default, BaseModel) else f" = {_show(default)}"


def _section(path: str, kind: _Kind, default: object, indent: int) -> Iterator[str]:
    models = [member.type for member in _members(kind) if _is_model(member)]
    for tag, model in _tagged(kind).items():
        chosen = "  (default)" if type(default) is model else ""
        yield from _wrap(f"name: {tag}{chosen}", indent + 4, indent + 4)
        yield from _fields(model, f"{path}.", default, indent + 8, hidden="name")
    if len(models) == 1:
        yield from _fields(models[0], f"{path}.", default, indent + 4)


def _wrap(text: str, first: int, rest: int) -> list[str]:
    wrapper = textwrap.TextWrapper(WIDTH, " " * first, " " * rest, break_long_words=False)
    return wrapper.wrap(text)


# comparing: what changed between two recipes


class Difference(NamedTuple):
    """A field whose value differs, by its dotted path. `ABSENT` where a side has no such field."""

    path: str
    old: object
    new: object


class _Absent:
    def __repr__(self) -> str:
        return "(absent)"


ABSENT = _Absent()


def differences(old: BaseModel, new: BaseModel) -> list[Difference]:
    """The leaf fields whose values differ, in the order of the schema."""
    return list(_differences(old.model_dump(), new.model_dump(), ()))


def _differences(old: object, new: object, place: Place) -> Iterator[Difference]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in {**old, **new}:
            yield from _differences(old.get(key, ABSENT), new.get(key, ABSENT), (*place, key))
    elif _holds_models(old) and _holds_models(new):
        for index, pair in enumerate(zip_longest(old, new, fillvalue=ABSENT)):
            yield from _differences(*pair, (*place, index))
    elif old != new:
        yield Difference(_dotted(place), old, new)


def _holds_models(value: object) -> TypeGuard[Sequence[object]]:
    return isinstance(value, list | tuple) and any(isinstance(item, dict) for item in value)


def format_differences(changes: Sequence[Difference]) -> str:
    """One aligned line for each: `optim.lr   0.1 -> 0.2`."""
    width = max((len(change.path) for change in changes), default=0)
    return "\n".join(f"{c.path:<{width}}   {_show(c.old)} -> {_show(c.new)}" for c in changes)


# writing

_PLAIN = re.compile(r"[A-Za-z_./][A-Za-z0-9_./-]*( [A-Za-z0-9_./-]+)*")


class _Representer(SafeRepresenter):
    """Short lists in one line; text in quotes (ruamel's other styles lose some) unless plain beyond doubt."""

    def list_(self, value: list[Any]) -> Any:
        flat = not any(isinstance(item, dict | list) for item in value)
        return self.represent_sequence("tag:yaml.org,2002:seq", value, flow_style=flat)

    def text(self, value: str) -> Any:
        plain = _PLAIN.fullmatch(value) and isinstance(_resolve(value), str)
        return self.represent_scalar("tag:yaml.org,2002:str", value, style=None if plain else '"')


_Representer.add_representer(list, _Representer.list_)
_Representer.add_representer(str, _Representer.text)
