"""The contract of learning-rate schedules: pure functions of progress. Kinds are the files of `schedules/`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Annotated, ClassVar, NamedTuple

from pydantic import BaseModel

from unlabeled.pretrain.method import Progress
from unlabeled.registry import ByFile


class Ramp(NamedTuple):
    """The learning rates that every schedule goes through.

    Attributes:
        start: learning rate where the warm-up begins.
        peak: where it ends.
        minimum: at the end of the run.
        warmup: length of the warm-up, epochs.
    """

    start: float
    peak: float
    minimum: float
    warmup: float

    def warming(self, done: float, length: float) -> float:
        """The learning rate on the straight line from `start` to `peak`, `done` of `length` along."""
        return self.start + (self.peak - self.start) * done / length


class Lowering(NamedTuple):
    """How a watched score that stands still lowers the learning rate.

    Attributes:
        factor: on the learning rate, each time.
        patience: looks without an improvement before that.
    """

    factor: float
    patience: int


class Schedule(BaseModel, ABC, frozen=True, extra="forbid"):
    """The learning rate over a run. Its fields are what recipes set; `name` is the name of its file.

    Attributes:
        ends: whether the end of the run is part of it, so that another end would have changed every step.
        falls: whether it goes down to the ramp's minimum.
    """

    ends: ClassVar[bool] = True
    falls: ClassVar[bool] = True
    name: str

    @property
    def turns(self) -> tuple[float, ...]:
        """Epochs in which it changes at once; () = none."""
        return ()

    @abstractmethod
    def at(self, progress: Progress, ramp: Ramp) -> float:
        """The learning rate of a step."""

    @property
    def lowering(self) -> Lowering | None:
        """How a watched score lowers the rate; None = it needs no score."""
        return None


AnySchedule = Annotated[Schedule, ByFile("unlabeled.train.schedules", Schedule)]


def level(progress: Progress, ramp: Ramp) -> float:
    """Linear warm-up of the fractional epoch, then the peak."""
    return ramp.warming(progress.epoch, ramp.warmup) if progress.epoch < ramp.warmup else ramp.peak
