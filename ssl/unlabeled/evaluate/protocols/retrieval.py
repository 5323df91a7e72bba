"""Image retrieval on frozen features: every test image asks for the others of its class."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from unlabeled.errors import UserError
from unlabeled.evaluate.bench import Bench
from unlabeled.evaluate.features import Features
from unlabeled.evaluate.protocol import Pooled, Score
from unlabeled.evaluate.splits import Splits
from unlabeled.progress import track

CHUNK_ELEMENTS = 2**22  # similarities ranked at once: 16 MiB, and twice that of places
Count = Annotated[int, Field(ge=1)]


class Config(Pooled, frozen=True, extra="forbid"):
    """Each test image queries the other test images by cosine similarity; those of its class are relevant.

    Scores are `retrieval_map`, the mean over queries of the average precision of the full ranking (Manning, Raghavan &
    Schütze 2008, section 8.4); `retrieval_recall10`, the share of queries with a relevant image among the first 10, the
    recall@10 of metric learning (Jégou et al. 2011; Oh Song et al. 2016); and `retrieval_precision10`, the share of
    relevant images among them. Queries without another image of their class are left out.
    """

    version: ClassVar[str] = "retrieval/1"
    summary: ClassVar[str] = "image retrieval"
    order: ClassVar[int] = 6
    unit: ClassVar[str] = "mean over queries, %"
    name: Literal["retrieval"] = "retrieval"

    recall: tuple[Count, ...] = Field((1, 5, 10), description="numbers of pictures to look for a relevant one in")
    precision: tuple[Count, ...] = Field((10,), description="numbers of pictures to count relevant ones in")

    def check(self, splits: Splits) -> None:
        labels = torch.from_numpy(splits.sources[1].labels)
        with_company(labels[labels >= 0])

    def scores(self, bench: Bench) -> Iterator[Score]:
        _, test = bench.features(self.pool, self.blocks)
        found = rank(test, max((1, *self.recall, *self.precision)), bench.seed)
        named = {
            "map": found.average_precision,
            **{f"recall{k}": found.relevant[:, :k].any(1) for k in self.recall},
            **{f"precision{k}": found.relevant[:, :k].double().mean(1) for k in self.precision},
        }
        for name, values in named.items():
            each = 100 * values.double().numpy()
            yield Score(name, float(each.mean()), each)


class Ranked(NamedTuple):
    """Of Q queries, on the CPU: average precisions [Q] float64, and relevance [Q, K] bool of the first K images."""

    average_precision: Tensor
    relevant: Tensor


@torch.no_grad()
def rank(pictures: Features, most: int, seed: int = 0) -> Ranked:
    """Rank all other images for each, by cosine similarity.

    Args:
        pictures: features and labels.
        most: K, at most all others.
        seed: of the order of equally similar images. In their own order, by class, collapsed features would score well.

    Raises:
        UserError: no class has two images.
    """
    x, n = F.normalize(pictures.x, dim=1), len(pictures.y)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed)).to(x.device)
    candidates, labels, place = x[order].T.contiguous(), pictures.y[order], order.argsort()
    queries, precisions, first = with_company(pictures.y), [], []
    for rows in track(queries.split(max(1, CHUNK_ELEMENTS // n)), "retrieval", len(queries), len):
        similarity = x[rows] @ candidates
        similarity[torch.arange(len(rows)), place[rows]] = -torch.inf  # itself comes last, and is cut off
        ranking = similarity.argsort(dim=1, descending=True, stable=True)[:, :-1]
        relevant = labels[ranking] == pictures.y[rows].unsqueeze(1)
        precisions.append(average_precision(relevant).cpu())
        first.append(relevant[:, :most].cpu())
    return Ranked(torch.cat(precisions), torch.cat(first))


def with_company(labels: Tensor) -> Tensor:
    """Indices of images that share their class [n] with another. Raises UserError where there are none."""
    found = (labels.bincount()[labels] > 1).nonzero().flatten()
    if not len(found):
        raise UserError(
            f"no class has two of the {len(labels)} test pictures, so there is nothing to retrieve. Give it more."
        )
    return found


def average_precision(relevant: Tensor) -> Tensor:
    """Average precision [Q] of whole rankings [Q, N] bool: the mean, over relevant places k, of the precision up to k.

    Each row has a relevant place.
    """
    places = torch.arange(1, relevant.shape[1] + 1, device=relevant.device)
    precision = relevant.cumsum(1) / places.double()
    return (precision * relevant).sum(1) / relevant.sum(1)
