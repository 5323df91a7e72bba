"""Typed recipes: YAML and `a.b=value` overrides in, a frozen pydantic model out, every mistake at once.

A recipe is plain YAML 1.2 (core schema): mappings, lists, text, numbers, true, false and null. Anchors,
aliases and tags are refused while the event stream is read, so that nothing hostile is ever built.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from unlabeled.errors import suggest
from unlabeled.recipe.changes import differences, flat, format_differences
from unlabeled.recipe.draft import Draft
from unlabeled.recipe.faults import RecipeError, report
from unlabeled.recipe.help import describe
from unlabeled.recipe.renamed import updated
from unlabeled.recipe.shipped import find, is_shipped
from unlabeled.recipe.writer import dump

__all__ = [
    "RecipeError",
    "describe",
    "differences",
    "dump",
    "flat",
    "format_differences",
    "load",
    "parse",
    "said",
    "updated",
]

R = TypeVar("R", bound=BaseModel)

MAX_BYTES = 1_000_000


def load(schema: type[R], path: str | Path, overrides: Sequence[str] = ()) -> R:
    """Read a recipe file.

    Args:
        schema: the frozen pydantic model that the file must fit.
        path: a UTF-8 YAML file of at most `MAX_BYTES` bytes, or the name of a recipe that comes with the package.
        overrides: `a.b=value`, applied in order; the value is read as YAML, or as text where it is no YAML.
            A number picks an element of a list: `views.0.count=2`. Where a section gets another `name`, fields of the
            file that only its old kind has are dropped.

    Raises:
        RecipeError: listing everything wrong with the file, its fields and the overrides.
    """
    return parse(schema, _read(find(str(path))), overrides, where=str(path))


def parse(schema: type[R], text: str, overrides: Sequence[str] = (), where: str = "recipe") -> R:
    """The same as `load` from text; `where` names it in errors."""
    draft = Draft(text)
    for override in overrides:
        draft.override(override)
    draft.rename()
    draft.drop_old_variants(schema)
    recipe = draft.validate(schema) if draft.readable else None
    if draft.faults:
        raise report(draft.faults, where)
    assert recipe is not None
    return recipe


def said(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """What a recipe file says, not validated, to tell by it what kind of recipe it is; nothing where it is no YAML."""
    draft = Draft(_read(find(str(path))))
    for override in overrides:
        draft.override(override)
    return draft.data


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except IsADirectoryError:
        raise RecipeError(f"{path}: expected a recipe file, found a folder") from None
    except FileNotFoundError:
        near = suggest(path.name, [p.name for p in path.parent.glob("*.yaml")])
        if is_shipped(path.stem):
            near = f". A recipe of that name comes with unlabeled: write {path.stem}"
        raise RecipeError(f"{path}: no such recipe{near}") from None
    except (OSError, ValueError) as error:
        raise RecipeError(f"{path}: cannot be read: {error}") from None
    if len(content) > MAX_BYTES:
        raise RecipeError(f"{path}: larger than {MAX_BYTES:,} bytes, which no recipe is")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise RecipeError(f"{path}:{line}  expected UTF-8 text, found byte {content[error.start]:#04x}") from None
