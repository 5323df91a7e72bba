"""Scores of a fine-tuned task on labelled images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from unlabeled.data.source import Source
from unlabeled.errors import UserError
from unlabeled.progress import Clock
from unlabeled.report.classification import Classification, Outcomes, classification, classification_of
from unlabeled.report.confusion import Confusion
from unlabeled.report.per_class import MOST_CURVES
from unlabeled.transfer.predict import Predict
from unlabeled.transfer.task import Choice, Task


class Scorer:
    """Scores a task on labelled images, once per image, without augmentation.

    `latest` holds the newest result, None before the first.

    Args:
        predict: reads the images.
        source: the images, their classes numbered as the head's.
        train_labels: [n] of the images that were learnt from.
        choice: made before each score; None = there is nothing to choose.

    Raises:
        UserError: there are classes that no training image has.
    """

    def __init__(
        self, predict: Predict, source: Source, train_labels: np.ndarray, choice: Choice | None = None
    ) -> None:
        self.predict, self.source, self.classes, self.choice = predict, source, source.classes, choice
        self.train_counts = class_counts(train_labels, len(self.classes))
        self.latest: dict[str, Any] | None = None
        self.confusion: Confusion
        self.clock = Clock()
        _check_trained(self.source.labels, self.train_counts, self.classes)

    def __call__(self, method: Task) -> dict[str, Any]:
        """Scores in percent as JSON, see `Classification`. All processes must call it."""
        chosen = {}
        if self.choice is not None:
            self.choice(method)
            chosen = {"sweep": self.choice.summary(method)}
        found = self._classify(method)
        report, self.confusion = found.summary(), found.confusion
        self.latest = {**report, "mean_class_accuracy": report["balanced_accuracy"], **chosen}
        return self.latest

    def _classify(self, method: Task) -> Classification:
        """Above so many classes that curves are left out, no logits are kept either."""
        reduce = None if len(self.classes) <= MOST_CURVES else lambda logits, y: Outcomes.of(logits, y).columns()
        scored = self.predict(method.predict, method, self.source, reduce)
        if reduce is None:
            return classification(scored.x, scored.y, self.classes, self.train_counts)
        return classification_of(Outcomes.read(scored.x, scored.y), self.classes, self.train_counts)


def class_counts(labels: np.ndarray, num_classes: int) -> torch.Tensor:
    """Number of images of each class [C]; labels [n] below 0 are unknown."""
    return torch.from_numpy(np.bincount(labels[labels >= 0], minlength=num_classes))


def _check_trained(labels: np.ndarray, train_counts: torch.Tensor, classes: Sequence[str]) -> None:
    evaluated = class_counts(labels, len(classes))
    unseen = [repr(classes[i]) for i in ((evaluated > 0) & (train_counts == 0)).nonzero().flatten().tolist()]
    if unseen:
        raise UserError(
            f"data.val has pictures of {', '.join(unseen[:10])}, of which data.train has none. Add some to data.train, "
            "or remove the class from data.val."
        )
