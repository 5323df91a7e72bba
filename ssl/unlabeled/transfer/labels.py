"""The labelled images of a fine-tuning: those to learn from, to watch and to score."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from unlabeled.data.batch.groups import Groups
from unlabeled.data.label.hidden import Hidden
from unlabeled.data.label.subset import Part, exponential, few_shot, mask_singletons, stratified
from unlabeled.data.opened import Opened
from unlabeled.data.source import Source, SourceConfig
from unlabeled.data.sources.mixture import MixtureSource
from unlabeled.errors import UserError
from unlabeled.randomness import HELD_OUT


class Labelled(NamedTuple):
    """Three sources that number classes alike."""

    train: Source
    watched: Source | None  # to score while it trains; None = nothing is
    test: Source


class Amount(NamedTuple):
    """The amount of labels to use."""

    fraction: float = 1.0  # share of every class
    shots: int | None = None  # images of every class, instead of a share
    long_tail: float | None = None  # how many times rarer the last class is made
    seed: int = 0  # of the choice of labels
    # share of them that is kept from training to be watched; 0 = the test images are watched, None = nothing is
    hold_out: float | None = None


def labelled(data: Opened, amount: Amount) -> Labelled:
    """The labelled images of a `data:` section.

    Raises UserError when labels are missing or do not match, or there are fewer than asked for.
    """
    if not data.config.has_val:
        raise UserError(
            "fine-tuning reports accuracy on data.val, which is null. Set it to the labelled split, or hold a share of "
            "every class out of train: data.split=0.2"
        )
    source = data.train
    if not source.classes:
        raise UserError(
            "fine-tuning needs labels, and data.train has none: put its pictures into one folder per class, or name "
            "where labels are (data.label, data.labels)."
        )
    if len(source.classes) == 1:
        raise UserError(
            f"data.train has one class, {source.classes[0]!r}; expected at least two to tell apart. Give each class a "
            "folder of its own right below data.train."
        )
    test = data.val
    data.check_apart(source, test)
    rows = chosen(source.labels, amount, source.classes)
    _refuse_empty(source, rows)
    if not amount.hold_out:
        return Labelled(Part(source, rows), None if amount.hold_out is None else test, test)
    held = held_out(source.labels[rows], amount.hold_out, amount.seed)
    return Labelled(Part(source, np.delete(rows, held)), Part(source, rows[held]), test)


def with_unlabelled(
    data: Opened, images: Labelled, other: SourceConfig | None, field: str, shares: tuple[int, int], views: int
) -> tuple[Source, Groups]:
    """The images to learn from and others whose labels are hidden, as one source, and its two groups.

    Args:
        data: the section of the labelled images.
        images: those.
        other: the section of the others, which the recipe calls `field`; None = all images to train on but those that
            are watched.
        shares: of both in a batch.
        views: that the others have; labelled ones have the first.

    Raises UserError when the others cannot be had, or the test images are among them.
    """
    source = data.train if other is None else data.other(field, other).pictures("train")
    if other is not None:
        data.check_apart(source, images.test)
    elif isinstance(images.watched, Part) and images.watched is not images.test:
        source = Part(source, np.delete(np.arange(len(source)), images.watched.indices))
    hidden, count = Hidden(source, images.train.classes), len(images.train)
    joined = MixtureSource([images.train, hidden], order=images.train.classes)
    return joined, Groups((np.arange(count), np.arange(count, len(joined))), shares, (1, views))


def chosen(labels: np.ndarray, amount: Amount, names: Sequence[str] = ()) -> np.ndarray:
    """Rows of the labels [n] to use, ascending: first made unbalanced, then a share or a few of each.

    Raises UserError when a class, which `names` name, has fewer than asked for.
    """
    rows = np.flatnonzero(labels >= 0)
    if amount.long_tail is not None:
        rows = rows[exponential(labels[rows], amount.long_tail, amount.seed)]
    if amount.shots is not None:
        return rows[few_shot(labels[rows], amount.shots, amount.seed, names)]
    return rows[stratified(labels[rows], amount.fraction, amount.seed, names=names)]


def held_out(labels: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Rows of the labels [n] to keep from training: a share of every class with at least two images."""
    several = mask_singletons(labels)
    if (several < 0).all():
        raise UserError(
            f"watch.hold_out is {share:g}, but no class has two labelled pictures. Set watch.hold_out=0, or use more "
            "labels."
        )
    return stratified(several, share, HELD_OUT + seed, at_least=1, leave=1)


def _refuse_empty(source: Source, rows: np.ndarray) -> None:
    counts = np.bincount(source.labels[rows], minlength=len(source.classes))
    empty = [source.classes[i] for i in np.flatnonzero(counts == 0)]
    if empty:
        raise UserError(
            f"{len(empty)} of {len(source.classes)} classes have no picture to learn from, the first: {empty[0]}. Add "
            "pictures to their folders in data.train, or remove the folders."
        )
