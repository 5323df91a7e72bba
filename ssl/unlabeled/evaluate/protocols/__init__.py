"""Every protocol that `--protocol` knows, by name."""

from __future__ import annotations

from unlabeled.evaluate.protocol import Protocol
from unlabeled.evaluate.protocols.cka import Cka
from unlabeled.evaluate.protocols.fewshot import FewShot
from unlabeled.evaluate.protocols.knn import Knn
from unlabeled.evaluate.protocols.labelfree import LabelFree
from unlabeled.evaluate.protocols.linear import Linear
from unlabeled.evaluate.protocols.logistic import Logistic
from unlabeled.evaluate.protocols.retrieval import Retrieval
from unlabeled.evaluate.protocols.segmentation import Segmentation

PROTOCOLS: dict[str, type[Protocol]] = {
    kind.protocol: kind for kind in (Knn, Linear, Logistic, FewShot, Retrieval, LabelFree, Cka, Segmentation)
}
