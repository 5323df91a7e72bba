"""The PNG of a run shows the pixels that went in, crop by crop, and hides what is hidden."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision

from unlabeled.data.batch.batch import Batch, ViewBatch
from unlabeled.data.batch.loader import Normalize
from unlabeled.nn.patches import PatchMask
from unlabeled.train.pictures import GAP, SIDE, PictureWriter, crops

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)


class Shows:
    """A method that shows what it is told to."""

    def __init__(self, what: torch.Tensor | None) -> None:
        self.what = what

    def pictures(self, batch: Batch) -> torch.Tensor | None:
        return self.what


def made(channels: int = 3) -> tuple[torch.Tensor, torch.Tensor, Batch]:
    """uint8 large [1, 9, C, 8, 8] and small crops [2, 9, C, 4, 4], and their batch; the large ones have a mask."""
    generator = torch.Generator().manual_seed(0)
    large = torch.randint(256, (1, 9, channels, 8, 8), generator=generator, dtype=torch.uint8)
    small = torch.randint(256, (2, 9, channels, 4, 4), generator=generator, dtype=torch.uint8)
    hidden = torch.zeros(1, 9, 4, dtype=torch.bool)
    hidden[:, :, 1] = True
    ready = Normalize(MEAN[:1] * channels, STD[:1] * channels, torch.device("cpu"))
    views = [ViewBatch(ready(large), PatchMask(hidden, None, None)), ViewBatch(ready(small), None)]
    return large, small, Batch(views, torch.full((9,), -1), torch.arange(9))


def test_crops_lie_amid_the_mean_and_hide_what_is_hidden() -> None:
    _, _, batch = made()
    drawn = crops(batch)
    assert drawn.shape == (9, 3, 3, 8, 8)
    large, small = (view.pixels for view in batch.views)
    assert drawn[:, 0, :, :4, 4:].eq(0).all()
    assert drawn[:, 0, :, 4:].equal(large[0, :, :, 4:]) and drawn[:, 0, :, :4, :4].equal(large[0, :, :, :4, :4])
    assert drawn[:, 1:, :, 2:6, 2:6].equal(small.transpose(0, 1))
    assert drawn[:, 1:].ne(0).sum() == drawn[:, 1:, :, 2:6, 2:6].ne(0).sum()


def test_sets_to_predict_follow_their_crop_each_alone() -> None:
    _, _, batch = made()
    view = batch.views[0]
    assert view.mask is not None
    targets = torch.tensor([[0, 1], [2, 2]]).expand(1, 9, 2, 2)
    views = [view._replace(mask=view.mask._replace(targets=targets)), batch.views[1]]
    drawn, large = crops(batch._replace(views=views)), view.pixels[0]
    assert drawn.shape == (9, 5, 3, 8, 8)
    assert drawn[:, 0].equal(crops(batch)[:, 0]) and drawn[:, 3:].equal(crops(batch)[:, 1:])
    assert drawn[:, 1, :, :4].equal(large[:, :, :4]) and drawn[:, 1, :, 4:].eq(0).all()
    assert (
        drawn[:, 2, :, 4:, :4].equal(large[:, :, 4:, :4]) and drawn[:, 2].ne(0).sum() == large[:, :, 4:, :4].ne(0).sum()
    )


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_the_png_has_the_pixels_that_went_in(channels: int, tmp_path: Path) -> None:
    large, _, batch = made(channels)
    method: Any = Shows(None)
    PictureWriter(tmp_path, MEAN[:1] * channels, STD[:1] * channels)(5, method, batch)
    found = torchvision.io.read_image(str(tmp_path / "step-00000005.png"))
    factor, side = SIDE // 8, SIDE + 2 * GAP
    assert found.shape == (min(channels, 3), 3 * side, 8 * side), "eight of nine pictures, three crops each"
    tile = found[:, GAP : GAP + SIDE, side + GAP : side + GAP + SIDE][:, ::factor, ::factor]
    assert tile[:, 4:].equal(large[0, 1, :3, 4:])


def test_a_method_shows_what_it_wants(tmp_path: Path) -> None:
    _, _, batch = made()
    method: Any = Shows(torch.zeros(2, 1, 3, 8, 8))
    PictureWriter(tmp_path, MEAN, STD)(1, method, batch)
    assert torchvision.io.read_image(str(tmp_path / "step-00000001.png")).shape == (
        3,
        SIDE + 2 * GAP,
        2 * (SIDE + 2 * GAP),
    )
