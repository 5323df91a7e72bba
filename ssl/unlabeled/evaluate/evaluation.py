"""How an encoder is judged: what is read out of its frozen features, and from how many labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import BaseModel, Field

from unlabeled.backbone.config import EncoderConfig
from unlabeled.backbone.encoder import Encoder
from unlabeled.backbone.pooling import FeatureSpec, Pool
from unlabeled.data.batch.loader import Normalize
from unlabeled.data.opened import Opened
from unlabeled.data.source import Source
from unlabeled.data.view.views import Interpolation
from unlabeled.errors import UserError
from unlabeled.evaluate.bench import Bench
from unlabeled.evaluate.features import WORKER_TIMEOUT, Encode, Features, extract
from unlabeled.evaluate.protocol import Protocol, Score
from unlabeled.evaluate.protocols.cka import Cka
from unlabeled.evaluate.protocols.fewshot import FewShot
from unlabeled.evaluate.protocols.knn import Knn
from unlabeled.evaluate.protocols.labelfree import LabelFree
from unlabeled.evaluate.protocols.linear import Linear
from unlabeled.evaluate.protocols.logistic import Logistic
from unlabeled.evaluate.protocols.retrieval import Retrieval
from unlabeled.evaluate.protocols.segmentation import Segmentation
from unlabeled.evaluate.results import scored

SPARED = 0.1  # share of bad pictures that is no reason to refuse a score: labelled sets are small
Fraction = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]


class Evaluation(BaseModel, frozen=True, extra="forbid"):
    """The recipe's `evaluate:` section: probes of frozen features, fitted on `train`, tested on `val`."""

    every: int | None = Field(None, ge=1, description="steps between evaluations; null = only at the end")
    pool: Pool | None = Field(
        None,
        description="the class token, the mean of the patches, both, or mean and maximum; null = as the method is "
        "evaluated (mae and simmim: mean; others: the class token where there is one). The export says it too",
    )
    crop_pct: float = Field(
        0.875,
        gt=0,
        le=1,
        allow_inf_nan=False,
        description="share of the short side that the central crop keeps",
    )
    interpolation: Interpolation = Field("bicubic", description="how pictures are resized")
    batch_size: int = Field(256, ge=1, description="pictures encoded at a time, per process")
    knn: Knn | None = Field(Knn(), description="weighted nearest neighbours; null = none")
    linear: Linear | None = Field(Linear(), description="a linear probe; null = none")
    logistic: Logistic | None = Field(
        None, description="logistic regression solved to the end; null = none, {} = as it is"
    )
    fewshot: FewShot | None = Field(None, description="few-shot episodes on test pictures; null = none, {} = as it is")
    labelfree: LabelFree | None = Field(
        None, description="RankMe, LiDAR, alignment and uniformity, which read no labels; null = none, {} = as it is"
    )
    retrieval: Retrieval | None = Field(None, description="image retrieval; null = none, {} = as it is")
    cka: Cka | None = Field(None, description="similarity of the encoder's blocks; null = none, {} = as it is")
    segmentation: Segmentation | None = Field(
        None, description="a linear head on patch tokens, where the pictures have masks; null = none, {} = as it is"
    )
    fractions: tuple[Fraction, ...] = Field(
        (1.0,), min_length=1, description="shares of the training labels to use, each its own result"
    )

    @property
    def protocols(self) -> list[Protocol]:
        """Those that are switched on, in the order of the fields."""
        values = (getattr(self, name) for name in type(self).model_fields)
        return [value for value in values if isinstance(value, Protocol)]

    def check_reads(self, encoder: EncoderConfig) -> None:
        """Raise UserError when encoders of a recipe lack features that are asked for."""
        pool = self.pool or "mean"
        for kind in (FeatureSpec(pool), *(kind for protocol in self.protocols for kind in protocol.kinds(pool))):
            if not encoder.family.can_read(kind.pool, kind.blocks):
                raise UserError(
                    f"evaluate asks for pool={kind.pool} of {kind.blocks} block(s), but {encoder.in_words} has no "
                    "class token, and its last map alone is read. Set evaluate.pool=mean, and take `cls` and more "
                    "blocks out of its protocols."
                )


class Splits:
    """The labelled pictures of both splits, opened when first asked for.

    Args:
        config: crop, interpolation and batch size.
        data: the images, and their normalisation.
        device: where encoders and probes run.
        workers: processes that load pictures.
        rank, world: this process and how many there are.
        labels: whether the class of every picture matters; if not, all are of one. None = as the evaluation's protocols
            say.
        timeout: seconds to wait for a batch of a worker.
    """

    def __init__(
        self,
        config: Evaluation,
        data: Opened,
        device: torch.device,
        workers: int = 0,
        rank: int = 0,
        world: int = 1,
        labels: bool | None = None,
        timeout: float = WORKER_TIMEOUT,
    ) -> None:
        self.config, self.data, self.device = config, data, device
        self.workers, self.rank, self.world, self.timeout = workers, rank, world, timeout
        self.known: dict[Protocol, Any] = {}  # what a protocol has found out of the pictures, to look once
        needed = [protocol.labels for protocol in config.protocols]
        self.labels = any(needed) or not needed if labels is None else labels

    @cached_property
    def sources(self) -> tuple[Source, Source]:
        """(train, val). Raises UserError when one has no labels, their classes differ, or they share pictures."""
        sources = self._labelled() if self.labels else self._unlabelled()
        self.data.check_apart(*sources)
        return sources

    def _unlabelled(self) -> tuple[Source, Source]:
        return _of_one_class(self.data.original("train")), _of_one_class(self.data.original("val"))

    def _labelled(self) -> tuple[Source, Source]:
        train, val = self.data.train, self.data.val
        for name, source in (("train", train), ("val", val)):
            if not (np.asarray(source.labels) >= 0).any():
                raise UserError(
                    f"evaluation needs labels, and no picture of {name} has one. Put each picture of {name} "
                    "in a folder of its class, or switch evaluation off with evaluate=null."
                )
        if len(train.classes) == 1:
            raise UserError(
                f"train has one class, {train.classes[0]!r}; expected at least two to tell apart. Give each class a "
                "folder of its own right below train, or switch evaluation off with evaluate=null."
            )
        if train.classes != val.classes:
            raise UserError(
                f"train has {len(train.classes)} classes {train.classes[:5]}, val has {len(val.classes)} "
                f"{val.classes[:5]}. Give both splits the same class folders."
            )
        if len(strange := np.setdiff1d(val.labels[val.labels >= 0], train.labels)):
            names = ", ".join(repr(train.classes[label]) for label in strange[:10])
            raise UserError(
                f"val has pictures of classes that train has none of: {names}. Give train some, or take these "
                "classes out of val."
            )
        return train, val

    def check(self) -> None:
        """Raise now what `sources` or a protocol of the evaluation would."""
        _ = self.sources
        for protocol in self.config.protocols:
            protocol.check(self)

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.sources[0].classes)

    def features(self, encode: Encode, shape: tuple[int, int]) -> tuple[Features, Features]:
        """Features of (train, val) from `encode`, which receives images of `shape` pixels; on the device."""
        train, val = (
            extract(
                encode,
                source,
                shape=shape,
                crop_pct=self.config.crop_pct,
                interpolation=self.config.interpolation,
                normalize=Normalize(self.data.config.mean, self.data.config.std, self.device),
                device=self.device,
                batch_size=self.config.batch_size,
                workers=self.workers,
                rank=self.rank,
                world=self.world,
                timeout=self.timeout,
                max_bad=max(self.data.config.max_bad_fraction, SPARED),
            )
            for source in self.sources
        )
        return train.to(self.device), val.to(self.device)


def _of_one_class(source: Source) -> Source:
    return source.relabelled(np.zeros(len(source), np.int64), ("picture",))


class Evaluator:
    """An encoder in, named scores out. Knows nothing of training.

    Args:
        splits: the labelled pictures, and the recipe's `evaluate:` section.
        shape: (height, width) that the encoder is evaluated at, pixels.
    """

    def __init__(self, splits: Splits, shape: tuple[int, int]) -> None:
        self.splits, self.shape = splits, shape

    def __call__(self, encoder: Encoder, pool: Pool | None = None) -> Iterator[tuple[str, float]]:
        """Yield ("knn", percent), ("linear", percent), then the same for smaller shares as "linear_1%".

        All processes must call it and get the same scores. Neither the encoder nor the random state changes.

        Args:
            encoder: in any mode.
            pool: how its tokens become one vector where the recipe does not say; None = the network's default.

        Raises:
            UserError: the pictures have no labels, or the encoder cannot be pooled as asked.
        """
        config = self.splits.config
        bench = Bench(encoder, self.splits, self.shape, pool=pool)
        bench.prepare(wanted for protocol in config.protocols for wanted in protocol.wants(bench))
        for protocol, fraction in runs(config.protocols, config.fractions):
            for score in measured(protocol, bench.few(fraction)):
                yield scored(score.name, fraction), score.value


def runs(protocols: Sequence[Protocol], fractions: Sequence[float]) -> Iterator[tuple[Protocol, float]]:
    """Which protocol is run with what share of the labels; those that read no training labels are run once, last."""
    for fraction in fractions:
        yield from ((protocol, fraction) for protocol in protocols if protocol.few_labels)
    yield from ((protocol, 1.0) for protocol in protocols if not protocol.few_labels)


def measured(protocol: Protocol, bench: Bench) -> list[Score]:
    """What a protocol finds, in float32 even where the caller runs under autocast."""
    with torch.autocast(bench.device.type, enabled=False):
        return [Score(*found) for found in protocol.scores(bench)]
