"""The encoder that a run began with: how far training has moved it, and the score that it must stay above."""

from __future__ import annotations

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
    """The scores at the start, and since when they have been below it."""

    start: dict[str, float] = {}
    below: list[tuple[int, float]] = []


class Bar:
    """Compares a run with its start. What it says is a pure function of the scores read so far.

    Args:
        address: of the weights, for messages.
        protocols: names of those whose scores are better when they are higher, the one to go by first.
        advice: the recipe field to change where the encoder gets worse.
    """

    def __init__(self, address: str, protocols: Sequence[str], advice: str) -> None:
        self.address, self.protocols, self.advice = address, tuple(protocols), advice
        self.scores = Scores()
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
            self.scores = Scores(start=self._comparable(scores))
            return ""
        if (name := self._name) is None or name not in scores:
            return ""
        if scores[name] >= self.scores.start[name]:
            self.scores.below = []
            return ""
        self.scores.below = [*self.scores.below, (step, scores[name])]
        if len(self.scores.below) != PATIENCE:
            return ""
        found = " and ".join(f"{score:.2f} at step {at}" for at, score in self.scores.below)
        return (
            f"warning: the encoder has become worse than the one it began with: {name} was "
            f"{self.scores.start[name]:.2f} at the start, {found}. {self.advice}"
        )

    def verdict(self, scores: Mapping[str, float]) -> str:
        """The end against the start, for the end of a run; '' where there is nothing to compare."""
        if (name := self._name) is None or name not in scores:
            return ""
        start, end = self.scores.start[name], scores[name]
        if end >= start:
            return f"  start      {name} {start:.2f} of {self.address}, {end:.2f} now"
        return (
            f"warning: the encoder is worse than the one you started from: {name} {start:.2f} of {self.address}, "
            f"{end:.2f} now. Use the start, or begin again. {self.advice}"
        )

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


def _weights_of(method: Method) -> dict[str, Tensor]:
    """The parameters of the evaluated encoder, low-rank additions added."""
    encoder = cast("PretrainMethod", method).evaluated()
    return {name: weight.detach() for name, weight in merged_parameters(encoder).items()}
