"""Kinds: the annotations of a schema, taken apart."""

from __future__ import annotations

from enum import Enum
from types import UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from unlabeled.recipe.faults import look_up
from unlabeled.registry import ByFile


class Kind(NamedTuple):
    """An annotation without its wrapping, and the bounds that were wrapped around it."""

    type: Any
    rules: tuple[Any, ...]


class Default(NamedTuple):
    """The kind of a section that does not say its name; None = it must."""

    kind: str | None


def unwrap(annotation: Any, rules: tuple[Any, ...] = ()) -> Kind:
    """Take `Annotated` off, collecting its bounds behind `rules`; a choice between files is the union of its kinds."""
    if choice := next((rule for rule in rules if isinstance(rule, ByFile)), None):
        rest = tuple(Default(choice.default) if rule is choice else rule for rule in rules)
        return Kind(Union[tuple(choice.kinds().values())], rest)  # noqa: UP007 - made at run time
    if get_origin(annotation) is not Annotated:
        return Kind(annotation, rules)
    inner, *extra = get_args(annotation)
    more = (rule.metadata if isinstance(rule, FieldInfo) else [rule] for rule in extra)
    return unwrap(inner, rules + tuple(rule for some in more for rule in some))


def kind_of(field: FieldInfo) -> Kind:
    """The kind of a field of a model."""
    return unwrap(field.annotation, tuple(field.metadata))


def members_of(kind: Kind) -> list[Kind]:
    """The alternatives of a union, flattened; the kind itself if it is none."""
    if get_origin(kind.type) not in (Union, UnionType):
        return [kind]
    return [member for inner in get_args(kind.type) for member in members_of(unwrap(inner, kind.rules))]


def is_model(kind: Kind) -> bool:
    """Whether it is a section of the recipe."""
    return isinstance(kind.type, type) and issubclass(kind.type, BaseModel)


def tagged(kind: Kind) -> dict[str, type[BaseModel]]:
    """The models of a union discriminated by `name`, by their names; empty for other kinds."""
    models = [member.type for member in members_of(kind) if is_model(member)]
    if len(models) < 2 or not all("name" in model.model_fields for model in models):
        return {}
    return {str(model.model_fields["name"].default): model for model in models}


def default_of(kind: Kind) -> str | None:
    """The name of the kind that a section is of where it does not say."""
    return next((rule.kind for rule in kind.rules if isinstance(rule, Default)), None)


def inner_kind(kind: Kind, key: str | int) -> Kind:
    """The kind of a field or an element."""
    if is_model(kind):
        fields = kind.type.model_fields
        # a section that takes other keys says what they hold
        return kind_of(fields[key]) if key in fields else unwrap(getattr(kind.type, "extra_kind", Any))
    args = get_args(kind.type)
    if isinstance(key, int) and get_origin(kind.type) is tuple and Ellipsis not in args:
        return unwrap(args[key])
    return unwrap(args[-1 if get_origin(kind.type) is dict else 0]) if args else Kind(Any, ())


def kind_at(schema: type[BaseModel], place: tuple[str | int, ...], data: Any) -> Kind:
    """The kind of what lies at a place of `data`, whose sections say by `name` which of their kinds they are."""
    kind = Kind(schema, ())
    for key in place:
        kind, data = inner_kind(_chosen(kind, data), key), look_up(data, (key,))
    return kind


def _chosen(kind: Kind, value: Any) -> Kind:
    """Of a union the member that a mapping means."""
    name = value.get("name", default_of(kind)) if isinstance(value, dict) else None
    if isinstance(name, str) and name in (tags := tagged(kind)):
        return Kind(tags[name], ())
    models = [member for member in members_of(kind) if is_model(member)]
    return models[0] if len(models) == 1 else kind


def takes_text(kind: Kind) -> bool:
    """Whether any text will do."""
    return any(member.type is str for member in members_of(kind))


def options_of(kind: Kind) -> list[object]:
    """The values that a kind names one by one."""
    if get_origin(kind.type) is Literal:
        return list(get_args(kind.type))
    if isinstance(kind.type, type) and issubclass(kind.type, Enum):
        return [option.value for option in kind.type]
    members = members_of(kind)
    return [option for member in members for option in options_of(member)] if len(members) > 1 else []
