"""Every protocol that `--protocol` knows, by name."""

from __future__ import annotations

from unlabeled.evaluate.base import Protocol
from unlabeled.evaluate.knn import Knn
from unlabeled.evaluate.linear import Linear

PROTOCOLS: dict[str, type[Protocol]] = {kind.protocol: kind for kind in (Knn, Linear)}
