"""Images that are drawn for a look: each once, of every split, the same by the seed; unusable ones are left out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from unlabeled.data.batch.loader import Normalize
from unlabeled.data.opened import Opened
from unlabeled.data.sources.files import Config as Files
from unlabeled.data.view.views import center_crop
from unlabeled.errors import UserError
from unlabeled.look.collect import Picture, Prepared, choose, describe, examples

CPU = torch.device("cpu")
HOW = Prepared((8, 8), 0.9, "bilinear", Normalize((0.5,) * 3, (0.2,) * 3, CPU), CPU)


def source(folder: Path, count: int, broken: tuple[int, ...] = ()) -> Any:
    """Pictures of one colour, the number of each in red; some are broken."""
    folder.mkdir(parents=True)
    for number in range(count):
        Image.new("RGB", (12, 10), (number, 0, 0)).save(file := folder / f"{number:02d}.png")
        if number in broken:
            file.write_bytes(b"no picture")
    return Opened(Files(path=str(folder))).train


class Many:
    """A source of millions of images."""

    def __len__(self) -> int:
        return 30_000_000


def test_all_are_chosen_once_or_a_few_by_the_seed(tmp_path: Path) -> None:
    splits = {"a": source(tmp_path / "a", 3), "b": source(tmp_path / "b", 5)}
    assert choose(splits, 100, 0) == [*(Picture("a", i) for i in range(3)), *(Picture("b", i) for i in range(5))]
    few = [choose(splits, 4, seed) for seed in range(20)]
    assert all(len(set(one)) == 4 and one == sorted(one) for one in few)
    assert {picture for one in few for picture in one} == set(choose(splits, 100, 0))
    assert choose(splits, 4, 7) == few[7]
    several: Any = {"a": splits["a"], "many": Many(), "b": splits["b"]}
    assert len({number for split, number in choose(several, 50, 0) if split == "many"}) == 50


def test_features_and_thumbnails_belong_together(tmp_path: Path) -> None:
    splits = {"a": source(tmp_path / "a", 6, broken=(2,)), "b": source(tmp_path / "b", 4, broken=(0, 3))}
    found, thumbs = describe(lambda x: x.flatten(1), splits, choose(splits, 100, 0), HOW, 0, 60)
    assert [Path(name).name for name in found.names] == [f"{i:02d}.png" for i in (0, 1, 3, 4, 5, 1, 2)]
    assert (found.splits, found.left_out) == (["a"] * 5 + ["b"] * 2, 3)
    assert found.classes == [""] * 7
    for row, (split, number) in enumerate([*(("a", i) for i in (0, 1, 3, 4, 5)), ("b", 1), ("b", 2)]):
        crop = center_crop(splits[split].image(number), (8, 8), 0.9, "bilinear")
        torch.testing.assert_close(found.features[row], HOW.normalize(crop).flatten())
        assert thumbs.images[row, 0, 48, 48] == number
    assert thumbs.images.shape == (7, 3, 96, 96)
    with pytest.raises(UserError, match="none of the 1 pictures can be used"):
        describe(lambda x: x, splits, [Picture("b", 3)], HOW, 0, 60)


def test_examples_step_over_what_cannot_be_used(tmp_path: Path) -> None:
    whole = source(tmp_path / "a", 20, broken=(1, 3, 5, 7, 9))
    found = examples(whole, 8, HOW, 4)
    numbers = found.pixels[:, 0, 4, 4].tolist()
    assert len(set(numbers)) == 8 and not {1, 3, 5, 7, 9} & set(numbers)
    assert np.allclose(found.normalized, HOW.normalize(found.pixels))
    assert examples(whole, 8, HOW, 4).pixels.equal(found.pixels)
    assert not examples(whole, 8, HOW, 5).pixels.equal(found.pixels)
    with pytest.raises(UserError, match="none of the pictures"):
        examples(source(tmp_path / "b", 2, broken=(0, 1)), 8, HOW, 0)
