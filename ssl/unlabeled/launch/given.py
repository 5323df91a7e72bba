"""The images that a command line names: a folder, tars, a table, `shapes`, a recipe, or the folder of a run."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

from pydantic import create_model

from unlabeled.backbone.folder import Preprocessing
from unlabeled.data.archive.listing import Split
from unlabeled.data.archive.rows import PARQUET
from unlabeled.data.opened import Opened
from unlabeled.data.source import Source, SourceConfig
from unlabeled.data.sources.files import Config as Files
from unlabeled.data.sources.shapes import Config as Shapes
from unlabeled.data.sources.table import Config as Table
from unlabeled.errors import UserError
from unlabeled.launch.options import checked
from unlabeled.recipe import parse, said
from unlabeled.recipe.shipped import FILES, is_shipped
from unlabeled.train.recipe import ELSEWHERE, Recipe

TABLES = (".csv", ".tsv", *PARQUET)
OF_DATA = "data."  # how settings of the images begin
SPLIT = f"{OF_DATA}split"
RECIPE = "recipe.yaml"  # as a run leaves it
Load = Callable[[str, Sequence[str]], Recipe]
# fields of sources of which all images are wanted, labelled or not, where no recipe knows of splits
WHOLE: Mapping[type[SourceConfig], dict[str, Any]] = {Files: {"stray": "keep"}, Table: {"label": None, "split": None}}


def given(
    what: str,
    load: Load,
    how: Preprocessing,
    splits: Mapping[str, str | None],
    changes: Sequence[str] = (),
    own: Mapping[type[SourceConfig], dict[str, Any]] = MappingProxyType({}),
    labelled: bool = False,
) -> SourceConfig:
    """Find the images, scaled and normalised as an export was trained.

    Args:
        what: see `unlabeled.command.GIVEN`.
        load: reads a recipe of any stage, with changes.
        how: the export's.
        splits: names of `train` and `val`; None = as the recipe says, else the same word.
        changes: `data.a=value`, fields of the `data:` section.
        own: fields of it by kind of source, where `what` is neither a recipe nor a run, and no share is held out.
        labelled: whether those are wanted that a recipe is judged by, where they lie elsewhere.

    Raises:
        UserError: it is none of these, or a field does not fit.
    """
    told = {change.partition("=")[0].removeprefix(OF_DATA) for change in changes}
    if (Path(what) / RECIPE).is_file():
        data = _recipes(str(Path(what) / RECIPE), load, splits, changes, labelled)
    elif _is_recipe(what):
        data = _recipes(what, load, splits, changes, labelled)
        told = data.model_fields_set
    else:
        kind, fields = _section(what, max(how.size or (0,)))
        if holds_out(changes):  # labels decide, whatever the command: all see the same two sides
            fields |= {name: value for name, value in splits.items() if value is not None}
        else:
            named = {name: value if value is not None else name for name, value in splits.items()}
            fields |= (named if kind is not Shapes else {}) | own.get(kind, {})
        if changes:
            schema: Any = create_model("Given", data=(kind, ...))
            parsed: Any = parse(schema, json.dumps({"data": fields}), changes, where="data")
            data = cast("SourceConfig", parsed.data)
        else:
            data = checked(kind, **fields)
    return _prepared(what, data, how, told)


def data_of(args: argparse.Namespace, load: Load, how: Preprocessing) -> Opened:
    """The labelled images that the options name. Raises UserError when there are none to test on."""
    changes = [change for change in args.set if change.startswith(OF_DATA)]
    if args.allow_overlap:
        changes.append("data.allow_overlap=true")
    data = given(args.data, load, how, {"train": args.train, "val": args.val}, changes, labelled=True)
    if not data.has_val:
        raise UserError(
            f"{args.data} has no pictures to test on: data.val is null, expected {data.what_val_is}; or hold a share "
            "of every class out: --set data.split=0.2"
        )
    return Opened(data)


def has_splits(what: str, changes: Sequence[str] = ()) -> bool:
    """Whether what was given, changed so, knows of pictures to train on and others to evaluate on: a recipe, a run,
    `shapes`, or a share that is held out."""
    return what == "shapes" or _is_recipe(what) or (Path(what) / RECIPE).is_file() or holds_out(changes)


def _is_recipe(what: str) -> bool:
    return what.endswith(FILES) or is_shipped(what)


def holds_out(changes: Sequence[str]) -> bool:
    """Whether changes ask for a share to be held out: the last `data.split` is a number between 0 and 1."""
    shares = [value for name, _, value in (change.partition("=") for change in changes) if name.strip() == SPLIT]
    try:
        return 0 < float(shares[-1]) < 1 if shares else False
    except ValueError:  # a column
        return False


def splits_of(
    what: str,
    asked: Sequence[str] | None,
    changes: Sequence[str],
    config_of: Callable[[Mapping[str, str]], SourceConfig],
) -> tuple[dict[str, Source], SourceConfig]:
    """The images of every split by its name, and how they are normalised; without `asked` of those named train, val and
    the like, or of all images as one, which is called ''.

    `config_of` finds the images as `given` does, with these changes, for names of splits. Raises UserError when there
    is no such split.
    """
    if has_splits(what, changes):
        data = Opened(config_of({}))
        there: list[Split] = ["val", "train"] if data.config.has_val else ["train"]
        if unknown := sorted({*(asked or ())} - {*there}):
            raise UserError(f"--split {unknown[0]}: {what} has {' and '.join(there)}. Choose one of these.")
        return {name: data.pictures(name) for name in there if name in (asked or there)}, data.config
    found = {name: Opened(config_of({"train": name} if name else {})) for name in asked or [""]}
    if not asked and (like_splits := found[""].config.read_as_one(found[""].train)):
        found = {name: Opened(config_of({"train": name})) for name in like_splits}
    return {name: one.train for name, one in found.items()}, next(iter(found.values())).config


def _section(what: str, side: int) -> tuple[type[SourceConfig], dict[str, Any]]:
    """The kind of source, and what is known of it; `side` is of drawn shapes, pixels."""
    if what == "shapes":
        return Shapes, {"size": side}
    if what.lower().endswith(TABLES):
        return Table, {"path": what, "label": "label", "split": "split"}
    return Files, {"path": what}


def _recipes(
    path: str, load: Load, splits: Mapping[str, str | None], changes: Sequence[str], labelled: bool
) -> SourceConfig:
    told = [f"{OF_DATA}{name}={json.dumps(value)}" for name, value in splits.items() if value is not None]
    if not (labelled and _judged_elsewhere(said(path))):
        return load(path, [*told, *changes]).data
    below = ELSEWHERE.removesuffix(OF_DATA.rstrip("."))
    recipe = load(path, [f"{below}{change}" for change in (*told, *changes)])
    return recipe.elsewhere or recipe.data


def _judged_elsewhere(recipe: Mapping[str, Any]) -> bool:
    evaluate = recipe.get("evaluate")
    return isinstance(evaluate, Mapping) and evaluate.get("data") is not None


def _prepared(what: str, data: SourceConfig, how: Preprocessing, said: set[str]) -> SourceConfig:
    """With the export's normalisation, which may be said again but not otherwise. A run's is of its own encoder."""
    exported: dict[str, Any] = {"mean": tuple(how.mean), "std": tuple(how.std)}
    if "value_range" in type(data).model_fields:
        exported["value_range"] = None if how.value_range is None else tuple(how.value_range)
    for name in said & exported.keys():
        if (found := getattr(data, name)) != exported[name]:
            raise UserError(
                f"the encoder was trained with {name} {_list(exported[name])}, {what} says {_list(found)}. Leave "
                f"data.{name} out, or set it to the encoder's."
            )
    fields = {name: getattr(data, name) for name in type(data).model_fields}
    return checked(type(data), **{**fields, **exported})


def _list(values: Any) -> Any:
    return values if values is None else list(values)
