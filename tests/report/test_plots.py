"""PNGs of any number of classes are written, show what they should, and leave matplotlib as it was."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support import on_processes

from unlabeled.report.calibration import Reliability, reliability
from unlabeled.report.plots import LABELS, _name_classes, draw_confusion, draw_reliability, figure_of


def confusion(classes: int) -> torch.Tensor:
    counts = torch.randint(3, (classes, classes), generator=torch.Generator().manual_seed(0))
    counts[torch.arange(classes), torch.arange(classes)] += 50
    counts[-1] = 0  # a class without pictures
    return counts


def colours(file: Path) -> np.ndarray:
    return np.asarray(Image.open(file).convert("RGB")).astype(int)


@pytest.mark.parametrize("classes", [2, 20, 100])
def test_confusion_of_few_and_of_many_classes(tmp_path: Path, classes: int) -> None:
    file = tmp_path / "confusion.png"
    draw_confusion(file, confusion(classes), [f"a class called {i} $" for i in range(classes)], "title")
    pixels = colours(file)
    assert 400 < pixels.shape[0] < 2000 and 400 < pixels.shape[1] < 2000
    blue = pixels[..., 2] - pixels[..., 0]
    assert (blue > 60).mean() > 0.005, "the diagonal is dark blue"
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("classes", [3, 50, 51, 100, 1000])
def test_names_are_thinned(classes: int) -> None:
    axes = figure_of(5, 5).add_subplot()
    _name_classes(axes, [f"{i} {'long ' * 10}" for i in range(classes)])
    shown = axes.get_yticklabels()
    assert min(classes, LABELS // 2) <= len(shown) <= LABELS
    assert [tick.get_text().split()[0] for tick in shown] == [f"{round(place)}" for place in axes.get_yticks()]
    assert all(len(tick.get_text()) <= 22 for tick in shown)


def test_reliability(tmp_path: Path) -> None:
    logits = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
    right = reliability(logits.softmax(1).amax(1), torch.ones(200, dtype=torch.bool))
    draw_reliability(tmp_path / "a.png", right, "always right")
    last = (torch.arange(15) == 14).long()
    one = Reliability(9 * last, 0.0 * last, 1.0 * last)
    draw_reliability(tmp_path / "b.png", one, "always wrong, and sure of it")
    for name in "ab":
        red = colours(tmp_path / f"{name}.png") @ np.array([1, -0.5, -0.5])
        assert (red > 60).sum() > 500, "the gap is hatched in red"


def parts_after_drawing(file: Path, _: int) -> list[bool]:
    draw_confusion(file, torch.eye(2).long(), ["a", "b"])
    return [f"matplotlib.{part}" in sys.modules for part in ("figure", "pyplot")]


def test_nothing_global_is_touched(tmp_path: Path) -> None:
    assert on_processes(partial(parts_after_drawing, tmp_path / "a.png"), 1) == [[True, False]]
