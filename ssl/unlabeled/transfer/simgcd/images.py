"""The images of category discovery: labelled ones of known classes, and unlabelled ones of known and new classes."""

from __future__ import annotations

import numpy as np

from unlabeled.data.batch.groups import Groups
from unlabeled.data.label.hidden import Hidden
from unlabeled.data.label.subset import Part
from unlabeled.data.opened import Opened
from unlabeled.data.source import Source, SourceConfig
from unlabeled.data.sources.mixture import MixtureSource
from unlabeled.errors import UserError
from unlabeled.transfer.labels import Amount, Labelled, chosen

FIELD = "task.unlabelled"


def labelled(data: Opened, known: int | None, other: SourceConfig | None, amount: Amount) -> Labelled:
    """The labelled images, and those to score, their classes numbered from the known ones on.

    Args:
        data: the section of the labelled images.
        known: how many of its classes, the first ones; None = all.
        other: the section of the unlabelled images; None = all images of `data` that are not labelled then.
        amount: of the labels of known classes.

    Raises UserError when labels are missing, or there is no new class to find.
    """
    source = data.train
    if not source.classes:
        raise UserError(
            "simgcd needs labelled pictures of the known classes, and data.train has no labels: put them into one "
            "folder per class, or name where labels are (data.label, data.labels)."
        )
    count = _known(source.classes, known, other is None)
    rows = chosen(np.where(source.labels < count, source.labels, -1), amount, source.classes)
    train = Part(source, rows)
    if missing := sorted(set(range(count)) - set(train.labels.tolist())):
        raise UserError(
            f"{len(missing)} of {count} known classes have no picture to learn from, the first: "
            f"{source.classes[missing[0]]}. Add pictures to their folders in data.train, or remove the folders."
        )
    if other is None:
        return Labelled(train, None, Part(source, np.delete(np.arange(len(source)), rows)))
    return Labelled(train, None, _scored(data, train, source.classes[:count], unlabelled(data, other)))


def _known(classes: tuple[str, ...], known: int | None, own: bool) -> int:
    count = len(classes) if known is None else known
    if count > len(classes):
        raise UserError(f"task.known is {count}, and data.train has {len(classes)} classes. Set it to fewer.")
    if own and count == len(classes):
        raise UserError(
            f"all {count} classes of data.train are known, and task.unlabelled is null: there is nothing to discover. "
            f"Name a folder of unlabelled pictures (task.unlabelled=PATH), or set task.known below {count} to hide the "
            "labels of the other classes."
        )
    return count


def unlabelled(data: Opened, other: SourceConfig) -> Source:
    """The images of the section `other`, seen as those of `data`. Raises UserError when they cannot be had."""
    try:
        seen = other.normalised_as(data.config, FIELD, written=True)
    except ValueError as error:
        raise UserError(f"{error}.") from error
    return data.other(FIELD, seen).pictures("train")


def _scored(data: Opened, train: Source, known: tuple[str, ...], found: Source) -> Source:
    """The unlabelled images where their classes can be asked for, to measure alone; else `data.val`."""
    if found.classes:
        data.check_apart(train, found)
        names = (*known, *(name for name in found.classes if name not in known))
        numbers = np.array([*(names.index(name) for name in found.classes), -1])  # -1 stays the last
        return found.relabelled(numbers[found.labels], names)
    if not data.config.has_val:
        raise UserError(
            f"nothing tells how good the clusters are: {FIELD} has no class folders, and data.val is null. Set "
            "data.val to labelled pictures of the known classes, or hold some out: data.split=0.2."
        )
    return data.val


def joined(train: Source, others: Source, ratio: int) -> tuple[Source, Groups]:
    """Labelled images and others, whose labels are hidden, as one source, and its two groups: for each labelled image
    of a batch `ratio` others."""
    whole, count = MixtureSource([train, Hidden(others, train.classes)], order=train.classes), len(train)
    return whole, Groups((np.arange(count), np.arange(count, len(whole))), (1, ratio))
