"""Early stopping by a validation score: best weights, lower rates, the end of the run."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, Field

from unlabeled.train.schedule import Lowering


class Counters(BaseModel, strict=True):
    """State of early stopping."""

    best: float | None
    best_step: int | None
    since_best: int
    since_cut: int
    rate: float


class Noted(Counters, strict=True):
    """The state in a checkpoint; `before` is that before the look at the end, which a longer run would not have had."""

    before: Counters | None = None


class Watching(BaseModel, frozen=True, extra="forbid"):
    """A recipe's `watch:` section."""

    every: int = Field(ge=1, description="steps between looks at the score; the end of the run is looked at too")
    metric: Literal["accuracy", "balanced_accuracy", "nll", "map", "miou"] = Field(
        "accuracy",
        description="score to watch; nll is the mean negative log-likelihood, less is better; map is that of boxes in "
        "detection, miou that of masks in segmentation",
    )
    hold_out: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="share of the labels that is kept from training and watched; 0 = data.val is watched, which "
        "flatters the result on it",
    )
    keep: Literal["best", "last"] = Field("best", description="the weights that are scored and exported")
    patience: int | None = Field(
        None, ge=1, description="looks without an improvement until the run ends; null = never"
    )
    min_delta: float = Field(
        0.0, ge=0, allow_inf_nan=False, description="smallest change that counts as an improvement"
    )


@dataclass(eq=False)
class EarlyStopping:
    """Tracks a validation score: best checkpoint, plateau schedule, stop. A pure function of the scores read so far."""

    config: Watching
    measure: Callable[[Any], dict[str, Any]]  # scores of a method by name, the same on all processes; all must call it
    lowering: Lowering | None = None  # how a score that stands still lowers the learning rate
    best: float | None = None  # score so far
    best_step: int | None = None
    since_best: int = 0
    since_cut: int = 0
    rate: float = 1.0  # factor on the learning rate so far
    before: dict[str, Any] | None = None

    @property
    def over(self) -> bool:
        """Whether patience has run out."""
        return self.config.patience is not None and self.since_best >= self.config.patience

    @property
    def kept_step(self) -> int | None:
        """The step whose checkpoint is kept; None where the last is used."""
        return self.best_step if self.config.keep == "best" else None

    def read(self, step: int, score: float) -> str:
        """Read a score; returns a line on what follows from it, '' if nothing does."""
        if self._improves(score):
            self.best, self.best_step, self.since_best, self.since_cut = score, step, 0, 0
            return ""
        self.since_best, self.since_cut = self.since_best + 1, self.since_cut + 1
        since = f"{self.config.metric} has not improved since step {self.best_step or 0}"
        if self.over:
            return f"{since}: the run ends here"
        if self.lowering is not None and self.since_cut >= self.lowering.patience:
            self.rate, self.since_cut = self.rate * self.lowering.factor, 0
            return f"{since}: rates x {self.rate:g} from here"
        return ""

    def _improves(self, score: float) -> bool:
        if math.isnan(score) or self.best is None:
            return not math.isnan(score)
        gain = self.best - score if self.config.metric == "nll" else score - self.best
        return gain > self.config.min_delta

    def begin_look(self, in_turn: bool) -> None:
        """Call before a score is read: saves the state where the end of the run is the only reason for the look."""
        self.before = None if in_turn else {name: getattr(self, name) for name in Counters.model_fields}

    def forget_end(self) -> None:
        """Undo a look at the end of the run."""
        if self.before is not None:
            self.restore(self.before)

    def state(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in Noted.model_fields}

    def restore(self, state: dict[str, Any]) -> None:
        for name in Counters.model_fields:
            setattr(self, name, state[name])
        self.before = state.get("before")
