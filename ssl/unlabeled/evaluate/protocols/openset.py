"""Which images are of no known class: seven scores of frozen features, judged as detectors of unknown images."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from pydantic import BeforeValidator, Field
from torch import Tensor

from unlabeled.backbone.pooling import FeatureSpec
from unlabeled.data.source import AnyData, Source, SourceConfig
from unlabeled.errors import UserError
from unlabeled.evaluate.bench import Bench
from unlabeled.evaluate.features import Features
from unlabeled.evaluate.openset_measures import Trial, measure, measured
from unlabeled.evaluate.openset_scores import (
    DIRECTIONS,
    NEIGHBOURS,
    Head,
    energy,
    knn,
    mahalanobis,
    maxlogit,
    msp,
    relative_mahalanobis,
    vim,
)
from unlabeled.evaluate.probing import standardize
from unlabeled.evaluate.protocol import Pooled, Score
from unlabeled.evaluate.protocols import linear
from unlabeled.evaluate.splits import Splits
from unlabeled.progress import track
from unlabeled.randomness import Stream, stream

Name = Literal["msp", "maxlogit", "energy", "knn", "mahalanobis", "relative", "vim"]
EVERY: tuple[Name, ...] = ("msp", "maxlogit", "energy", "knn", "mahalanobis", "relative", "vim")
OF_LOGITS = {"msp", "maxlogit", "energy", "vim"}
PROBE = linear.Config(standardize=False)  # features are standardised before


def _folder(value: Any) -> Any:
    """The section that a path alone stands for."""
    return {"name": "files", "path": value, "stray": "keep"} if isinstance(value, str) else value


class Config(Pooled, frozen=True, extra="forbid"):
    """Classes of the training images are known. Unknown images are others, or those of classes that are held out.

    Scores are AUROCs by the name of the score, such as `openset_energy`; details hold AUPR both ways and FPR95 too,
    the share of KNOWN images that are flagged where 95 % of the UNKNOWN ones are found. With classes held out, all are
    means over draws. `knn`, `mahalanobis` and `relative` read frozen features, the others a linear probe on them.
    """

    version: ClassVar[str] = "openset/1"
    summary: ClassVar[str] = "which pictures are of no known class"
    order: ClassVar[int] = 9
    unit: ClassVar[str] = "AUROC of unknown against known pictures, %"
    few_labels: ClassVar[bool] = True
    pixels: ClassVar[bool] = False  # their covariances would take minutes
    name: Literal["openset"] = "openset"

    unknown: Annotated[AnyData | None, BeforeValidator(_folder)] = Field(
        None,
        description="pictures of unknown classes: a section like `data`, or only a folder or tar; null = classes are "
        "held out",
    )
    hold_out: float = Field(0.5, gt=0, lt=1, description="share of the classes that a draw holds out as unknown")
    draws: int = Field(5, ge=1, description="draws of those classes, which the seed decides")
    measures: tuple[Name, ...] = Field(EVERY, min_length=1, description="scores to compute")
    k: int = Field(NEIGHBOURS, ge=1, description="knn: the neighbour whose distance counts, at most all pictures")
    temperature: float = Field(1.0, gt=0, allow_inf_nan=False, description="energy: T of T logsumexp(logits / T)")
    directions: int | None = Field(
        None,
        ge=1,
        description=f"vim: directions of the known pictures; null = {DIRECTIONS}, of features that are no wider half",
    )

    def check(self, splits: Splits) -> None:
        if self.unknown is None:
            self._held(len(splits.sources[0].classes))
        else:
            pictures(self.unknown, splits)

    def scores(self, bench: Bench) -> Iterator[Score]:
        trials: dict[str, list[Trial]] = {name: [] for name in self.measures}
        cases = list(self._cases(bench))
        for case in track(cases, "open-set scores", len(cases)):
            for name, values in self.values(case.train, case.x, bench.seed).items():
                trials[name].append(Trial(values.double().cpu().numpy(), case.unknown))
        for name, each in trials.items():
            mean, intervals = measured(each, bench.seed)
            details = {
                **mean._asdict(),
                "intervals": intervals,
                "draws": [measure(*trial)._asdict() for trial in each],
                "unknown": [int(trial.unknown.sum()) for trial in each],
            }
            yield Score(name, mean.auroc, details=details, interval=intervals["auroc"])

    def values(self, train: Features, x: Tensor, seed: int) -> dict[str, Tensor]:
        """Scores [m] by name of features x [m, D]; the classes of `train` are 0, 1, 2 ... without a gap."""
        # line by line as float64 where the device has it; Apple's GPUs have nothing else than float32
        precise = torch.float32 if x.device.type == "mps" else torch.float64
        known, other = Features(train.x.to(precise), train.y), x.to(precise)
        found = {
            "knn": lambda: knn(known.x, other, self.k),
            "mahalanobis": lambda: mahalanobis(known, other),
            "relative": lambda: relative_mahalanobis(known, other),
        }
        if OF_LOGITS & {*self.measures}:
            head, near, far = probe(train, x, seed, precise)
            logits = head.logits(far)
            found |= {
                "msp": lambda: msp(logits),
                "maxlogit": lambda: maxlogit(logits),
                "energy": lambda: energy(logits, self.temperature),
                "vim": lambda: vim(head, near, far, self.directions),
            }
        return {name: found[name]() for name in self.measures}

    def _cases(self, bench: Bench) -> Iterator[Case]:
        train, test = bench.features(self.pool, self.blocks)
        if self.unknown is not None:
            spec = FeatureSpec(self.pool or bench.pool, self.blocks)
            other = bench.others(pictures(self.unknown, bench.splits), spec)
            unknown = np.arange(len(test.y) + len(other)) >= len(test.y)
            yield Case(_compact(train), torch.cat([test.x, other]), unknown)
            return
        classes = bench.num_classes
        for draw in range(self.draws):
            held = stream(bench.seed, Stream.UNKNOWN, draw).permutation(classes)[: self._held(classes)]
            kept = torch.from_numpy(np.flatnonzero(~np.isin(train.y.cpu().numpy(), held))).to(train.y.device)
            unknown = np.isin(test.y.cpu().numpy(), held)
            yield Case(_compact(Features(train.x[kept], train.y[kept])), test.x, unknown)

    def _held(self, classes: int) -> int:
        """The number of classes that are held out, so that at least two stay."""
        if classes < 3:
            raise UserError(
                f"openset holds classes out as unknown, and there are {classes}; expected at least 3, two of them to "
                "know. Name pictures of unknown classes: --unknown PATH (openset.unknown)."
            )
        return min(max(1, round(self.hold_out * classes)), classes - 2)


class Case(NamedTuple):
    """One split of the classes: labelled features of known images, features x [m, D] of known and unknown ones, and
    which of them are unknown [m]."""

    train: Features
    x: Tensor
    unknown: np.ndarray


def pictures(config: SourceConfig, splits: Splits) -> Source:
    """The images of unknown classes. Raises UserError when there are none, they are normalised otherwise than the
    known ones, or a class of theirs is known."""
    try:
        named = config.normalised_as(splits.data.config, "openset.unknown")
    except ValueError as error:
        raise UserError(f"{error}.") from error
    found = splits.data.other("openset.unknown", named).train
    if both := sorted({*found.classes} & {*splits.sources[0].classes}):
        raise UserError(
            f"openset.unknown has pictures of {len(both)} classes that train has too, such as {both[0]!r}; expected "
            "pictures of other classes. Take those folders out of it."
        )
    return found


def probe(train: Features, x: Tensor, seed: int, dtype: torch.dtype) -> tuple[Head, Tensor, Tensor]:
    """Train a linear probe, as `linear` with its defaults; returns it and standardised features of `train` and x."""
    near, far = standardize(train, Features(x, torch.zeros(len(x), dtype=torch.int64, device=x.device)))
    found = linear.sweep([(near, far)], int(train.y.max()) + 1, PROBE, seed).head
    head = Head(found.weight[0, :, 0].T.to(dtype), found.bias[0, 0].to(dtype))
    return head, near.x.to(dtype), far.x.to(dtype)


def _compact(train: Features) -> Features:
    """The same with classes numbered without a gap."""
    return Features(train.x, torch.unique(train.y, return_inverse=True)[1])
