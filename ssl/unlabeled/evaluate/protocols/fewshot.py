"""Few-shot classification in episodes: a few classes, a few images of each to learn from, others to classify."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from unlabeled.errors import UserError
from unlabeled.evaluate.bench import Bench
from unlabeled.evaluate.logistic_regression import fit
from unlabeled.evaluate.protocol import Pooled, Score
from unlabeled.evaluate.splits import Splits
from unlabeled.progress import track
from unlabeled.randomness import Stream, stream

AT_ONCE = 100  # episodes
Classifier = Literal["prototype", "logistic"]
Count = Annotated[int, Field(ge=1)]


class Config(Pooled, frozen=True, extra="forbid"):
    """N-way K-shot episodes on features of the test images, scaled to unit length; training images are not read.

    `prototype` names the class whose mean is nearest (Snell et al. 2017, equations 1 and 2, Euclidean); `logistic` is
    regularised regression (Tian et al. 2020, section 3.1).
    """

    version: ClassVar[str] = "fewshot/1"
    summary: ClassVar[str] = "few-shot episodes on test pictures"
    order: ClassVar[int] = 4
    unit: ClassVar[str] = "mean accuracy of episodes, %"
    name: Literal["fewshot"] = "fewshot"

    ways: int = Field(5, ge=2, description="classes of an episode")
    shots: tuple[Count, ...] = Field((1, 5), min_length=1, description="labelled pictures of each class, to try")
    queries: int = Field(15, ge=1, description="other pictures of each class, to be classified")
    episodes: int = Field(600, ge=2, description="episodes, drawn anew for each number of shots")
    classifiers: tuple[Classifier, ...] = Field(("prototype", "logistic"), min_length=1, description="what learns")
    c: float = Field(
        1.0, gt=0, allow_inf_nan=False, description="inverse strength of the regression's penalty, as in scikit-learn"
    )

    def check(self, splits: Splits) -> None:
        val = splits.sources[1]
        enough(val.labels[val.labels >= 0], val.classes, self, max(self.shots))

    def scores(self, bench: Bench) -> Iterator[Score]:
        _, test = bench.features(self.pool, self.blocks)
        classes, labels, x = bench.splits.sources[1].classes, test.y.cpu().numpy(), F.normalize(test.x, dim=1)
        for shots in self.shots:
            enough(labels, classes, self, shots)
            rows = episodes(labels, self, shots, bench.seed).to(x.device)
            for name in self.classifiers:
                each = 100 * self.accuracies(name, x, rows, shots).cpu().numpy()
                yield Score(f"{name}_{self.ways}way_{shots}shot", float(each.mean()), each)

    def accuracies(self, classifier: Classifier, x: Tensor, rows: Tensor, shots: int) -> Tensor:
        """Accuracy of every episode [E], of rows [E, ways, shots + queries] of unit features x [n, D]."""
        learn: Callable[[Tensor, Tensor], Tensor] = prototypes if classifier == "prototype" else self.regression
        found = []
        for some in track(rows.split(AT_ONCE), f"episodes of {shots} shots", len(rows), len):
            support, queries = x[some[:, :, :shots]], x[some[:, :, shots:]]
            predicted = learn(support, queries.flatten(1, 2)).argmax(-1).unflatten(1, queries.shape[1:3])
            right = predicted == torch.arange(self.ways, device=x.device).unsqueeze(1)
            found.append(right.double().mean((1, 2)))
        return torch.cat(found)

    def regression(self, support: Tensor, queries: Tensor) -> Tensor:
        """Class scores [E, Q, ways] of queries [E, Q, D] by logistic regression on the support [E, ways, shots, D]."""
        ways, shots = support.shape[1:3]
        y = torch.arange(ways, device=support.device).repeat_interleave(shots).expand(len(support), -1)
        return fit(support.flatten(1, 2), y, ways, 1 / (self.c * ways * shots)).regression.logits(queries)


def prototypes(support: Tensor, queries: Tensor) -> Tensor:
    """Minus the distance of queries [E, Q, D] to the means of the support [E, ways, shots, D]: [E, Q, ways]."""
    return -torch.cdist(queries, support.mean(2))


def episodes(labels: np.ndarray, config: Config, shots: int, seed: int) -> Tensor:
    """Draw rows of images [episodes, ways, shots + queries] from labels [n]; no image is twice in an episode."""
    rng = stream(seed, Stream.EPISODE, shots)
    members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    size = shots + config.queries
    drawn = []
    for _ in range(config.episodes):
        classes = rng.choice(len(members), config.ways, replace=False)
        drawn.append([rng.choice(members[label], size, replace=False) for label in classes])
    return torch.from_numpy(np.array(drawn))


def enough(labels: np.ndarray, classes: tuple[str, ...], config: Config, shots: int) -> None:
    """Raise UserError when episodes need more classes than there are, or more images of a class."""
    found, counts = np.unique(labels, return_counts=True)
    ways, queries = config.ways, config.queries
    if len(found) < ways:
        raise UserError(
            f"fewshot.ways is {ways}, the test pictures have {len(found)} classes. Set fewshot.ways={len(found)}."
        )
    if (count := counts.min()) < shots + queries:
        raise UserError(
            f"class {classes[found[counts.argmin()]]!r} has {count} test pictures, fewer than {shots} shots and "
            f"{queries} queries ask for. Lower fewshot.shots or fewshot.queries: together at most {count}."
        )
