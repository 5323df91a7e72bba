"""Strong views of images with boxes: pixels, boxes and matrices move alike, and every draw is the sample's."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from unlabeled.data.boxed.strong import StrongView, matrix_of, warped
from unlabeled.data.boxed.view import BoxView, move_boxes
from unlabeled.data.label.boxes import Boxes
from unlabeled.data.view.placed import PAD, move_image
from unlabeled.transfer.detection.soft_teacher import moved

SHAPE = (40, 60)
PLAIN = {"shift": 0.0, "rotate": 0.0, "shear": 0.0, "erasings": (0, 0)}


def image_with(box: tuple[int, int, int, int], size: tuple[int, int] = (50, 80)) -> Tensor:
    """Grey, with a white rectangle."""
    left, top, right, bottom = box
    found = torch.full((3, *size), PAD, dtype=torch.uint8)
    found[:, top:bottom, left:right] = 255
    return found


def box_of(pixels: Tensor) -> list[float]:
    """The smallest box around what is more white than grey."""
    rows, columns = (pixels[0] > (PAD + 255) / 2).nonzero(as_tuple=True)
    return [float(v) for v in (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)]


def boxes(corners: Tensor) -> Boxes:
    count = len(corners)
    none = torch.zeros(count, dtype=torch.bool)
    return Boxes(corners, torch.zeros(count, dtype=torch.int64), none, torch.ones(count, dtype=torch.float64))


def test_a_matrix_moves_boxes_as_the_view_does() -> None:
    view, image = BoxView(size=SHAPE, scale=(0.5, 1.5)), image_with((20, 10, 50, 40))
    corners, flipped = torch.tensor([[20.0, 10.0, 50.0, 40.0], [1.0, 2.0, 30.0, 49.0]]), set()
    for seed in range(20):
        how = view.place(np.random.default_rng(seed), (50, 80), SHAPE)
        matrix = torch.from_numpy(matrix_of(how, (50, 80), SHAPE)).float()
        expected = move_boxes(boxes(corners), image, how, SHAPE).corners
        found = moved(corners, matrix, SHAPE)
        there = (found[:, 2:] - found[:, :2] >= 1).all(1)
        torch.testing.assert_close(found[there], expected, rtol=1e-5, atol=1e-4)
        flipped.add(how.flip)
    assert flipped == {True, False}


@pytest.mark.parametrize("change", ["shift", "rotate", "shear"])
def test_pixels_move_as_the_matrix_says(change: str) -> None:
    view = StrongView.model_validate({"size": SHAPE, **PLAIN, change: {"shift": 0.1}.get(change, 20.0)})
    corners = torch.tensor([[22.0, 12.0, 42.0, 28.0]])
    pixels, kinds = image_with((22, 12, 42, 28), SHAPE), 0
    for seed in range(30):
        matrix = view.change(np.random.default_rng(seed).random(3))
        moves = not np.allclose(matrix, np.eye(3))
        kinds += moves
        found = moved(corners, torch.from_numpy(matrix).float(), SHAPE)[0]
        assert box_of(warped(pixels, matrix)) == pytest.approx(found.tolist(), abs=1.51)
        if moves and change != "shift":  # about the centre
            assert matrix @ [30, 20, 1] == pytest.approx([30, 20, 1])
    assert 5 <= kinds <= 15, "a third of the views is moved so"


def test_turns_and_shifts_are_no_larger_than_said() -> None:
    view = StrongView(size=SHAPE, erasings=(0, 0))
    for seed in range(60):
        draws = np.random.default_rng(seed).random(3)
        (a, _, x), (c, d, y), _ = view.change(draws)
        if draws[0] < 1 / 3:
            assert abs(x) <= 6 and abs(y) <= 4 and a == d == 1
        elif draws[0] < 2 / 3:
            assert abs(math.degrees(math.atan2(c, a))) <= 30
    assert np.allclose(view.change(np.array([0.5, 0.5, 0.0])), np.eye(3))


def test_squares_are_grey_and_as_many_as_asked_for() -> None:
    view = StrongView(size=SHAPE, erasings=(2, 3), erased=0.5)
    seen = set()
    for seed in range(20):
        uniform = np.random.default_rng(seed).random((4, 4))
        uniform[1:, 0] = 0.5
        pixels = view.with_squares(torch.zeros(3, *SHAPE, dtype=torch.uint8), uniform)
        naive = torch.zeros(SHAPE, dtype=torch.bool)
        count = 2 + int(uniform[0, 0] * 2)
        for _, top, left, _ in uniform[1 : 1 + count]:
            down, across = int(top * 31), int(left * 46)  # of 10 by 15
            naive[down : down + 10, across : across + 15] = True
        assert torch.equal(pixels[0] == PAD, naive)
        seen.add(count)
    assert seen == {2, 3}


def test_a_view_draws_from_its_sample_alone_and_as_often_whatever_it_does() -> None:
    image = image_with((20, 10, 50, 40))
    one, other = (StrongView(size=SHAPE).seen(image, np.random.default_rng(3)) for _ in range(2))
    assert torch.equal(one[0], other[0]) and np.array_equal(one[1], other[1])
    assert not torch.equal(StrongView(size=SHAPE).seen(image, np.random.default_rng(4))[0], one[0])
    rng, view = np.random.default_rng(3), StrongView(size=SHAPE)
    how = view.place(rng, (50, 80), SHAPE)
    change = view.change(rng.random(3))
    assert np.allclose(one[1], change @ matrix_of(how, (50, 80), SHAPE)) and not np.allclose(change, np.eye(3))
    left = set()
    for settings in ({"shift": 0.0}, {"flip": 0.0}, {"scale": (1.0, 1.0)}):
        rng = np.random.default_rng(3)
        StrongView.model_validate({"size": SHAPE, **settings}).seen(image, rng)
        left.add(rng.random())
    assert len(left) == 1


def test_without_changes_it_is_the_view_itself() -> None:
    image = image_with((20, 10, 50, 40))
    view = StrongView.model_validate({"size": SHAPE, **PLAIN})
    pixels, matrix = view.seen(image, np.random.default_rng(3))
    how = view.place(np.random.default_rng(3), (50, 80), SHAPE)
    assert torch.equal(pixels, move_image(image, how, SHAPE, "bilinear"))
    assert np.allclose(matrix, matrix_of(how, (50, 80), SHAPE))
    with pytest.raises(ValidationError, match=r"expected \[from, to\], both at least 0, found \[5, 1\]"):
        StrongView(erasings=(5, 1))
