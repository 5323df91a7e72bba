"""Every protocol that `--protocol` knows, by name."""

from __future__ import annotations

from unlabeled.evaluate.base import Protocol
from unlabeled.evaluate.cka import Cka
from unlabeled.evaluate.fewshot import FewShot
from unlabeled.evaluate.knn import Knn
from unlabeled.evaluate.labelfree import LabelFree
from unlabeled.evaluate.linear import Linear
from unlabeled.evaluate.logistic import Logistic
from unlabeled.evaluate.retrieval import Retrieval

PROTOCOLS: dict[str, type[Protocol]] = {
    kind.protocol: kind for kind in (Knn, Linear, Logistic, FewShot, Retrieval, LabelFree, Cka)
}
