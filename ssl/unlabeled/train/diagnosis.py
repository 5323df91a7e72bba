"""Detects collapse and other failures in the metrics of a method, and says once what is wrong and what to change."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

from unlabeled.pretrain.method import Symptom

# a new network looks like a collapsed one: the first part of a run, and its first steps, are left out
GRACE, GRACE_STEPS = 0.1, 50
READINGS = 3  # in a row that must show a symptom


class Diagnosis:
    """Reports a symptom that holds for `READINGS` logged readings in a row, once per run.

    Args:
        symptoms: to watch for, from `Method.symptoms`.
        total_steps: of the run.
        say: prints a warning.
    """

    def __init__(self, symptoms: Iterable[Symptom], total_steps: int, say: Callable[[str], None]) -> None:
        self.total_steps, self.say = total_steps, say
        self._since: dict[Symptom, list[int]] = {symptom: [] for symptom in symptoms}

    def read(self, step: int, values: Mapping[str, float]) -> None:
        """Check the averages logged at a step."""
        if step < max(GRACE * self.total_steps, GRACE_STEPS):
            return
        for symptom, since in list(self._since.items()):
            value = values.get(symptom.metric, math.nan)  # a metric that is missing or not a number shows nothing
            if not (value <= symptom.at_most or value >= symptom.at_least):
                since.clear()
                continue
            since.append(step)
            if len(since) == READINGS:
                del self._since[symptom]
                found = f"{symptom.metric} {value:.4g} since step {since[0]}"
                self.say(f"warning: {symptom.meaning} ({found}). {symptom.advice}")
