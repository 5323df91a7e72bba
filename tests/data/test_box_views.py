"""Views of images with boxes: every step against loops over pixels and boxes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from boxed import draw, write_coco
from pydantic import ValidationError

from unlabeled.data.batch.loader import Normalize, to_device
from unlabeled.data.batch.sampler import Position
from unlabeled.data.batch.samples import collate
from unlabeled.data.boxed.dataset import BoxDataset
from unlabeled.data.boxed.view import BoxView, centre_of, mosaic, move_boxes, quarters
from unlabeled.data.label.boxes import Boxes
from unlabeled.data.opened import Opened
from unlabeled.data.source import SOURCES, Source
from unlabeled.data.view.placed import PAD, Placed, move_image, placed, whole

HEIGHT, WIDTH = 24, 40  # of images here
SHAPE = (32, 32)  # of views


def boxes_of(*corners: tuple[float, float, float, float], crowd: tuple[bool, ...] = ()) -> Boxes:
    count = len(corners)
    flags = torch.tensor(crowd or (False,) * count)
    return Boxes(torch.tensor(corners).float(), torch.arange(count), flags, torch.ones(count, dtype=torch.float64))


def naive(corners: list[float], how: Placed, shape: tuple[int, int]) -> list[float] | None:
    """A box side by side: scaled, cut at the image, moved, cut at the view, turned round; None where it is gone."""
    left, top, right, bottom = corners
    left, right = (min(max(x * how.width / WIDTH, 0), how.width) - how.left for x in (left, right))
    top, bottom = (min(max(y * how.height / HEIGHT, 0), how.height) - how.top for y in (top, bottom))
    left, right = (min(max(x, 0), shape[1]) for x in (left, right))
    top, bottom = (min(max(y, 0), shape[0]) for y in (top, bottom))
    if how.flip:
        left, right = shape[1] - right, shape[1] - left
    return None if right - left < 1 or bottom - top < 1 else [left, top, right, bottom]


@pytest.mark.parametrize("seed", range(12))
def test_boxes_move_as_a_loop_moves_them(seed: int) -> None:
    rng = np.random.default_rng(seed)
    view = BoxView(size=SHAPE, scale=(0.3, 2.5))
    how = view.place(rng, (HEIGHT, WIDTH), SHAPE)
    start = rng.uniform(-4, 30, (20, 2))
    corners = np.concatenate([start, start + rng.uniform(0, 20, (20, 2))], 1).astype(np.float32)
    moved = move_boxes(boxes_of(*map(tuple, corners.tolist())), torch.zeros(3, HEIGHT, WIDTH), how, SHAPE)
    expected = {i: box for i, one in enumerate(corners.tolist()) if (box := naive(one, how, SHAPE)) is not None}
    assert moved.classes.tolist() == list(expected)
    torch.testing.assert_close(moved.corners, torch.tensor(list(expected.values())).reshape(-1, 4), atol=1e-3, rtol=0)


@pytest.mark.parametrize("seed", range(8))
def test_a_rectangle_and_its_box_stay_together(seed: int) -> None:
    """The coloured pixels of a view end where its box does, to the pixel that resizing blurs."""
    rng = np.random.default_rng(seed)
    image = torch.full((3, HEIGHT, WIDTH), 100, dtype=torch.uint8)
    image[:, 6:18, 10:30] = 250
    view = BoxView(size=SHAPE, scale=(0.6, 2.0))
    pixels, boxes = view.drawn(image, boxes_of((10, 6, 30, 18)), rng, SHAPE)
    rows, columns = torch.where(pixels[0] > 190)
    if len(boxes.classes):
        found = torch.tensor([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
        assert (found - boxes.corners[0]).abs().max() <= 1.0
    else:
        assert len(rows) <= SHAPE[0] * 2


def test_images_are_cut_padded_and_turned_round() -> None:
    image = torch.arange(3 * HEIGHT * WIDTH).remainder(251).to(torch.uint8).view(3, HEIGHT, WIDTH)
    how = Placed(HEIGHT, WIDTH, 2, 5, True)
    moved = move_image(image, how, SHAPE, "bilinear")
    for row in range(SHAPE[0]):
        for column in range(SHAPE[1]):
            source = (row + 2, 5 + SHAPE[1] - 1 - column)
            inside = source[0] < HEIGHT and source[1] < WIDTH
            expected = image[:, source[0], source[1]] if inside else torch.full((3,), PAD, dtype=torch.uint8)
            assert torch.equal(moved[:, row, column], expected)
    assert torch.equal(move_image(image, how._replace(flip=False), SHAPE, "bilinear"), moved.flip(-1))


def test_small_and_crowded_boxes_are_left_out() -> None:
    how, image = Placed(HEIGHT, WIDTH, 0, 0, False), torch.zeros(3, HEIGHT, WIDTH)
    found = boxes_of(
        (0, 0, 1, 1), (0, 0, 0.9, 9), (31.5, 0, 40, 9), (31, 0, 40, 9), (2, 2, 9, 9), crowd=(False,) * 4 + (True,)
    )
    moved = move_boxes(found, image, how, SHAPE)
    assert moved.classes.tolist() == [0, 3] and moved.corners.tolist() == [[0, 0, 1, 1], [31, 0, 32, 9]]


def test_placing_covers_all_parts_of_an_image() -> None:
    view, rng = BoxView(size=SHAPE, scale=(2.0, 2.0)), np.random.default_rng(0)
    drawn = [view.place(rng, (HEIGHT, WIDTH), SHAPE) for _ in range(400)]
    # 40 pixels become 64, and 24 become 38
    assert {(how.height, how.width) for how in drawn} == {(38, 64)}
    assert {how.left for how in drawn} == set(range(33)) and {how.top for how in drawn} == set(range(7))
    assert 0.4 < np.mean([how.flip for how in drawn]) < 0.6
    small = placed((HEIGHT, WIDTH), SHAPE, 0.5)
    assert small == Placed(10, 16, 0, 0, False)


def test_what_is_seen_in_evaluation_leads_back_to_the_image() -> None:
    image = torch.zeros(3, HEIGHT, WIDTH, dtype=torch.uint8)
    seen = whole(image, SHAPE, "bilinear")
    assert seen.pixels.shape == (3, *SHAPE) and seen.resized == (19, 32) and (seen.pixels[:, 19:] == PAD).all()
    back = seen.back(torch.tensor([[0.0, 0, 32, 19], [8, 9.5, 16, 40]]))
    torch.testing.assert_close(back, torch.tensor([[0.0, 0, 40, 24], [10, 12, 20, 24]]))


def test_a_mosaic_puts_four_views_side_by_side() -> None:
    shape, rng = (30, 40), np.random.default_rng(3)
    centres = [centre_of(rng, shape) for _ in range(500)]
    rows, columns = ({centre[axis] for centre in centres} for axis in (0, 1))
    assert (min(rows), max(rows), min(columns), max(columns)) == (7, 22, 10, 29)
    places = quarters((12, 25), shape)
    cover = np.zeros(shape, int)
    for top, left, height, width in places:
        cover[top : top + height, left : left + width] += 1
    assert (cover == 1).all()
    parts = []
    for number, (_, _, height, width) in enumerate(places):
        pixels = torch.full((3, height, width), number, dtype=torch.uint8)
        parts.append((pixels, boxes_of((1, 2, 5, 6))._replace(classes=torch.tensor([number]))))
    pixels, boxes = mosaic(parts, places, shape)
    for number, (left, top, right, bottom) in enumerate(boxes.corners.int().tolist()):
        assert (pixels[:, top:bottom, left:right] == number).all() and boxes.classes[number] == number
        assert (right - left, bottom - top) == (4, 4)


@pytest.fixture
def source(tmp_path: Path) -> Source:
    write_coco(tmp_path, "train", 6)
    config: Any = SOURCES.kind("coco")(path=str(tmp_path), train="train", train_boxes="train.json")
    return Opened(config).train


def sample(source: Source, view: BoxView, seed: int = 0, **position: int) -> tuple[torch.Tensor, Boxes]:
    dataset = BoxDataset(source, [view], 4, seed)
    found = dataset[Position(**{"epoch": 0, "index": 2, **position})]
    assert found.boxes is not None
    return found.crops[0].pixels[0], found.boxes


def test_samples_depend_on_seed_epoch_and_row_alone(source: Source) -> None:
    view = BoxView(size=SHAPE)
    pixels, boxes = sample(source, view)
    again = sample(source, view, step=9, row=3)
    assert torch.equal(pixels, again[0]) and torch.equal(boxes.corners, again[1].corners)
    for other in ({"epoch": 1}, {"turn": 1}):
        assert not torch.equal(pixels, sample(source, view, **other)[0])
    assert not torch.equal(pixels, sample(source, view, seed=1)[0])


def test_mosaics_depend_on_step_and_row(source: Source) -> None:
    view = BoxView(size=SHAPE, scale=(1.0, 1.0), mosaic=1.0)
    pixels, _ = sample(source, view, step=4, row=1)
    assert torch.equal(pixels, sample(source, view, step=4, row=1)[0])
    assert not torch.equal(pixels, sample(source, view, step=5, row=1)[0])
    assert not torch.equal(pixels, sample(source, view, step=4, row=2)[0])
    plain, own = sample(source, view.model_copy(update={"mosaic": 0.0}), step=4, row=1)
    assert not torch.equal(pixels, plain) and len(own.classes) <= len(draw(2).boxes)
    some = [len(sample(source, view, step=step)[1].classes) for step in range(8)]
    assert np.mean(some) > 2 * np.mean([len(draw(number).boxes) for number in range(6)]) / 1.5
    half = [torch.equal(sample(source, view.model_copy(update={"mosaic": 0.5}), step=s)[0], plain) for s in range(40)]
    assert 8 < sum(half) < 32


def test_a_bad_image_is_replaced_with_the_boxes_of_the_other(source: Source, tmp_path: Path) -> None:
    (tmp_path / "train" / "002.png").write_bytes(b"no image")
    view = BoxView(size=SHAPE, scale=(1.0, 1.0), flip=0.0)
    found = BoxDataset(source, [view], 4, 0)[Position(0, 2)]
    assert found.index == 3 and [key for key, _ in found.bad] == [str(tmp_path / "train" / "002.png")]
    assert found.boxes is not None
    assert found.boxes.corners.tolist() == [list(map(float, box[:4])) for box in draw(3).boxes]


def test_batches_carry_boxes_to_the_device(source: Source) -> None:
    view = BoxView(size=SHAPE, scale=(1.0, 1.0), flip=0.0, jitter=(0.2, 0.2, 0.2, 0.1))
    dataset = BoxDataset(source, [view], 4, 0)
    raw = collate([dataset[Position(0, index)] for index in (1, 3, 4)])
    batch = to_device(raw, torch.device("cpu"), Normalize((0.5,) * 3, (0.5,) * 3, torch.device("cpu")))
    assert batch.boxes is not None and batch.views[0].pixels.shape == (1, 3, 3, *SHAPE)
    for index, (corners, classes) in zip((1, 3, 4), batch.boxes.each(), strict=True):
        drawn = draw(index).boxes
        assert corners.tolist() == [list(map(float, box[:4])) for box in drawn]
        assert classes.tolist() == [box[4] for box in drawn]


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ({"ratio": (0.9, 1.1)}, "ratio is not for views with boxes"),
        ({"count": 2}, "count is not for views with boxes"),
        ({"rand_augment": "rand-m9-mstd0.5"}, "rand_augment is not for views with boxes"),
        ({"erase": 0.5}, "erase is not for views with boxes"),
        ({"scale": (2.0, 1.0)}, r"expected \[low, high\]"),
        ({"scale": (1.0, 9.0)}, "factors of at most 4"),
        ({"mosaic": 1.5}, "less than or equal to 1"),
    ],
)
def test_what_boxes_cannot_follow_is_refused(setting: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        BoxView(**setting)
