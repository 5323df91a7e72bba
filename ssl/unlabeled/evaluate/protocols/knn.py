"""Weighted nearest neighbours on frozen features, by DINO's rule (Caron et al., ICCV 2021, section 4.1)."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from unlabeled.evaluate.bench import Bench
from unlabeled.evaluate.features import Features
from unlabeled.evaluate.probing import accuracy, hits_of
from unlabeled.evaluate.protocol import Pooled, Score
from unlabeled.progress import track

CHUNK_ELEMENTS = 2**24  # similarities held at once: 64 MiB
Count = Annotated[int, Field(ge=1)]
log = logging.getLogger(__name__)


class Config(Pooled, frozen=True, extra="forbid"):
    """k nearest neighbours by cosine similarity, voting with exp(similarity / temperature).

    Scores are `knn`, or one for every k of several, `knn_k10`; with top-5 accuracies, `knn_top5` beside them.
    """

    version: ClassVar[str] = "knn/1"
    summary: ClassVar[str] = "weighted nearest neighbours"
    order: ClassVar[int] = 1
    few_labels: ClassVar[bool] = True
    name: Literal["knn"] = "knn"

    k: Count | Annotated[tuple[Count, ...], Field(min_length=1)] = Field(
        20, description="neighbours that vote, at most all training pictures; DINO tries [10, 20, 100, 200]"
    )
    top5: bool = Field(
        False, description="also how often the right class is among the min(5, k) with most votes, as in DINO"
    )
    # below 1/80 the votes would overflow float32
    temperature: float = Field(
        0.07, ge=0.0125, allow_inf_nan=False, description="of the votes; small = the nearest decide"
    )

    def scores(self, bench: Bench) -> Iterator[Score]:
        train, test = bench.features(self.pool, self.blocks)
        for k in (self.k,) if isinstance(self.k, int) else self.k:
            if k > len(train.y) and bench.fraction == 1:
                log.warning("knn.k is %d, but there are %d training pictures: all of them vote", k, len(train.y))
            votes = knn_predict(train, test.x, k, self.temperature, bench.num_classes)
            name = [] if isinstance(self.k, int) else [f"k{k}"]
            for top, suffix in ((1, []), (min(5, k), ["top5"]))[: 1 + self.top5]:
                hits = hits_of(votes, test.y, top)
                yield Score("_".join(name + suffix), accuracy(hits), 100.0 * hits.cpu().numpy())


@torch.no_grad()
def knn_predict(train: Features, test: Tensor, k: int, temperature: float, num_classes: int) -> Tensor:
    """Votes [n, num_classes]: the sum of exp(cosine / temperature) over the top k neighbours of a class.

    Args:
        train: features that vote, of any norm.
        test: [n, D], on the same device.
        k: neighbours, capped at the number of training samples.
        temperature: positive.
        num_classes: above any label in `train`.
    """
    keys = F.normalize(train.x, dim=1).T.contiguous()
    k = min(k, len(train.y))
    scores = test.new_zeros(len(test), num_classes)
    rows = max(1, CHUNK_ELEMENTS // len(train.y))
    chunks = list(zip(F.normalize(test, dim=1).split(rows), scores.split(rows), strict=True))
    for queries, votes in track(chunks, "nearest neighbours", len(chunks)):
        similarity, neighbour = (queries @ keys).topk(k)
        votes.scatter_add_(1, train.y[neighbour], (similarity / temperature).exp())
    return scores
