"""Views of images with masks: every step against loops over pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from masked import draw, write
from pydantic import ValidationError

from unlabeled.data.batch.loader import Normalize, to_device
from unlabeled.data.batch.sampler import Position
from unlabeled.data.batch.samples import collate
from unlabeled.data.masked.dataset import MaskDataset
from unlabeled.data.masked.view import UNLABELLED, MaskView, move_mask
from unlabeled.data.opened import Opened
from unlabeled.data.sources.files import Config as Files
from unlabeled.data.view.placed import Placed
from unlabeled.errors import UserError
from unlabeled.evaluate.segmentation_values import MaskSettings
from unlabeled.transfer.segmentation.images import masked

HEIGHT, WIDTH = 24, 40  # of images here
SHAPE = (32, 32)  # of views


def naive(mask: torch.Tensor, how: Placed, shape: tuple[int, int]) -> list[list[int]]:
    """The class of every pixel of a view, one after the other."""
    rows = []
    for row in range(shape[0]):
        line = []
        for column in range(shape[1]):
            across = shape[1] - 1 - column if how.flip else column
            y, x = row + how.top, across + how.left
            if y >= how.height or x >= how.width:
                line.append(UNLABELLED)
                continue
            line.append(int(mask[int((y + 0.5) * HEIGHT / how.height), int((x + 0.5) * WIDTH / how.width)]))
        rows.append(line)
    return rows


@pytest.mark.parametrize("seed", range(8))
def test_masks_move_as_a_loop_moves_them(seed: int) -> None:
    view, mask = MaskView(size=SHAPE, scale=(0.3, 2.5)), torch.randint(-1, 7, (HEIGHT, WIDTH)).short()
    how = view.place(np.random.default_rng(seed), (HEIGHT, WIDTH), SHAPE)
    moved = move_mask(mask, how, SHAPE)
    assert moved.dtype == torch.int16 and moved.tolist() == naive(mask, how, SHAPE)


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_image_and_mask_move_alike(flip: float) -> None:
    """An image whose colour is its class keeps both together, away from edges that are smoothed."""
    mask = torch.zeros(HEIGHT, WIDTH, dtype=torch.int16)
    mask[4:20, 2:14] = 1
    image = (mask * 250).to(torch.uint8).expand(3, -1, -1).contiguous()
    view = MaskView(size=SHAPE, scale=(0.5, 2.0), flip=flip)
    for seed in range(10):
        pixels, moved = view.drawn(image, mask, np.random.default_rng(seed))
        known = moved != UNLABELLED
        assert ((pixels[0] > 125).long() == moved)[known].float().mean() > 0.95
        assert (pixels[:, ~known] == 128).all()
    pixels, moved = MaskView(size=(HEIGHT, WIDTH), scale=(1, 1), flip=flip).drawn(image, mask, np.random.default_rng(0))
    assert torch.equal(moved, mask.flip(-1) if flip else mask)
    assert torch.equal(pixels, image.flip(-1) if flip else image)


def test_samples_carry_masks_to_the_device(tmp_path: Path) -> None:
    write(tmp_path, "train", 3, height=HEIGHT, width=WIDTH)
    write(tmp_path, "val", 1, first=100)
    data = Opened(Files(path=str(tmp_path), train="train", val="val"))
    source = masked(data, MaskSettings(), 1.0, 0, None).train
    assert source.classes == ("0", "1", "2") and len(source) == 3
    view = MaskView(size=SHAPE)
    dataset = MaskDataset(source, [view], 4, 0)
    positions = [Position(0, 2), Position(0, 0, row=1)]
    raw = collate(dataset.__getitems__(positions))
    assert raw.pixel_labels is not None and raw.pixel_labels.shape == (2, *SHAPE)
    batch = to_device(raw, torch.device("cpu"), Normalize((0.5,) * 3, (0.25,) * 3, torch.device("cpu")))
    assert batch.pixel_labels is not None and torch.equal(batch.pixel_labels, raw.pixel_labels)
    again = collate([dataset[Position(0, 2)]])
    assert again.pixel_labels is not None and torch.equal(again.pixel_labels[0], raw.pixel_labels[0])
    stored = torch.from_numpy(draw(2, HEIGHT, WIDTH).mask.astype(np.int16))
    assert torch.equal(source.pixel_labels(2, HEIGHT, WIDTH), stored.where(stored != 255, torch.tensor(-1).short()))
    with pytest.raises(UserError, match=r"has 24 rows of 40 pixels, but .* 24 of 41"):
        source.pixel_labels(2, 24, 41)


def test_masks_are_part_of_the_fingerprint(tmp_path: Path) -> None:
    write(tmp_path, "train", 3)
    write(tmp_path, "val", 1, first=100)

    def fingerprint(settings: MaskSettings, share: float = 1.0) -> str:
        data = Opened(Files(path=str(tmp_path), train="train", val="val"))
        return masked(data, settings, share, 0, None).train.fingerprint()

    found = [fingerprint(MaskSettings()), fingerprint(MaskSettings(classes=4)), fingerprint(MaskSettings(), 0.5)]
    assert len(set(found)) == 3 and fingerprint(MaskSettings()) == found[0]
    (tmp_path / "train_masks/a/000.png").write_bytes((tmp_path / "val_masks/a/000.png").read_bytes() + b"0")
    assert fingerprint(MaskSettings()) != found[0]


@pytest.mark.parametrize(
    ("settings", "says"),
    [({"ratio": (1.0, 1.0)}, "ratio is not for views with masks"), ({"scale": (1, 9)}, "factors of at most 4")],
)
def test_what_masks_cannot_follow_is_refused(settings: dict[str, object], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        MaskView.model_validate({"size": 32, **settings})
