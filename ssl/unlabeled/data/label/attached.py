"""Labels that a data set has in an attribute, as those of torchvision."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from unlabeled.data.label.labels import Numbered, is_missing, numbered, renumbered

# where torchvision's classes keep their labels
LABELS = ("targets", "labels", "_labels", "_targets", "y")


def attached(dataset: Any, order: Sequence[str] | None) -> Numbered | None:
    """Class names and the class of each image, numbered by `order`; None = no attribute has a label for each.

    Without an `order` classes are numbered as the data set's `classes` names them, else naturally.
    """
    found = next((getattr(dataset, name) for name in LABELS if hasattr(dataset, name)), None)
    if found is None or isinstance(found, str) or not hasattr(found, "__len__") or len(found) != len(dataset):
        return None
    return called(np.asarray(found).tolist(), getattr(dataset, "classes", ()), order)


def called(values: Sequence[Any], names: Any, order: Sequence[str] | None) -> Numbered:
    """Number labels [n]: by their `names` where they are numbers below their count, else as text."""
    known = [value for value in values if not is_missing(value)]
    if known and all(isinstance(value, int) and value < len(names) for value in known):
        return renumbered(list(map(str, names)), np.asarray(values, np.int64), order)
    return numbered(values, order)
