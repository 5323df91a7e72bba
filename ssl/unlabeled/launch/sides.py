"""The split that a run makes itself (`data.split`): its words for the plan and the card, and its table."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from unlabeled.data.opened import Opened
from unlabeled.data.source import Source, SourceConfig
from unlabeled.files import write_csv
from unlabeled.launch.given import OF_DATA, holds_out
from unlabeled.recipe import load, said
from unlabeled.train.recipe import Recipe

R = TypeVar("R", bound=Recipe)
TABLE = "split.csv"
HEAD = ("path", "label", "split")
SHOWN = 5


def load_divided(kind: type[R], path: str | Path, overrides: Sequence[str]) -> R:
    """Read a recipe, see `unlabeled.recipe.load`; `data.split=0.2` on the command line needs no word more: it puts the
    file's pictures to evaluate on aside, and takes a folder of classes without splits as it lies."""
    found = said(path, overrides).get("data")
    if not holds_out(overrides) or not isinstance(found, dict):
        return load(kind, path, overrides)
    told = {override.partition("=")[0].strip() for override in overrides}
    aside = [f"{OF_DATA}{name}=null" for name in ("val", "val_path") if found.get(name) is not None]
    overrides = [*overrides, *(word for word in aside if word.partition("=")[0] not in told)]
    recipe = load(kind, path, overrides)
    flat = [f"{OF_DATA}{name}={value}" for name, value in recipe.data.as_flat().items()]
    more = [word for word in flat if word.partition("=")[0] not in told]
    return load(kind, path, [*overrides, *more]) if more else recipe


def held_out(data: Opened) -> Iterator[str]:
    """What is held out of each source that has a `split`."""
    for config, train, val in _sides(data):
        whole = len(train) + len(val)
        yield (
            f"{100 * (config.share or 0):g} % of every class are val and not learnt from, {len(val):,} of "
            f"{whole:,} pictures (data.split_seed={config.split_seed}){_exceptions(data)}"
        )


def write_sides(file: Path, data: Opened) -> None:
    """Write all images that a `split` divides as a table, which the source `table` reads where they are files."""
    if rows := [row for _, train, val in _sides(data) for row in (*_rows(train, "train"), *_rows(val, "val"))]:
        write_csv(file, HEAD, rows)


def _sides(data: Opened) -> Iterator[tuple[SourceConfig, Source, Source]]:
    """Every source that has a `split`, and its sides."""
    parts = data.config.parts
    if all(config.share is None for config in parts):
        return
    vals = iter(data.pictures("val").parts)
    for config, train in zip(parts, data.train.parts, strict=True):
        val = next(vals) if config.has_val else None
        if config.share is not None and val is not None:
            yield config, train, val


def _rows(source: Source, split: str) -> Iterator[tuple[str, str, str]]:
    names = (*source.classes, "")  # -1 is the last
    for i, label in enumerate(source.labels.tolist()):
        inner, number = source.origin(i)
        file = inner.file(number)
        yield source.key(i) if file is None else os.path.abspath(os.fsdecode(file)), names[label], split


def _exceptions(data: Opened) -> str:
    """Classes that have nothing in val, and copies that were not looked for, where originals were read here."""
    if data.config.cache is not None or data.divided is None:
        return ""
    alone, copies = data.divided.alone, data.divided.copies
    more = ", ..." if len(alone) > SHOWN else ""
    few = f"; {len(alone):,} classes have one picture, or copies of one, all in train: {', '.join(alone[:SHOWN])}{more}"
    same = f"; {copies:,} have equal ones, on the same side" if copies else ""
    if copies is None:
        same = "; equal files were not looked for, as too many have the same size"
    return f"{few if alone else ''}{same}"
