"""SimDINO's objective against numbers of the official code (RobinWu218/SimDINO)."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
from parity.golden import Golden, Settings, assert_close, assert_gradient_at, peek
from parity.vit import BACKWARD, FORWARD

from unlabeled.nn.loss.spread import CodingRate

OF: dict[str, Literal["mean", "student"]] = {"0": "student", "1": "mean"}  # by official `expa_type`


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test per kind of expansion of whatever set is given, as its names tell."""
    golden = peek(metafunc.config, "simdino", "loss.safetensors")
    metafunc.parametrize("kind", (golden and golden.found(r"out/loss_type(\d+)$")) or ["absent"])


def pictures(golden: Golden) -> int:
    """Pictures of the batch, which the settings say; else the teacher has two views of each."""
    settings: Settings = golden.config
    return settings.get("B", golden.shape("in/teacher")[0] // 2)


def test_objective(folder: Path, kind: str) -> None:
    golden = Golden(folder / "loss.safetensors")
    c, student = golden.config, golden["in/student"].requires_grad_()
    views, teacher = (rows.unflatten(0, (-1, pictures(golden))) for rows in (student, golden["in/teacher"]))
    objective = CodingRate(eps=c["eps"], weight=c.get("coeff", 1.0), of=OF[kind])
    loss, measures = objective.compare(views, teacher)
    loss.backward()
    assert_close(loss, golden[f"out/loss_type{kind}"], FORWARD, "loss")
    assert_close(measures["compression"], golden[f"out/compression_type{kind}"], FORWARD, "compression")
    assert_close(measures["coding_rate"], golden[f"out/expansion_type{kind}"], FORWARD, "expansion")
    assert_gradient_at(student.grad, golden, f"grad/student_type{kind}", BACKWARD)
