"""What every protocol of evaluation is: settings in, named scores of frozen features out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
from pydantic import BaseModel, Field

from unlabeled.backbone.pooling import FeatureSpec, Pool

if TYPE_CHECKING:
    from unlabeled.evaluate.bench import Bench
    from unlabeled.evaluate.evaluation import Splits


class Score(NamedTuple):
    """One number that a protocol found. A protocol may yield a plain (name, value) instead.

    Attributes:
        name: `knn`, `linear`.
        value: in the protocol's `unit`.
        each: [n] the parts whose mean the value is, one for every test picture or episode; None = no such parts.
        chosen: what was chosen without the test pictures, such as a learning rate.
        details: more numbers that it goes with, such as one for every class; not in tables.
        digits: how many a table shows after the point.
    """

    name: str
    value: float
    each: np.ndarray | None = None
    chosen: dict[str, Any] | None = None
    details: dict[str, Any] | None = None
    digits: int = 1


class Protocol(BaseModel, ABC, frozen=True, extra="forbid"):
    """How frozen features are judged; its fields are the settings, which recipes and `--set` may change.

    Attributes:
        protocol: its name, as `--protocol` takes it.
        version: name and number; the number grows when equal settings come to mean other results.
        unit: of its scores.
        few_labels: whether it reads the training labels, so that it can be run with a share of them.
        pixels: whether it needs nothing but `features`, so that raw pixels can be judged by it too.
        labels: whether it needs the class of every picture.
    """

    protocol: ClassVar[str]
    version: ClassVar[str]
    unit: ClassVar[str] = "top-1 accuracy, %"
    few_labels: ClassVar[bool] = False
    pixels: ClassVar[bool] = False
    labels: ClassVar[bool] = True

    def wants(self, bench: Bench) -> list[FeatureSpec]:
        """The features it will ask of the bench, so that all protocols' come from one pass over the pictures."""
        return self.kinds(bench.pool)

    def kinds(self, pool: Pool) -> list[FeatureSpec]:
        """Those that follow from the settings alone, `pool` where they do not say."""
        return []

    def check(self, splits: Splits) -> None:
        """Look at labels and classes before anything is computed, or trained for hours.

        Raises:
            UserError: the pictures do not allow it.
        """

    @abstractmethod
    def scores(self, bench: Bench) -> Iterator[tuple[str, float] | Score]:
        """Yield what it finds. Draws nothing from torch's random state, and leaves the encoder as it is.

        Raises:
            UserError: the pictures or the encoder do not allow it.
        """


class Pooled(Protocol, frozen=True, extra="forbid"):
    """A protocol that reads one kind of features and nothing else."""

    pixels: ClassVar[bool] = True

    pool: Pool | None = Field(
        None, description="class token, mean of the patches, or both; mean and maximum; null = as evaluate.pool says"
    )
    blocks: int = Field(1, ge=1, description="how many of the last blocks to concatenate, each through the final norm")

    def kinds(self, pool: Pool) -> list[FeatureSpec]:
        return [FeatureSpec(self.pool or pool, self.blocks)]
