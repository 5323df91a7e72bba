"""The text of `--help`: every field of a schema with type, default and meaning."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from typing import get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from unlabeled.errors import UserError, suggest
from unlabeled.recipe.faults import show
from unlabeled.recipe.kinds import Kind, is_model, kind_of, members_of, options_of, tagged, unwrap
from unlabeled.recipe.words import words

WIDTH = 100


def describe(schema: type[BaseModel], section: str = "") -> str:
    """Every field of a schema, depth first: `a.b  TYPE = DEFAULT` and its description, 100 columns wide.

    A `section` such as `optim.schedule` is described alone; of a section with several kinds also one of them, such as
    `method.mae`. Raises UserError when there is no such field.
    """
    if not section:
        return _tidy(_fields(schema, "", None, 0))
    names = [name for name in section.split(".") if not (name == "N" or name.isdecimal())]
    texts: dict[str, list[str]] = {}
    for owner, text in _found(Kind(schema, ()), None, names, ""):
        texts.setdefault(text, []).append(owner)
    if not texts:
        known = re.findall(r"^ *([a-z_]+[.\w]*)", describe(schema), re.MULTILINE)
        near = suggest(section, known) or f". Sections: {', '.join(schema.model_fields)}"
        raise UserError(f"--help {section}: recipes have no such field{near}")
    if len(texts) == 1:
        return next(iter(texts))
    return "\n".join(f"{' or '.join(owners)}:\n{text}" for text, owners in texts.items())


def _tidy(lines: Iterable[str]) -> str:
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines).strip("\n")) + "\n"


def _found(
    kind: Kind, default: object, names: Sequence[str], prefix: str, owner: str = ""
) -> Iterator[tuple[str, str]]:
    """(kind of section that has it, text) of every field that `names` lead to."""
    name, *rest = names or [""]
    models = tagged(kind).items() or [("", member.type) for member in members_of(kind) if is_model(member)]
    for tag, model in models:
        of = f"{prefix}name={tag}" if tag else owner
        if tag and name == tag:
            inner = _fields(model, prefix, default, 0, hidden="name")
            yield from _found(Kind(model, ()), default, rest, prefix, of) if rest else [(of, _tidy(inner))]
        elif name in model.model_fields:
            field = model.model_fields[name]
            value = getattr(default, name) if isinstance(default, model) else _default(field)
            item = _item(kind_of(field))
            inside = f"{prefix}{name}." if item == kind_of(field) else f"{prefix}{name}.N."
            text = _tidy(_field(prefix + name, field, value, 0))
            yield from _found(item, value, rest, inside, of) if rest else [(of, text)]


def _fields(
    model: type[BaseModel], prefix: str, instance: object, indent: int, hidden: str | None = None
) -> Iterator[str]:
    # where one of several is chosen, what it cannot do without comes first
    late = {name: hidden is not None and not field.is_required() for name, field in model.model_fields.items()}
    for name, field in sorted(model.model_fields.items(), key=lambda item: late[item[0]]):
        default = getattr(instance, name) if isinstance(instance, model) else _default(field)
        if name != hidden and options_of(kind_of(field)) != [default]:  # one value alone says nothing
            yield from _field(prefix + name, field, default, indent)


def _default(field: FieldInfo) -> object:
    # a factory that looks at other fields has no one default
    late = field.default_factory_takes_validated_data
    return PydanticUndefined if late else field.get_default(call_default_factory=True)


def _field(path: str, field: FieldInfo, default: object, indent: int) -> Iterator[str]:
    kind = kind_of(field)
    item = _item(kind)
    section = any(map(is_model, members_of(item)))
    if section:
        yield ""
    state = "" if isinstance(default, BaseModel) else f" = {show(default)}"
    if field.is_required():
        state = "  (required)"
    elif default is PydanticUndefined:
        state = "  (default follows from other fields)"
    yield from _wrap((path if is_model(kind) else f"{path}  {words(kind)}") + state, indent, indent + 8)
    yield from _wrap(field.description or "", indent + 4, indent + 4)
    if section:
        yield from _section(path if item is kind else f"{path}.N", item, default, indent)
        yield ""


def _item(kind: Kind) -> Kind:
    """Of a list what its elements are; the kind itself of anything else."""
    return unwrap(get_args(kind.type)[0]) if get_origin(kind.type) in (list, tuple) else kind


def _section(path: str, kind: Kind, default: object, indent: int) -> Iterator[str]:
    models = [member.type for member in members_of(kind) if is_model(member)]
    for tag, model in tagged(kind).items():
        chosen = "  (default)" if type(default) is model else ""
        yield from _wrap(f"name: {tag}{chosen}", indent + 4, indent + 4)
        yield from _fields(model, f"{path}.", default, indent + 8, hidden="name")
    if len(models) == 1:
        yield from _fields(models[0], f"{path}.", default, indent + 4)


def _wrap(text: str, first: int, rest: int) -> list[str]:
    return textwrap.TextWrapper(WIDTH, " " * first, " " * rest, break_long_words=False).wrap(text)
