"""The amount of labels that a rung may use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from unlabeled.data.label.subset import few_shot, stratified


class Amount(NamedTuple):
    """A share of the labels of every class, or a number of labels of each."""

    fraction: float = 1.0  # the share; 1 where `shots` is given
    shots: int | None = None  # labels of every class; None = a share

    @property
    def short(self) -> str:
        """`10 %` or `5 a class`."""
        return f"{100 * self.fraction:g} %" if self.shots is None else f"{self.shots} a class"

    @property
    def phrase(self) -> str:
        """`10 % of the labels` or `5 labels a class`."""
        return f"{self.short} of the labels" if self.shots is None else f"{self.shots} labels a class"

    @property
    def key(self) -> str:
        """For names of folders: `10pct` or `5shots`."""
        return f"{100 * self.fraction:g}pct" if self.shots is None else f"{self.shots}shots"

    @property
    def all(self) -> bool:
        """Whether it is every label, so that there is nothing to draw."""
        return self.shots is None and self.fraction == 1

    def choose(self, labels: np.ndarray, seed: int, names: Sequence[str] = ()) -> np.ndarray:
        """Sorted indices into labels [n]. Raises UserError where a class has too few."""
        if self.shots is not None:
            return few_shot(labels, self.shots, seed, names)
        return stratified(labels, self.fraction, seed, names=names)
