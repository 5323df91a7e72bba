"""Pieces of HTML for notebooks."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unlabeled.interface import fragment
from unlabeled.report.document import Document, Table, Text
from unlabeled.report.visuals import Chart, Frame, Line, Slides


def points(html: str) -> list[list[tuple[float, float]]]:
    found = re.findall(r'<polyline points="([^"]*)"', html)
    return [[(float(x), float(y)) for x, y in (one.split(",") for one in line.split())] for line in found]


def test_curves_stand_where_their_values_are() -> None:
    line = Line("loss", [0, 10, 20, 30], [4.0, 2.0, 1.0, 0.0])
    [found] = points(fragment.write(Document("", [Chart("Loss", [line])]), Path()))
    xs, ys = (np.array(one) for one in zip(*found, strict=True))
    assert np.allclose(np.diff(xs), xs[1] - xs[0]) and xs[0] == fragment.LEFT
    assert np.allclose((ys - ys[3]) / (ys[0] - ys[3]), [1, 0.5, 0.25, 0], atol=2e-3)  # up is more
    assert ys[3] == fragment.HEIGHT - fragment.BOTTOM and ys[0] == fragment.TOP


def test_gaps_and_long_lines() -> None:
    gaps = Line("a", [1, 2, 3, 4, 5], [1.0, None, 2.0, 3.0, None])
    html = fragment.write(Document("", [Chart("A", [gaps])]), Path())
    assert [len(line) for line in points(html)] == [2] and html.count("<circle") == 1
    long = Line("b", range(1000), [float(i % 2) for i in range(1000)])
    [found] = points(fragment.write(Document("", [Chart("B", [long])]), Path()))
    assert len(found) <= fragment.MOST and len({y for _, y in found}) == 1  # means


@pytest.mark.parametrize("low, high", [(0.0, 1.0), (3.1, 3.2), (-5.0, 12.0), (7.0, 7.0), (0.0, 0.0), (1e-7, 3e-7)])
def test_ticks_hold_the_values(low: float, high: float) -> None:
    ticks = fragment.ticks_of(low, high)
    near = 1e-6 * (ticks[-1] - ticks[0])
    assert ticks[0] <= low + near and ticks[-1] >= high - near and 3 <= len(ticks) <= 7
    assert np.allclose(np.diff(ticks), ticks[1] - ticks[0])


def test_bars_begin_at_zero() -> None:
    lines = [Line("a", range(2), [10.0, 20.0]), Line("b", range(2), [5.0, None])]
    html = fragment.write(Document("", [Chart("%", lines, kind="bars", names=["kNN", "linear"])]), Path())
    heights = [float(h) for h in re.findall(r'<rect [^>]*height="([\d.]+)"', html)]
    assert np.allclose(np.array(heights) / heights[1], [0.5, 1, 0.25], atol=5e-3) and ">kNN<" in html


def test_names_are_escaped_and_images_are_in_it(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "last.png")
    frames = [Frame("step 1", "gone.png"), Frame("step 2", "last.png")]
    table = Table(("name", "<b>"), [("<script>", "1")])
    parts = [Text("<i>", "paragraph"), table, Slides("Images", frames), Chart("<svg>", [Line("<x>", [1, 2], [1, 2])])]
    html = fragment.write(Document("<h1>", parts), tmp_path)
    assert not re.search("<script|<b>|<h1>|<x>", html) and html.count("data:image/png") == 1
    assert "gone.png" not in html
