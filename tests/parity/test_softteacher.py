"""Soft Teacher's formulas against numbers of the official code (microsoft/SoftTeacher)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from parity.golden import Golden, assert_close, peek
from torch import nn

from unlabeled.nn.teacher import ema_
from unlabeled.transfer.detection.soft_teacher import (
    between,
    jittered,
    momentum_at,
    moved,
    passing,
    uncertainty,
    weighted_cross_entropy,
    weights_of,
)

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5}
# what the settings of the files do not say
SHAPE, SCORE, SIDE, STEADY = (80, 100), 0.5, 10, 0.25


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test per image of the given set."""
    if "image" in metafunc.fixturenames:
        golden = peek(metafunc.config, "softteacher", "jitter.safetensors")
        metafunc.parametrize("image", (golden and golden.found(r"in/boxes(\d+)$")) or ["absent"])


def test_background_weights(folder: Path) -> None:
    golden = Golden(folder / "background_weights.safetensors")
    logits, labels, classes = golden["in/scores"].requires_grad_(), golden["in/labels"], golden.config["classes"]
    weights = weights_of(labels, golden["in/teacher_probabilities"], classes)
    loss, tolerance = weighted_cross_entropy(logits, labels, weights), TOLERANCE[logits.dtype]
    assert_close(loss, golden["out/loss"], tolerance, "loss")
    (grad,) = torch.autograd.grad(loss, logits)
    assert_close(grad, golden["grad/scores"], tolerance, "gradient of the logits")


def test_boxes_from_view_to_view(folder: Path) -> None:
    golden = Golden(folder / "boxes.safetensors")
    c, given = golden.config, golden["in/boxes"]
    tolerance, boxes, scores = TOLERANCE[given.dtype], given[:, :4], given[:, 4]
    matrix = between(golden["in/teacher_matrix"], golden["in/student_matrix"])
    assert_close(matrix, golden["out/matrix"], tolerance, "matrix")
    height, width = c.get("shape", SHAPE)
    found = torch.cat([moved(boxes, matrix, (height, width)), scores[:, None]], 1)
    assert_close(found, golden["out/boxes"], tolerance, "boxes")
    kept = passing(boxes, scores, c.get("score", SCORE), c.get("min_size", SIDE))
    assert_close(kept.nonzero().flatten(), golden["out/filtered_rows"], tolerance, "rows that pass")
    assert_close(boxes[kept], golden["out/filtered"], tolerance, "boxes that pass")


def test_jitter(folder: Path, image: str) -> None:
    golden = Golden(folder / "jitter.safetensors")
    c, given, classes = golden.config, golden[f"in/boxes{image}"], golden[f"in/labels{image}"]
    tolerance, boxes = TOLERANCE[given.dtype], given[:, :4]
    found = jittered(boxes, golden[f"in/noise{image}"], c["frac"])
    scores = given[:, 4:].expand(len(found), -1, -1)
    assert_close(torch.cat([found, scores], 2), golden[f"out/jittered{image}"], tolerance, "jittered")
    refined = golden[f"in/refined{image}"].unflatten(0, (c["times"], len(boxes))).unflatten(2, (c["C"], 4))
    unsteady = uncertainty(refined, classes)
    assert_close(unsteady, golden[f"out/uncertainty{image}"], tolerance, "uncertainty")
    kept = unsteady.mean(1) < c.get("threshold", STEADY)
    assert_close(boxes[kept], golden[f"out/kept{image}"], tolerance, "steady boxes")


def test_averaged_weights(folder: Path) -> None:
    golden = Golden(folder / "mean_teacher.safetensors")
    weights, momenta = golden["out/weights"], golden["out/momentum"]
    tolerance, highest, width = TOLERANCE[weights.dtype], golden.config["momentum"], weights.shape[-1]
    student, teacher = (nn.BatchNorm1d(width).to(weights.dtype) for _ in range(2))
    torch.nn.init.normal_(student.running_mean)  # type: ignore[arg-type]
    for step, (given, after) in enumerate(weights):
        momentum = momentum_at(step, highest)
        assert_close(torch.tensor(momentum, dtype=momenta.dtype), momenta[step], tolerance, "momentum")
        with torch.no_grad():
            student.weight.copy_(given)
        ema_(teacher, student, momentum)
        assert_close(teacher.weight, after, tolerance, "averaged weights")
    assert teacher.running_mean is not None
    assert_close(teacher.running_mean, golden["out/teacher_running_mean"], tolerance, "running mean")
