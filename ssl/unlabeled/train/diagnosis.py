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
            if not shows(symptom, values):
                since.clear()
                continue
            since.append(step)
            if len(since) == READINGS:
                del self._since[symptom]
                self.say(words(symptom, since[0], values[symptom.metric]))


def shows(symptom: Symptom, values: Mapping[str, float]) -> bool:
    """Whether a reading has the symptom; a metric that is missing or not a number shows nothing."""
    value = values.get(symptom.metric, math.nan)
    return value <= symptom.at_most or value >= symptom.at_least


def words(symptom: Symptom, since: int, value: float) -> str:
    """The warning: what happens, since when, and what to do."""
    return f"warning: {symptom.meaning} ({symptom.metric} {value:.4g} since step {since}). {symptom.advice}"
