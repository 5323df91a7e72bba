"""RanPAC on frozen features (McDonnell et al. 2023): a random projection, and ridge regression on it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from unlabeled.evaluate.bench import Bench
from unlabeled.evaluate.features import Features
from unlabeled.evaluate.probing import accuracy, exactly, hits_of, of_classes_there
from unlabeled.evaluate.protocol import Pooled, Score
from unlabeled.incremental.strategies.ranpac import PART, chosen_ridge, projected, solved, sums
from unlabeled.randomness import Stream, stream

PROJECTION, RIDGE = 0, 1  # the last part of a stream's key


class Config(Pooled, frozen=True, extra="forbid"):
    """A linear head on ReLU(features W), W standard normal: (H' H + ridge I)^-1 H' Y, solved and not trained."""

    version: ClassVar[str] = "ranpac/1"
    summary: ClassVar[str] = "random projection and ridge regression"
    order: ClassVar[int] = 3
    few_labels: ClassVar[bool] = True
    name: Literal["ranpac"] = "ranpac"

    dim: int = Field(2000, ge=1, description="of the projection; 10,000 in the paper, whose Gram matrix has 0.8 GB")
    ridge: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="added to the Gram matrix's diagonal; null = of 1e-8 .. 1e8, the best on a fifth of the training "
        "pictures",
    )

    def scores(self, bench: Bench) -> Iterator[Score]:
        train, test = map(exactly, bench.features(self.pool, self.blocks))
        scores, ridge = ridge_scores(train, test.x, bench.num_classes, self, bench.seed)
        hits = hits_of(scores, test.y)
        yield Score("", accuracy(hits), 100.0 * hits.cpu().numpy(), {"ridge": ridge})


@torch.no_grad()
def ridge_scores(
    train: Features, test: Tensor, num_classes: int, config: Config, seed: int = 0
) -> tuple[Tensor, float]:
    """Scores [n, num_classes] of features [n, D], -inf for a class without an image, and the ridge.

    The projection and the fifth that chooses the ridge are drawn from the seed.
    """
    x, y = train.x, train.y
    drawn = stream(seed, Stream.RIDGE, PROJECTION).standard_normal((x.shape[1], config.dim))
    projection = torch.from_numpy(drawn).to(x)
    ridge = config.ridge
    if ridge is None:
        order = torch.from_numpy(stream(seed, Stream.RIDGE, RIDGE).permutation(len(y))).to(y.device)
        ridge = chosen_ridge(x[order], y[order], projection, num_classes)
    head = solved(*sums(x, y, projection, num_classes), ridge)
    found = torch.cat([projected(part, projection) @ head for part in test.split(PART)])
    return of_classes_there(found, y), ridge
