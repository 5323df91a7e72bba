"""A collapse is said once, in words; a healthy run hears nothing."""

from __future__ import annotations

import math

from unlabeled.pretrain.method import Symptom
from unlabeled.train.tracking import Diagnosis

FLAT = Symptom("feature_std", "all pictures get the same features", "Lower optim.base_lr.", at_most=0.01)
STUCK = Symptom("loss", "the teacher is uniform", "Lower method.teacher_temperature to 0.04.", at_least=9.0)


def said(readings: list[dict[str, float]], first: int = 100) -> list[str]:
    lines: list[str] = []
    diagnosis = Diagnosis([FLAT, STUCK], 1000, lines.append)
    for i, values in enumerate(readings):
        diagnosis.read(first + 10 * i, values)
    return lines


def test_three_ill_readings_are_said_once() -> None:
    ill = {"feature_std": 0.001, "loss": 1.0}
    assert said([ill] * 10) == [
        "warning: all pictures get the same features (feature_std 0.001 since step 100). Lower optim.base_lr."
    ]


def test_symptoms_are_told_apart() -> None:
    lines = said([{"feature_std": 0.0, "loss": 9.5}] * 3)
    assert len(lines) == 2 and "method.teacher_temperature" in lines[1]


def test_a_recovery_starts_the_count_again() -> None:
    ill, well = {"loss": 9.5}, {"loss": 8.0}
    assert not said([ill, ill, well, ill, ill])
    assert "since step 130" in said([ill, ill, well, ill, ill, ill])[0]


def test_nothing_in_the_first_tenth_and_nothing_of_what_is_not_there() -> None:
    assert not said([{"loss": 9.5}] * 3, first=50)
    assert not said([{"other": 0.0, "loss": math.nan}] * 5)
