"""Weighted nearest neighbours on frozen features, by DINO's rule (Caron et al., ICCV 2021, section 4.1)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import BaseModel, Field
from torch import Tensor

from unlabeled.evaluate.features import Features

# similarities held at once: 64 MiB
CHUNK_ELEMENTS = 2**24


class Knn(BaseModel, frozen=True, extra="forbid"):
    """k nearest neighbours by cosine similarity, voting with exp(similarity / temperature)."""

    k: int = Field(20, ge=1, description="neighbours that vote; at most all training pictures")
    # below 1/80 the votes would overflow float32
    temperature: float = Field(
        0.07, ge=0.0125, allow_inf_nan=False, description="of the votes; small = the nearest decide"
    )


@torch.no_grad()
def knn_predict(train: Features, test: Tensor, k: int, temperature: float, num_classes: int) -> Tensor:
    """Votes [n, num_classes]: the sum of exp(cosine / temperature) over the top k neighbours of a class.

    Args:
        train: the features that vote, not necessarily normalised.
        test: [n, D], on the same device.
        k: neighbours, capped at the number of training samples.
        temperature: positive.
        num_classes: more than any label in `train`.
    """
    keys = F.normalize(train.x, dim=1).T.contiguous()
    k = min(k, len(train.y))
    scores = test.new_zeros(len(test), num_classes)
    rows = max(1, CHUNK_ELEMENTS // len(train.y))
    for queries, votes in zip(F.normalize(test, dim=1).split(rows), scores.split(rows), strict=True):
        similarity, neighbour = (queries @ keys).topk(k)
        votes.scatter_add_(1, train.y[neighbour], (similarity / temperature).exp())
    return scores


def knn_accuracy(train: Features, test: Features, k: int, temperature: float, num_classes: int) -> float:
    """Top-1 accuracy of the votes, percent."""
    prediction = knn_predict(train, test.x, k, temperature, num_classes).argmax(1)
    return 100 * (prediction == test.y).sum().item() / len(test.y)
