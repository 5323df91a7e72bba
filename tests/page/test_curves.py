"""Curves of the page of a run: thinned as numpy would do it, read on as the file grows, is cut back or is damaged."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pytest

from unlabeled.page import curves
from unlabeled.page.curves import Curve, Curves


def write(folder: Path, lines: Iterable[Mapping[str, object]], mode: str = "w") -> None:
    with open(folder / "metrics.jsonl", mode, encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


def training(steps: Iterable[int], **more: object) -> list[dict[str, object]]:
    return [{"step": step, "loss": math.sin(step) * 10 ** (step % 5), "epoch": 0.5, **more} for step in steps]


@pytest.mark.parametrize("most, count, block", [(10, 7, 3), (10, 83, 1), (10, 83, 7), (8, 64, 64), (100, 1001, 13)])
def test_a_bucket_holds_mean_low_and_high(monkeypatch: pytest.MonkeyPatch, most: int, count: int, block: int) -> None:
    monkeypatch.setattr(curves, "MOST", most)
    monkeypatch.setattr(curves, "DIGITS", 15)
    rng = np.random.default_rng(count)
    values = rng.normal(size=count) * 10.0 ** rng.integers(-8, 8, count)
    values[rng.random(count) < 0.2] = np.nan
    steps = np.sort(rng.integers(0, 10 * count, count))
    curve = Curve()
    for start in range(0, count, block):
        curve.add(steps[start : start + block].tolist(), values[start : start + block].tolist())
    line = curve.line("loss")

    width = 1
    while -(-count // width) > most:
        width *= 2
    buckets = [values[i : i + width] for i in range(0, count, width)]
    empty = np.array([np.isnan(bucket).all() for bucket in buckets])
    assert most // 2 <= len(line.x) <= most or count < most
    assert list(line.x) == [steps[i : i + width][-1] for i in range(0, count, width)]
    assert [value is None for value in line.y] == empty.tolist()
    ends = (line.low, line.high) if width > 1 else ((), ())
    assert (len(line.low) == len(line.x)) == (width > 1)
    for found, naive in zip((line.y, *ends), (np.nanmean, np.nanmin, np.nanmax), strict=True):
        expected = [naive(bucket) for bucket in buckets if not np.isnan(bucket).all()]
        if found:
            np.testing.assert_allclose([value for value in found if value is not None], expected, rtol=1e-9, atol=1e-12)


def test_what_is_shown_has_few_digits() -> None:
    curve = Curve()
    curve.add([1, 2, 3, 4], [1.23456789, -0.000123456789, 0.0, 1.5e300])
    assert curve.line("lr").y == [1.23457, -0.000123457, 0.0, 1.5e300]


def test_measures_are_told_apart_by_their_line(tmp_path: Path) -> None:
    write(tmp_path, [{"step": 0, "knn": 20.0}, *training([1, 2], mine=3), {"step": 2, "knn": 25.0, "linear": 30}])
    found = Curves(tmp_path)
    found.read()
    assert set(found.training) == {"loss", "mine"} and set(found.scores) == {"knn", "linear"}
    assert found.scores["knn"].first == (0, 20.0) and found.scores["knn"].last == (2, 25.0)
    assert found.step == 2


def test_only_what_was_appended_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, training(range(1, 50)))
    found, blocks = Curves(tmp_path), list[int]()
    monkeypatch.setattr(
        Curves, "_take", lambda self, block, take=Curves._take: (blocks.append(len(block)), take(self, block))
    )
    found.read()
    write(tmp_path, training([50]), "a")
    found.read()
    found.read()
    assert blocks == [49, 1]
    whole = Curves(tmp_path)
    whole.read()
    assert found.training["loss"].line("") == whole.training["loss"].line("")


@pytest.mark.parametrize("kept", [0, 20, 49])
def test_a_file_that_was_cut_back_is_read_anew(tmp_path: Path, kept: int) -> None:
    """As a run does that goes on from an earlier checkpoint, also where it has caught up since the last reading."""
    write(tmp_path, training(range(1, 50), images_per_s=1.0))
    found = Curves(tmp_path)
    found.read()
    write(tmp_path, training(range(1, kept + 1), images_per_s=1.0))
    for more in ([], range(kept + 1, 70)):
        write(tmp_path, training(more, images_per_s=2.0), "a")
        found.read()
        fresh = Curves(tmp_path)
        fresh.read()
        lines = [{name: curve.line(name) for name, curve in one.training.items()} for one in (found, fresh)]
        assert lines[0] == lines[1]
    assert found.step == 69


def test_damage_leaves_gaps(tmp_path: Path) -> None:
    lines = [
        b'{"step": 1, "loss": 1.0}',
        b'{"step": 2, "loss": NaN}',
        b'{"step": 3, "lo',
        b"\x00\xff",
        b'{"step": 4, "loss": Infinity, "odd": "text", "huge": 1' + b"0" * 400 + b"}",
        b'{"step": "5", "loss": 5}',
        b"[1, 2]",
        b'{"step": 6, "loss": [6]}',
        b"[" * 100_000,
        b'{"step": 2, "loss": 99}',  # backwards
        b'{"step": 7, "loss": 7, "odd": 3}',
        b'{"step": 8, "loss": 8',  # still being written
    ]
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join(lines))
    found = Curves(tmp_path)
    found.read()
    assert found.training["loss"].line("loss")[1:3] == ([1, 2, 4, 6, 7], [1.0, None, None, None, 7.0])
    assert found.training["odd"].last == (7, 3.0) and "huge" not in found.training
    with open(tmp_path / "metrics.jsonl", "ab") as file:
        file.write(b"}\n")
    found.read()
    assert found.training["loss"].last == (8, 8.0)


def test_no_file_is_no_curve(tmp_path: Path) -> None:
    found = Curves(tmp_path)
    found.read()
    (tmp_path / "metrics.jsonl").mkdir()
    found.read()
    assert not found.training and not found.scores
