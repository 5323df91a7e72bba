"""Marks of fields, beside their declaration: `data: Annotated[Data, FREE] = Field(...)`."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import BaseModel

from unlabeled.recipe.kinds import Kind, inner_kind, is_model, members_of


@dataclass(frozen=True)
class Mark:
    """A property of a field, for its metadata. Validation does not read it."""

    meaning: str


FREE = Mark("cannot change what is learnt: a run may be resumed with another value")


def marked(schema: type[BaseModel], mark: Mark) -> set[str]:
    """The names of a model's own fields that have a mark."""
    return {name for name, field in schema.model_fields.items() if mark in field.metadata}


def is_free(schema: type[BaseModel], path: str) -> bool:
    """Whether a field of a schema, by its dotted path, is `FREE` or lies in one that is.

    Elements of lists are not entered. Of a section with several kinds, each kind that has the field is asked.
    """
    first, *rest = path.split(".")
    models = [Kind(schema, ())]
    while True:
        owners = [model for model in models if first in model.type.model_fields]
        if any(first in marked(model.type, FREE) for model in owners):
            return True
        if not rest:
            return False
        inner = [member for model in owners for member in members_of(inner_kind(model, first))]
        models, (first, *rest) = [member for member in inner if is_model(member)], rest
