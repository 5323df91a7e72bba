"""A part of a source: some of its images, in ascending order of their numbers."""

from __future__ import annotations

import hashlib
from collections import Counter

import numpy as np
from torch import Tensor

from unlabeled.data.source import Source


class Part(Source):
    """A source over chosen images of another.

    Args:
        source: the whole.
        indices: [m] int64, which images.
    """

    def __init__(self, source: Source, indices: np.ndarray) -> None:
        self.source, self.indices = source, indices
        self.labels, self.classes = source.labels[indices], source.classes

    @property
    def whole(self) -> Source:
        return self.source

    @property
    def unlabelled(self) -> int:
        return int((self.source.labels < 0).sum())

    @property
    def skipped(self) -> Counter[str]:
        return self.source.skipped

    def origin(self, i: int) -> tuple[Source, int]:
        return self.source.origin(int(self.indices[i]))

    def __len__(self) -> int:
        return len(self.indices)

    def image(self, i: int) -> Tensor:
        return self.source.image(int(self.indices[i]))

    def key(self, i: int) -> str:
        return self.source.key(int(self.indices[i]))

    def fingerprint(self) -> str:
        """16 hex digits over the whole's fingerprint and the choice."""
        choice = np.ascontiguousarray(self.indices, dtype=np.int64).tobytes()
        return hashlib.sha256(self.source.fingerprint().encode() + choice).hexdigest()[:16]
