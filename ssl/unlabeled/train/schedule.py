"""The contract of learning-rate schedules: pure functions of progress. Kinds are the files of `schedules/`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Annotated, ClassVar, NamedTuple

from pydantic import BaseModel

from unlabeled.pretrain.method import Progress
from unlabeled.registry import ByFile


class Ramp(NamedTuple):
    """The learning rates that every schedule goes through."""

    start: float  # where the warm-up begins
    peak: float  # where it ends
    minimum: float  # at the end of the run
    warmup: float  # length of the warm-up, epochs

    def warming(self, done: float, length: float) -> float:
        """The learning rate on the straight line from `start` to `peak`, `done` of `length` along."""
        return self.start + (self.peak - self.start) * done / length


class Lowering(NamedTuple):
    """How a watched score that stands still lowers the learning rate."""

    factor: float  # on the learning rate, each time
    patience: int  # looks without an improvement before that


class Schedule(BaseModel, ABC, frozen=True, extra="forbid"):
    """The learning rate over a run. Its fields are what recipes set; `name` is the name of its file."""

    ends: ClassVar[bool] = True  # the end of the run is part of it: another end would have changed every step
    falls: ClassVar[bool] = True  # it goes down to the ramp's minimum
    first: ClassVar[int] = 0  # the number of the first step, for weight decay
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
