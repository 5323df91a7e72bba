"""A recipe's `data:` section opened: live sources, each found once."""

from __future__ import annotations

from copy import copy
from functools import cached_property
from pathlib import Path

import numpy as np

from unlabeled.data.archive.listing import IndexFolder, Split
from unlabeled.data.archive.prepared import open_prepared, summary
from unlabeled.data.label.holdout import Divided, divide
from unlabeled.data.label.overlap import refuse_shared
from unlabeled.data.source import Source, SourceConfig
from unlabeled.errors import UserError
from unlabeled.recipe.faults import show


class Opened:
    """The images of a `data:` section, each split opened when it is first asked for. `index` keeps what a scan
    finds."""

    def __init__(self, config: SourceConfig, index: IndexFolder | None = None) -> None:
        self.config, self.index = config, index or IndexFolder()
        self._others: dict[str, Opened] = {}

    @cached_property
    def train(self) -> Source:
        """The images to train on. Raises UserError when they cannot be had."""
        return self.pictures("train")

    @cached_property
    def val(self) -> Source:
        """The images to evaluate on, their labels numbered as in `train`, where that is labelled. Raises UserError when
        they cannot be had, have no labels, or classes that `train` lacks."""
        if not self.config.has_val:
            raise UserError(f"data.val is null; expected {self.config.what_val_is}")
        val = getattr(self.config, "val", None)
        return numbered_as(self.pictures("val"), self.train.classes, "data.val" if val is None else f"data.val={val!r}")

    def split(self, split: Split) -> Source:
        return self.train if split == "train" else self.val

    def pictures(self, split: Split) -> Source:
        """The images of a split, from the cache where there is one, their labels numbered on their own."""
        if self.config.cache is None:
            return self.original(split)
        return open_prepared(self.config, Path(self.config.cache), split)

    def original(self, split: Split) -> Source:
        """The same, never from the cache."""
        return self.config.source(split, self.index) if self.divided is None else self.divided.side(split)

    @cached_property
    def divided(self) -> Divided | None:
        """All images in two sides, where a share of them is held out."""
        share, seed = self.config.share, self.config.split_seed
        return None if share is None else divide(self.config.source("train", self.index), share, seed)

    def other(self, field: str, config: SourceConfig | None) -> Opened:
        """The section of another field, its index below this one's; None = this one."""
        if config is None:
            return self
        if field not in self._others:
            self._others[field] = Opened(config, self.index.part(field))
        return self._others[field]

    def normalised(self, mean: tuple[float, ...], std: tuple[float, ...]) -> Opened:
        """The same images under another normalisation of as many channels; open splits stay open."""
        other = copy(self)
        other.config = self.config.model_copy(update={"mean": mean, "std": std})
        return other

    def check_apart(self, train: Source, val: Source) -> None:
        """Raise UserError when images of `val` are in `train` too, unless that is allowed. A sample is compared."""
        if not self.config.allow_overlap:
            refuse_shared(train, val)


def location(config: SourceConfig) -> str:
    """A short description of where images come from, for people."""
    return config.name if config.cache is None else f"{config.name}, small copies in {summary(Path(config.cache))}"


def numbered_as(val: Source, classes: tuple[str, ...], what: str) -> Source:
    """Labelled images to evaluate on, their labels renumbered as those to train on, unless these are unlabelled ().
    Raises UserError when `val`, which the recipe calls `what`, has no labels, or classes that `classes` lacks."""
    if not val.classes:
        raise UserError(f"{what} has no labels; expected every picture to have a class")
    if not classes:
        return val
    rank = {name: i for i, name in enumerate(classes)}
    if extra := [name for name in val.classes if name not in rank]:
        raise UserError(
            f"{what} has classes that data.train lacks: {', '.join(map(show, extra[:10]))}; "
            f"train has {len(classes)}, such as {classes[0]!r}"
        )
    ids = np.array([rank[name] for name in val.classes], dtype=np.int64)
    return val.relabelled(np.where(val.labels < 0, -1, ids[val.labels]), classes)
