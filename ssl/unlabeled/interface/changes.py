"""What is given from Python, as a command line would say it; and errors the other way round."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

from pydantic import BaseModel

from unlabeled.data.sources.dataset import give, is_dataset
from unlabeled.errors import Interrupted, Stopped, UserError
from unlabeled.launch.given import TABLES
from unlabeled.recipe import RecipeError
from unlabeled.recipe.writer import as_yaml

Recipe: TypeAlias = str | Path | Mapping[str, Any] | BaseModel
Overrides: TypeAlias = Mapping[str, Any] | Sequence[str]
# how the command line says what an argument says here
IN_PYTHON = {
    "start over with --fresh --force": "start over with fresh=True",
    "Add --force to remove it": "Pass fresh=True to remove it",
    "The same command goes on": "The same call goes on",
    "the same command goes on": "the same call goes on",
    "--extend ": "extend=",
    "run.output=OTHER": "output=OTHER",
    "--protocol": "protocols",
    "--set ": "settings: ",
}


@contextmanager
def in_python() -> Iterator[None]:
    """Say errors as a caller from Python would mend them."""
    try:
        yield
    except Stopped as error:
        raise Stopped(f"{error}. Nothing is lost: the same call goes on.") from None
    except UserError as error:
        text = str(error)
        for typed, here in IN_PYTHON.items():
            text = text.replace(typed, here)
        raise kind_of(error)(text) from error.__cause__


@contextmanager
def as_file(recipe: Recipe) -> Iterator[str]:
    """A recipe as a file, or the name of one."""
    if isinstance(recipe, str | Path):
        yield str(recipe)
        return
    fields = recipe.model_dump(mode="json", round_trip=True) if isinstance(recipe, BaseModel) else dict(recipe)
    with tempfile.TemporaryDirectory() as folder:
        (file := Path(folder) / "recipe.yaml").write_text(as_yaml(json.loads(_json(fields))), encoding="utf-8")
        try:
            yield str(file)
        except UserError as error:
            raise kind_of(error)(str(error).replace(str(file), "recipe")) from error.__cause__


def kind_of(error: UserError) -> type[UserError]:
    """The class of an error, for the same with another text."""
    return next(kind for kind in (RecipeError, Interrupted, UserError) if isinstance(error, kind))


def changes_of(overrides: Overrides) -> list[str]:
    """Changes as the command line writes them."""
    if isinstance(overrides, str):
        raise UserError(f"overrides={overrides!r}: expected a dictionary or a list, such as [{overrides!r}]")
    if isinstance(overrides, Mapping):
        return [f"{name}={_json(value)}" for name, value in overrides.items()]
    return [str(change) for change in overrides]


def setting(field: str, value: object) -> list[str]:
    return [] if value is None else [f"{field}={_json(value)}"]


def _json(value: object) -> str:
    """A value for a recipe; paths are text."""

    def plain(other: Any) -> Any:
        return other.model_dump(mode="json") if isinstance(other, BaseModel) else str(other)

    return json.dumps(value, default=plain)


def of_data(data: Any, labels: bool = False) -> list[str]:
    """Changes that replace the pictures of a recipe; other fields of its `data:` stay where the kind has them.

    `labels` are read from the items of a data set where it has no attribute for them."""
    if data is None:
        return []
    if isinstance(data, Mapping) and is_dataset(data.get("train")):
        return _of_datasets(data["train"], data.get("val"), labels, data.keys() - {"train", "val"})
    if isinstance(data, Mapping | BaseModel):
        return setting("data", data)
    if is_dataset(data):
        return _of_datasets(data, None, labels, ())
    if not isinstance(data, str | Path):
        raise UserError(
            f"data is a {type(data).__name__}; expected a folder, tars, a table, a data set with items by number, or "
            "the fields of `data:` in a recipe"
        )
    kind = "table" if str(data).lower().endswith(TABLES) else "files"
    return [f"data.name={kind}", f"data.path={_json(str(data))}"]


def _of_datasets(train: Any, val: Any, labels: bool, others: Collection[str]) -> list[str]:
    if others:
        raise UserError(f"data has {', '.join(sorted(others))} beside data sets; expected train and val alone")
    fields = give(train, val)
    return [*(f"data.{name}={_json(value)}" for name, value in fields.items()), *(["data.labels=true"] * labels)]
