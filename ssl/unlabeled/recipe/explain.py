"""Errors of pydantic in plain words: where they are and what was expected there."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from types import NoneType
from typing import Any, NamedTuple, Union

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from unlabeled.errors import suggest
from unlabeled.recipe.faults import WHOLE_FILE, Fault, Place, dotted, look_up, show
from unlabeled.recipe.kinds import Kind, inner_kind, is_model, kind_of, members_of, options_of, tagged
from unlabeled.recipe.words import spell_out, words


class Spot(NamedTuple):
    """A place in a recipe and the kind that belongs there."""

    place: Place
    kind: Kind
    owner: type[BaseModel] | None = None  # the model that has the field, if it is one
    whole: bool = False  # whether pydantic pointed deeper, into members of a union of which none fits


def follow(schema: type[BaseModel], location: Place, data: Any) -> Spot | None:
    """Walk pydantic's location, less its labels for a union's members; None if another error tells more."""
    place: Place = ()
    kind, owner = Kind(schema, ()), None
    for part in location:
        members = [member for member in members_of(kind) if member.type is not NoneType]
        if part in (tags := tagged(kind)):
            kind = Kind(tags[str(part)], ())
            continue
        if len(members) > 1:
            models = [member.type for member in members if is_model(member)]
            meant = isinstance(look_up(data, place), dict) and (len(models) == 1 or tags)
            if not meant:
                return Spot(place, kind, whole=True)
            # a mapping can only mean a model, so what the other members say about it is noise
            if not any(model.__name__ in str(part) for model in models):
                return None
            kind = Kind(Union[tuple(models)], ())  # noqa: UP007 - made at run time
            continue
        owner = members[0].type if is_model(members[0]) else None
        kind = inner_kind(members[0], part)
        place = (*place, part)
    return Spot(place, kind, owner)


def telling(errors: Sequence[ErrorDetails]) -> list[ErrorDetails]:
    """Those with something of their own to say: a list is also called too short for want of its wrong elements."""
    inner = {error["loc"][:depth] for error in errors for depth in range(len(error["loc"]))}
    return [error for error in errors if error["type"] != "too_short" or error["loc"] not in inner]


def missing(place: Place, field: FieldInfo) -> Iterator[Fault]:
    """What to add: the field, or, where it is a section, the fields of it that are required."""
    kind = kind_of(field)
    needed = kind.type.model_fields.items() if is_model(kind) else ()
    inner = [(name, child) for name, child in needed if child.is_required()]
    for name, child in inner:
        yield from missing((*place, name), child)
    if inner:
        return
    tags = tagged(kind)
    place = (*place, "name") if tags else place
    meaning = f" ({field.description.rstrip('.')})" if field.description else ""
    choice = f" Names: {', '.join(tags)}." if tags else ""
    yield Fault(place, f"missing{meaning}.{choice} Add it, or pass {dotted(place)}=VALUE", WHOLE_FILE)


_MISFITS = re.compile(
    r".*_type|.*_parsing|greater_than.*|less_than.*|multiple_of|.*too_short|.*too_long|string_pattern_mismatch"
    r"|literal_error|enum|union_tag_.*|int_from_float|finite_number|none_required|missing"
)


def complaint(error: ErrorDetails, kind: Kind, found: object, owner: type[BaseModel] | None) -> str:
    """What was found and what was expected, for a field of this kind."""
    if error["type"] == "extra_forbidden" and owner is not None:
        near = suggest(str(error["loc"][-1]).lower(), owner.model_fields)
        return f"unknown field{near or '. Known here: ' + ', '.join(owner.model_fields)}"
    if error["type"] == "union_tag_not_found":
        return f"missing. It is {words(kind)}"
    if error["type"] in ("value_error", "assertion_error"):
        return str(error["ctx"]["error"])
    if not _MISFITS.fullmatch(error["type"]):
        return error["msg"]
    instead = ""
    if isinstance(found, str):
        section = found in tagged(kind)
        instead = f". Did you mean {{name: {found}}}?" if section else suggest(found, map(str, options_of(kind)))
    return f"expected {spell_out(words(kind))}, found {show(found)}{instead}"
