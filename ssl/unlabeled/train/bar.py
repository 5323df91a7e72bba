"""The encoder that a run began with: how far training has moved it, the score that it must stay above, and the best."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from pydantic import BaseModel
from torch import Tensor

from unlabeled.nn.lowrank import merged_parameters
from unlabeled.pretrain.method import Method, PretrainMethod
from unlabeled.train.state import full

PATIENCE = 2  # evaluations in a row below the start, until it is said


class Scores(BaseModel):
    """What is remembered of all scores so far.

    Attributes:
        start: those of step 0, comparable ones alone.
        below: steps in a row with a score that is worse than at the start, and the score.
        pictures: how many the score to go by is of; None = it is not known.
        best: all scores of the best step, the earliest of equal ones.
        best_step: that step; 0 = the start.
    """

    start: dict[str, float] = {}
    below: list[tuple[int, float]] = []
    pictures: int | None = None
    best: dict[str, float] = {}
    best_step: int = 0


class Bar:
    """Compares a run with its start. What it says is a pure function of the scores read so far.

    Args:
        address: of the weights, for messages.
        protocols: names of those whose scores, in percent, are better when they are higher, the one to go by first.
        advice: the recipe field to change where the encoder gets worse.
        keep: whether the weights of the best step are the result, not the last ones.
        pictures: how many each score is of, by name, as the evaluation counts them.
    """

    def __init__(
        self,
        address: str,
        protocols: Sequence[str],
        advice: str,
        keep: bool = False,
        pictures: Mapping[str, int] | None = None,
    ) -> None:
        self.address, self.protocols, self.advice, self.keeps = address, tuple(protocols), advice, keep
        self.scores, self._pictures = Scores(), {} if pictures is None else pictures
        self._weights: dict[str, Tensor] = {}

    def keep(self, method: Method) -> None:
        """Keep a copy of the encoder's weights, sharded like them."""
        self._weights = {name: weight.clone() for name, weight in _weights_of(method).items()}

    @torch.no_grad()
    def moved(self, method: Method) -> float:
        """Relative distance of the encoder to its start, ||W - W_0|| / ||W_0||. All processes must ask."""
        now, before = _weights_of(method), self._weights
        distances = [
            torch.linalg.vector_norm(full(torch.stack(norms)))
            for norms in (
                [torch.linalg.vector_norm(now[name] - weight) for name, weight in before.items()],
                [torch.linalg.vector_norm(weight) for weight in before.values()],
            )
        ]
        return float(distances[0] / distances[1])

    def read(self, step: int, scores: Mapping[str, float]) -> str:
        """Read the scores of a step; returns a warning, '' unless they have just been low for long."""
        if step == 0:
            self.scores = Scores(start=self._comparable(scores), best=dict(scores))
        if (name := self._name) is None or name not in scores:
            return ""
        self.scores.pictures = self._pictures.get(name, self.scores.pictures)
        if step and scores[name] > (self.scores.best or self.scores.start)[name]:
            self.scores.best, self.scores.best_step = dict(scores), step
        if not self._worse(scores[name]):
            self.scores.below = []
            return ""
        self.scores.below = [*self.scores.below, (step, scores[name])]
        if len(self.scores.below) != PATIENCE:
            return ""
        found = " and ".join(f"{score:.2f} at step {at}" for at, score in self.scores.below)
        return (
            f"warning: the encoder has become worse than the one it began with: {name} was "
            f"{self.scores.start[name]:.2f} at the start, {found}{self._chance(', more than')}. {self.advice}"
        )

    @property
    def kept_step(self) -> int | None:
        """The step whose weights are the result, 0 = the start; None = the last, whatever they score."""
        return self.scores.best_step if self.keeps and self._name is not None else None

    def verdict(self, scores: Mapping[str, float], kept: int | None = None) -> str:
        """The end against the start, for the end of a run; '' where there is nothing to compare.

        Args:
            scores: of the last step.
            kept: the step of the weights that are exported in its place; None = the last are.
        """
        if (name := self._name) is None or name not in scores:
            return ""
        start, end = self.scores.start[name], scores[name]
        if kept:
            best, since = self.scores.best[name], f"the start {start:.2f} of {self.address}"
            return f"  kept       the export is of step {kept:,} ({name} {best:.2f}); the last had {end:.2f}, {since}"
        if self._worse(end):
            said = f"{name} {start:.2f} of {self.address}, {end:.2f} now{self._chance(', more than')}"
            use = "The export is the encoder you began with" if kept == 0 else "Use the start, or begin again"
            return f"warning: the encoder is worse than the one you started from: {said}. {use}. {self.advice}"
        if kept == 0:
            found = f"{name} {start:.2f} of {self.address}, {end:.2f} at the end"
            return f"  kept       no evaluation was above the start: the export is the encoder you began with ({found})"
        chance = self._chance(": less than") if end < start else ""
        return f"  start      {name} {start:.2f} of {self.address}, {end:.2f} now{chance}"

    def _worse(self, score: float) -> bool:
        """Whether a score is further below the start than chance explains; by anything, where nobody counted."""
        start = self.scores.start[self._name or ""]
        chance = 0.0 if self.scores.pictures is None else standard_error(start, score, self.scores.pictures)
        return start - score > chance

    def _chance(self, than: str) -> str:
        """Words on how much chance explains, after `than`; '' where nobody counted the pictures."""
        counted = self.scores.pictures
        return "" if counted is None else f"{than} chance explains on {counted:,} pictures"

    @property
    def _name(self) -> str | None:
        """The score to go by."""
        return next(iter(self.scores.start), None)

    def _comparable(self, scores: Mapping[str, float]) -> dict[str, float]:
        """Scores of the protocols, in their order."""
        return {
            name: scores[name]
            for protocol in self.protocols
            for name in scores
            if name == protocol or name.startswith(f"{protocol}_")
        }

    def state(self) -> dict[str, Any]:
        return self.scores.model_dump()

    def restore(self, state: dict[str, Any]) -> None:
        self.scores = Scores.model_validate(state)


def standard_error(one: float, other: float, pictures: int) -> float:
    """The standard error of the difference of two scores in percent of equally many pictures, in points.

    That of two independent binomial shares, each with one hit and one miss more, so that it is above one picture even
    at 100 % (Agresti and Caffo, The American Statistician 54, 2000). Scores of the same pictures differ by less.
    """
    total = pictures + 2
    shares = [(score / 100 * pictures + 1) / total for score in (one, other)]
    return 100 * math.sqrt(sum(share * (1 - share) for share in shares) / total)


def _weights_of(method: Method) -> dict[str, Tensor]:
    """The parameters of the evaluated encoder, low-rank additions added."""
    encoder = cast("PretrainMethod", method).evaluated()
    return {name: weight.detach() for name, weight in merged_parameters(encoder).items()}
