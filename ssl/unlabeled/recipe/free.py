"""Fields that cannot change what is learnt: a run may be resumed with others."""

from __future__ import annotations

from pydantic import BaseModel

FREE_FIELDS = (
    "run",
    "data.allow_overlap",
    "data.path",
    "data.val_path",
    "data.root",
    "data.cache",
    "data.classes",  # the classes and their order are part of the images' fingerprint
    "data.max_bad_fraction",
    "evaluate",
)


def is_free(schema: type[BaseModel], path: str) -> bool:
    """Whether a field of a schema, by dotted path, cannot change the result."""
    return any(f"{path}.".startswith(f"{free}.") for free in FREE_FIELDS)
