"""Scores of a classifier of known and new classes: All, Old and New by one Hungarian matching."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from unlabeled.data.source import Source
from unlabeled.discover.accuracy import contingency, matching, scores
from unlabeled.progress import Clock
from unlabeled.transfer.predict import Predict
from unlabeled.transfer.simgcd.report import MOST
from unlabeled.transfer.task import Choice


def names_of(known: Sequence[str], classes: int) -> tuple[str, ...]:
    """The names of clusters: of the known classes, and numbers of the others."""
    return (*known, *(f"new {number}" for number in range(1, classes - len(known) + 1)))


class Scorer:
    """Scores a task on images, once per image, without augmentation; `latest` is the newest result, `clusters` [n] and
    `numbers` [n] are those of its images.

    Args:
        source: the images, their classes numbered from the known ones on.
        known: how many those are.
    """

    def __init__(self, predict: Predict, source: Source, known: int) -> None:
        self.predict, self.source, self.known = predict, source, known
        self.choice: Choice | None = None
        self.latest: dict[str, Any] | None = None
        self.clusters: np.ndarray = np.empty(0, np.int64)
        self.numbers: np.ndarray = np.empty(0, np.int64)
        self.clock = Clock()

    def __call__(self, method: Any) -> dict[str, Any]:
        """Scores in percent as JSON, see `unlabeled.discover.accuracy.scores`. All processes must call it."""

        def cluster(logits: Tensor, _labels: Tensor) -> Tensor:
            return logits.argmax(-1, keepdim=True).float()

        seen = self.predict(method.predict, method, self.source, cluster)
        assert seen.numbers is not None
        classes = seen.y.numpy()
        self.clusters, self.numbers = seen.x[:, 0].long().numpy(), seen.numbers.numpy()
        found = scores(self.clusters, classes, self.known)
        names = names_of(self.source.classes[: self.known], method.classes)
        rows = list(self._clusters(classes, names))
        self.latest = {
            **found,
            "groups": found["pictures"],
            "pictures": len(classes),
            MOST: 100 * max(row["pictures"] for row in rows) / len(classes),
            "clusters": rows,
        }
        return self.latest

    def _clusters(self, classes: np.ndarray, names: Sequence[str]) -> list[dict[str, Any]]:
        """Each cluster: its images, and how many are of the class that it is matched with."""
        counts = contingency(self.clusters, classes)
        counts = np.pad(counts, ((0, len(names) - len(counts)), (0, 0)))
        matched, there = matching(counts), self.source.classes
        return [
            {
                "name": name,
                "pictures": int(row.sum()),
                "class": there[to] if to < counts.shape[1] else None,
                "right": int(row[to]) if to < counts.shape[1] else 0,
            }
            for name, row, to in zip(names, counts, matched.tolist(), strict=True)
        ]
