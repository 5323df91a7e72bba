"""The images of a task: of the classes that come, and those of earlier ones that are remembered."""

from __future__ import annotations

import numpy as np

from unlabeled.data.label.subset import Part
from unlabeled.data.source import Source
from unlabeled.incremental.recipe import Protocol
from unlabeled.transfer.labels import Labelled


def renumbered(images: Labelled, protocol: Protocol) -> Labelled:
    """The same images, their classes numbered in the order in which they come."""
    rank = np.argsort(protocol.order)

    def by_rank(source: Source) -> Source:
        labels = np.where(source.labels < 0, -1, rank[source.labels])
        return source.relabelled(labels, tuple(source.classes[number] for number in protocol.order))

    return Labelled(by_rank(images.train), None, by_rank(images.test))


def of_task(images: Labelled, protocol: Protocol, task: int, memory: np.ndarray) -> Labelled:
    """The images that a task learns from, and those of all classes seen that it is tested on.

    Args:
        images: all, renumbered.
        memory: [m] numbers of remembered images in `images.train`.
    """
    old, known = protocol.old(task), protocol.known(task)
    train, test = images.train, images.test
    rows = np.union1d(np.flatnonzero((train.labels >= old) & (train.labels < known)), memory)
    tested = np.flatnonzero((test.labels >= 0) & (test.labels < known))
    return Labelled(_known(train, rows, known), None, _known(test, tested, known))


def _known(source: Source, rows: np.ndarray, known: int) -> Part:
    part = Part(source, rows.astype(np.int64))
    part.classes = source.classes[:known]
    return part
