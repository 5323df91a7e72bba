"""What changed between two recipes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any, NamedTuple, TypeGuard

from pydantic import BaseModel

from unlabeled.recipe.faults import Place, dotted, show


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
        yield Difference(dotted(place), old, new)


def flat(nested: Mapping[str, Any], place: Place = ()) -> dict[str, Any]:
    """The leaves of dictionaries within dictionaries, by dotted path."""
    leaves: dict[str, Any] = {}
    for key, value in nested.items():
        here = (*place, key)
        leaves |= flat(value, here) if isinstance(value, Mapping) else {dotted(here): value}
    return leaves


def _holds_models(value: object) -> TypeGuard[Sequence[object]]:
    return isinstance(value, list | tuple) and any(isinstance(item, dict) for item in value)


def format_differences(changes: Sequence[Difference]) -> str:
    """One aligned line for each: `optim.lr   0.1 -> 0.2`."""
    width = max((len(change.path) for change in changes), default=0)
    return "\n".join(f"{c.path:<{width}}   {show(c.old)} -> {show(c.new)}" for c in changes)
