"""What a model gives for images: features, or probabilities of classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from unlabeled.evaluate.features import Bad


@dataclass(frozen=True, eq=False)
class Embeddings:
    """Features of images, in their order. numpy and scikit-learn take it as an array [N, D].

    Attributes:
        features: [N, D] float32, on the CPU.
        tokens: [N, P, D] float32, of the patches; None = not asked for.
        keys: names of the images: paths, archives and members in them, or `images[3]`.
        labels: [N] int64, of a labelled folder or table, -1 where unknown.
        classes: names of the labels by number; () where there are none.
        bad: (key, reason) of images of a folder that cannot be used: they are left out.
    """

    features: Tensor
    tokens: Tensor | None
    keys: list[str]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    bad: list[Bad]

    @property
    def shape(self) -> tuple[int, int]:
        """(N, D)."""
        n, width = self.features.shape
        return n, width

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, rows: Any) -> Tensor:
        return self.features[rows]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        found = self.features.numpy()
        return np.array(found, dtype) if copy or dtype not in (None, found.dtype) else found

    def __repr__(self) -> str:
        left_out = f", {len(self.bad)} left out (see bad)" if self.bad else ""
        kinds = f", {len(self.classes)} classes" if self.classes else ""
        return f"Embeddings({len(self)} images, {self.shape[1]} features each{kinds}{left_out})"


@dataclass(frozen=True, eq=False)
class Predictions:
    """Classes of images, in their order.

    Attributes:
        probabilities: [N, C] float32, on the CPU, rows sum to 1.
        classes: names of the classes by number.
        keys, bad: as of `Embeddings`.
    """

    probabilities: Tensor
    classes: tuple[str, ...]
    keys: list[str]
    bad: list[Bad]

    @property
    def labels(self) -> NDArray[np.int64]:
        """The most probable class of each image, by number [N]."""
        return np.asarray(self.probabilities.argmax(1))

    @property
    def names(self) -> list[str]:
        """The most probable class of each image, by name."""
        return [self.classes[number] for number in self.labels]

    def __len__(self) -> int:
        return len(self.probabilities)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        found = self.probabilities.numpy()
        return np.array(found, dtype) if copy or dtype not in (None, found.dtype) else found

    def __repr__(self) -> str:
        shown = ", ".join(self.names[:3]) + (", ..." if len(self) > 3 else "")
        return f"Predictions({len(self)} images of {len(self.classes)} classes: {shown})"
