"""The contract of protocols: settings in, named scores of frozen features out. Kinds are the files of `protocols/`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, NamedTuple

import numpy as np
from pydantic import BaseModel, Field

from unlabeled.backbone.pooling import FeatureSpec, Pool
from unlabeled.evaluate.bench import Bench
from unlabeled.evaluate.splits import Splits
from unlabeled.registry import ByFile

ACCURACY = "top-1 accuracy, %"


class Score(NamedTuple):
    """One number that a protocol found. A protocol may yield a plain (name, value) instead.

    Attributes:
        name: of the measure, such as `top5`, or "" for the main one. Results put the name of the protocol before it:
            `knn_top5`, `knn`.
        value: in the protocol's `unit`.
        each: [n] values of test images or episodes, whose mean is `value`; None = there are none.
        chosen: settings chosen without the test images, such as a learning rate.
        details: more numbers, such as one for every class; not in tables.
        digits: after the point in tables.
        interval: 95 % interval of a value that is no mean over images, such as an area under a curve.
    """

    name: str
    value: float
    each: np.ndarray | None = None
    chosen: dict[str, Any] | None = None
    details: dict[str, Any] | None = None
    digits: int = 1
    interval: tuple[float, float] | None = None


def scored(name: str, fraction: float) -> str:
    """Name a score: `linear` with all labels, `linear_1%` with one in a hundred."""
    return name if fraction == 1 else f"{name}_{100 * fraction:g}%"


class Protocol(BaseModel, ABC, frozen=True, extra="forbid"):
    """Judges frozen features; its fields are the settings, which recipes and `--set` may change.

    Attributes:
        version: name and number; the number grows when equal settings come to mean other results.
        summary: for the help of recipes.
        order: place among the protocols of a recipe, in its help and in results; of equal ones the name decides.
        unit: of its scores.
        few_labels: whether it reads the training labels, so that a share of them can be given.
        pixels: whether it reads `features` only, so that it can judge raw pixels too.
        labels: whether it needs the class of every image.
        name: of its file, or the import path of its module.
    """

    version: ClassVar[str]
    summary: ClassVar[str] = ""
    order: ClassVar[int] = 100
    unit: ClassVar[str] = ACCURACY
    few_labels: ClassVar[bool] = False
    pixels: ClassVar[bool] = False
    labels: ClassVar[bool] = True
    name: str

    def required_features(self, pool: Pool, depth: int) -> list[FeatureSpec]:
        """List the features that `scores` reads, so that those of all protocols come from one pass over the images.

        Args:
            pool: of the evaluation, for settings without one.
            depth: number of readable blocks of the encoder.
        """
        return []

    def check(self, splits: Splits) -> None:
        """Check labels and classes before anything is computed. Raises UserError when they do not suffice."""

    @abstractmethod
    def scores(self, bench: Bench) -> Iterator[tuple[str, float] | Score]:
        """Yield the scores. Draws nothing from torch's random state, and leaves the encoder as it is.

        Raises:
            UserError: the images or the encoder do not suffice.
        """


class Pooled(Protocol, frozen=True, extra="forbid"):
    """A protocol that reads one kind of features and nothing else."""

    pixels: ClassVar[bool] = True

    pool: Pool | None = Field(
        None, description="class token, mean of the patches, or both; mean and maximum; null = as evaluate.pool says"
    )
    blocks: int = Field(1, ge=1, description="how many of the last blocks to concatenate, each through the final norm")

    def required_features(self, pool: Pool, depth: int) -> list[FeatureSpec]:
        return [FeatureSpec(self.pool or pool, self.blocks)]


PROTOCOLS = ByFile("unlabeled.evaluate.protocols", Protocol)
AnyProtocol = Annotated[Protocol, PROTOCOLS]
