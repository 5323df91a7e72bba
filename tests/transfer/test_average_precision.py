"""Average precision against pycocotools, faster-coco-eval and cases that can be counted by hand."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy as np
import pytest

from unlabeled.transfer.detection import library
from unlabeled.transfer.detection.average_precision import (
    RECALLS,
    SIZES,
    THRESHOLDS,
    Found,
    Objects,
    interval,
    matched,
    mean_precision,
    precisions,
    summary,
)

CLASSES = 3


def scene(seed: int, images: int = 12) -> tuple[list[Objects], list[Found]]:
    """Objects of all sizes, some of them crowds, and boxes: moved ones, doubled ones, wrong ones."""
    rng, truth, found = np.random.default_rng(seed), [], []
    for image in range(images):
        count = 0 if image == 3 else int(rng.integers(1, 7))
        place, sides = (
            rng.uniform(0, 200, (count, 2)),
            rng.choice([12.0, 50.0, 130.0], (count, 1)) * rng.uniform(0.7, 1.3, (count, 2)),
        )
        corners = np.concatenate([place, place + sides], 1).round(2)
        classes, crowd = rng.integers(0, CLASSES - 1, count), rng.random(count) < 0.2
        truth.append(Objects(corners, classes, crowd, (sides.prod(1) * rng.uniform(0.5, 1, count)).round(3)))
        copies = np.concatenate([corners, corners, rng.uniform(0, 100, (4, 4)).cumsum(1)])
        moved = (copies + rng.normal(0, 4, copies.shape)).round(2)
        moved[:, 2:] = np.maximum(moved[:, 2:], moved[:, :2] + 1)
        guessed = np.concatenate([classes, rng.integers(0, CLASSES, count + 4)])
        found.append(Found(moved, guessed, rng.integers(0, 12, len(moved)) / 12))
    return truth, found


def as_coco(truth: list[Objects], found: list[Found]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for image, (true, guess) in enumerate(zip(truth, found, strict=True)):
        for box, number, crowd, area in zip(*true, strict=True):
            side = [box[0], box[1], box[2] - box[0], box[3] - box[1]]
            about = {"image_id": image, "category_id": int(number), "bbox": side, "iscrowd": int(crowd)}
            annotations.append({"id": len(annotations) + 1, "area": float(area), **about})
        for box, number, score in zip(*guess, strict=True):
            side = [box[0], box[1], box[2] - box[0], box[3] - box[1]]
            results.append({"image_id": image, "category_id": int(number), "bbox": side, "score": float(score)})
    listed = {"images": [{"id": image, "height": 400, "width": 400} for image in range(len(truth))]}
    return {
        **listed,
        "annotations": annotations,
        "categories": [{"id": n} for n in range(CLASSES)],
        "info": {},
    }, results


def by_library(name: str, truth: list[Objects], found: list[Found]) -> tuple[np.ndarray, np.ndarray]:
    """Its precision [thresholds, recalls, classes, sizes] and recall [thresholds, classes, sizes]."""
    content, results = as_coco(truth, found)
    with contextlib.redirect_stdout(io.StringIO()):
        if name == "pycocotools":
            tools = pytest.importorskip("pycocotools.coco")
            evaluation = pytest.importorskip("pycocotools.cocoeval").COCOeval
            known = tools.COCO()
            known.dataset = content
            known.createIndex()
        else:
            tools = pytest.importorskip("faster_coco_eval")
            evaluation, known = tools.COCOeval_faster, tools.COCO(content)
        run = evaluation(known, known.loadRes(results), "bbox")
        run.evaluate()
        run.accumulate()
    assert np.allclose(run.params.iouThrs, THRESHOLDS) and np.allclose(run.params.recThrs, RECALLS)
    return run.eval["precision"][..., -1], run.eval["recall"][..., -1]


@pytest.mark.parametrize("name", ["pycocotools", "faster-coco-eval"])
@pytest.mark.parametrize("seed", range(4))
def test_the_numbers_are_those_of_the_libraries(name: str, seed: int) -> None:
    truth, found = scene(seed)
    precision, recall = by_library(name, truth, found)
    for place, size in enumerate(SIZES):
        for number, one in enumerate(matched(truth, found, CLASSES, size)):
            ours = precisions(one)
            if ours is None:
                assert (precision[:, :, number, place] == -1).all() and (recall[:, number, place] == -1).all()
                continue
            np.testing.assert_allclose(ours[0], precision[:, :, number, place].mean(1), atol=1e-12)
            np.testing.assert_allclose(ours[1], recall[:, number, place], atol=1e-12)


def test_where_the_library_is_there_it_is_used_and_says_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(library.NAME)
    truth, found = scene(9)
    expected = summary(truth, found, CLASSES)
    monkeypatch.setattr("unlabeled.transfer.detection.average_precision.summary", lambda *_: pytest.fail("not used"))
    for ours, theirs in zip(library.summary(truth, found, CLASSES), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-12)


def test_without_the_library_or_without_boxes_it_is_done_here(monkeypatch: pytest.MonkeyPatch) -> None:
    truth, found = scene(9)
    nothing = [Found(np.zeros((0, 4)), np.zeros(0, np.int64), np.zeros(0))] * len(truth)
    assert np.nanmax(library.summary(truth, nothing, CLASSES).precision) == 0
    monkeypatch.setattr(library, "NAME", "not_installed_at_all")
    expected = summary(truth, found, CLASSES)
    for ours, theirs in zip(library.summary(truth, found, CLASSES), expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_by_hand() -> None:
    square = np.array([[0.0, 0, 10, 10], [20, 0, 30, 10]])
    truth = [Objects(square, np.zeros(2, np.int64), np.zeros(2, bool), np.full(2, 100.0))]
    # the first is right, the second overlaps by 8 of 12, the third is wrong
    guess = np.array([[0.0, 0, 10, 10], [22, 0, 32, 10], [50, 50, 60, 60]])
    found = [Found(guess, np.zeros(3, np.int64), np.array([0.9, 0.8, 0.7]))]
    ours = precisions(matched(truth, found, 1)[0])
    assert ours is not None
    half = 51 / 101  # recalls of 0 to 0.5
    np.testing.assert_allclose(ours[0], [1.0] * 4 + [half] * 6)
    np.testing.assert_allclose(ours[1], [1.0] * 4 + [0.5] * 6)


def test_an_image_that_counts_twice_is_one_that_is_there_twice() -> None:
    truth, found = scene(7)
    weights = np.array([2, 0, 1, 1, 3, 0, 1, 1, 0, 2, 1, 1])
    rows = np.repeat(np.arange(len(truth)), weights)
    twice = matched([truth[i] for i in rows], [found[i] for i in rows], CLASSES)
    # equal scores come in the order of the images, which is another there
    once = matched(truth, found, CLASSES)
    assert mean_precision(once, weights) == pytest.approx(mean_precision(twice), abs=0.02)
    apart = [
        Found(one.corners, one.classes, one.scores + i / 1e3 + np.arange(len(one.scores)) / 1e5)
        for i, one in enumerate(found)
    ]
    exact = matched([truth[i] for i in rows], [apart[i] for i in rows], CLASSES)
    assert mean_precision(matched(truth, apart, CLASSES), weights) == pytest.approx(mean_precision(exact), abs=1e-12)


def test_intervals_hold_the_mean_and_are_repeated() -> None:
    truth, found = scene(5, 40)
    classes = matched(truth, found, CLASSES)
    bounds = interval(classes)
    assert bounds is not None and bounds[0] < mean_precision(classes) < bounds[1] and bounds == interval(classes)
    assert bounds[1] - bounds[0] > 0.02
    assert interval([]) is None and np.isnan(mean_precision([]))
