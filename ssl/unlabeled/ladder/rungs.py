"""The rungs of the ladder, and those that need no training of the backbone: baselines and probes."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from unlabeled.backbone.folder import Preprocessing
from unlabeled.backbone.pooling import Pixels
from unlabeled.backbone.weights import load_encoder
from unlabeled.data.opened import Opened
from unlabeled.evaluate.bench import Bench
from unlabeled.evaluate.comparison import PIXELS_SIDE, prepared_as, protocols_of, untrained_twin
from unlabeled.evaluate.evaluation import measured
from unlabeled.evaluate.protocol import Protocol
from unlabeled.evaluate.splits import Splits
from unlabeled.ladder.amount import Amount
from unlabeled.ladder.ways import BASELINES
from unlabeled.progress import Clock

TRAIN = "train"


class RungResult(NamedTuple):
    """Top-1 accuracies of a rung on an amount of labels, in percent, and its cost."""

    rung: str
    fraction: float  # share of the labels
    accuracies: list[float]  # one per seed
    seconds: float  # CPU time of one seed, encoding included
    shots: int | None = None  # labels of every class; None = a share
    labels: int = 0  # number of them
    pictures: int = 0  # number of test images

    @property
    def amount(self) -> Amount:
        return Amount(self.fraction, self.shots)

    @property
    def mean(self) -> float:
        return statistics.mean(self.accuracies)

    @property
    def std(self) -> float:
        """Standard deviation over seeds; 0 of a single one."""
        return statistics.stdev(self.accuracies) if len(self.accuracies) > 1 else 0.0


class Climb(NamedTuple):
    """One encoder, its labelled images, and the settings of all rungs."""

    export: str  # the encoder's folder
    data: Opened
    shape: tuple[int, int]  # height, width of the encoder's images, pixels
    how: Preprocessing
    device: torch.device  # of encoders and probes
    out: Path  # folder of the runs
    amounts: Sequence[Amount]  # of labels, the fewest first
    seeds: int = 3  # repetitions of each rung
    steps: int = 1000  # of rungs that are trained
    batch_size: int = 64
    min_scale: float = 0.4  # least share of the area that a training crop has
    changes: Sequence[str] = ()  # `RUNG.a.b=value`; they have the last word
    workers: int = 1  # processes that load images
    # images for the rung that learns from some without labels, a folder or tar; TRAIN = those of `data`, labels hidden
    unlabelled: str | None = None

    def of(self, rung: str) -> list[str]:
        """The changes of one rung, without its name."""
        return [change.removeprefix(f"{rung}.") for change in self.changes if change.startswith(f"{rung}.")]


def guessed(climb: Climb) -> Iterator[RungResult]:
    """Predict the most frequent class for every image."""
    train, test = splits_of(climb).sources
    truth = test.labels[test.labels >= 0]
    for amount in climb.amounts:
        clock, found, labels = Clock(), [], np.empty(0)
        for seed in seeds_of(amount, climb.seeds):
            labels = train.labels[amount.choose(train.labels, seed, train.classes)]
            found.append(100 * float((truth == np.bincount(labels[labels >= 0]).argmax()).mean()))
        cost = clock.cpu_seconds / len(found)
        yield RungResult("majority", amount.fraction, found, cost, amount.shots, len(labels), len(truth))


def probed(climb: Climb, rungs: Sequence[str]) -> Iterator[RungResult]:
    """Probe frozen features of one encoder, or pixels: one pass over the images, then all rungs, amounts and seeds."""
    clock = Clock()
    encoder: Any = Pixels() if "pixels" in rungs else load_encoder(climb.export)
    if "untrained" in rungs:
        encoder = untrained_twin(encoder)
    height, width = climb.shape
    shape = (min(height, PIXELS_SIDE), min(width, PIXELS_SIDE)) if "pixels" in rungs else climb.shape
    bench = Bench(encoder.to(climb.device), splits_of(climb), shape)
    bench.features()
    looking = clock.cpu_seconds
    for rung in rungs:
        for amount in climb.amounts:
            seeds, clock = seeds_of(amount, climb.seeds), Clock()
            benches = [bench.few(amount.fraction, seed, amount.shots) for seed in seeds]
            scores = [measured(rung, probe_of(climb, rung), one)[0].value for one in benches]
            train, test = benches[0].features()
            cost = looking + clock.cpu_seconds / len(scores)
            yield RungResult(rung, amount.fraction, scores, cost, amount.shots, len(train.y), len(test.y))


def splits_of(climb: Climb) -> Splits:
    """The labelled images, prepared for probes. Raises UserError when an option does not fit."""
    return Splits(prepared_as(climb.how), climb.data, climb.device, climb.workers)


def probe_of(climb: Climb, rung: str) -> Protocol:
    """The protocol of a probe. Raises UserError when a setting does not fit."""
    name = "linear" if rung in BASELINES else rung
    return protocols_of([name], [f"{name}.{change}" for change in climb.of(rung)])[name]


def seeds_of(amount: Amount, count: int) -> range:
    """Seeds of a probe: with all labels, every seed gives the same."""
    return range(1 if amount.all else count)
