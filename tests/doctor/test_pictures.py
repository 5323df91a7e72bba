"""Statistics against numpy on all pixels; any number of channels; every bad picture counted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from unlabeled.data.label.subset import Part
from unlabeled.data.opened import Opened
from unlabeled.data.source import Source
from unlabeled.data.sources.files import Config as Files
from unlabeled.data.sources.mixture import MixtureSource
from unlabeled.doctor.facts import class_facts, split_facts
from unlabeled.doctor.pictures import Survey, evenly, survey, wrong_ending
from unlabeled.errors import BadSample


class Memory(Source):
    """A source of tensors; None is a bad picture."""

    classes = ()

    def __init__(self, pictures: list[Tensor | None]) -> None:
        self.pictures, self.labels = pictures, np.full(len(pictures), -1)

    def __len__(self) -> int:
        return len(self.pictures)

    def image(self, i: int) -> Tensor:
        picture = self.pictures[i]
        if picture is None:
            raise BadSample(self.key(i), "broken")
        return picture

    def key(self, i: int) -> str:
        return f"picture {i}"

    def fingerprint(self) -> str:
        return ""


def surveyed(source: object, most: int | None = None, workers: int = 0) -> Survey:
    return survey(source, most, 0, workers, 60, lambda _: None)  # type: ignore[arg-type]


def noise(channels: int, height: int, width: int, seed: int) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    high = 40 + 200 * torch.rand(channels, 1, 1, generator=random)
    return (torch.rand(channels, height, width, generator=random) * high).to(torch.uint8)


@pytest.mark.parametrize("channels", [1, 2, 3, 16])
def test_statistics_are_those_of_all_pixels(channels: int) -> None:
    pictures: list[Tensor | None] = [noise(channels, 12, 20, seed) for seed in range(40)]
    mean, std = surveyed(Memory(pictures), workers=1).statistics()
    pixels = np.stack([picture.numpy() for picture in pictures if picture is not None]) / 255
    np.testing.assert_allclose(mean, pixels.mean(axis=(0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(std, pixels.std(axis=(0, 2, 3)), rtol=1e-12)


def test_every_picture_weighs_the_same_whatever_its_size() -> None:
    dark, light = torch.zeros(3, 4, 4, dtype=torch.uint8), torch.full((3, 40, 40), 255, dtype=torch.uint8)
    mean, std = surveyed(Memory([dark, light])).statistics()
    assert mean.tolist() == [0.5] * 3 and std.tolist() == [0.5] * 3


def test_bad_pictures_are_counted_and_named() -> None:
    found = surveyed(Memory([noise(3, 8, 8, 0), None, noise(3, 8, 8, 1), None]))
    assert (found.looked, len(found)) == (4, 2)
    assert [tuple(bad) for bad in found.bad] == [("picture 1", "broken"), ("picture 3", "broken")]
    assert found.key(1) == "picture 2"


def test_nothing_but_bad_pictures() -> None:
    facts = split_facts(surveyed(Memory([None] * 3)), (8, 8), 4)
    assert facts["unreadable"]["count"] == 3 and "mean" not in facts


@pytest.mark.parametrize(("n", "most"), [(10, 10), (10, 99), (100, 7), (11, 10), (1, 1)])
def test_a_sample_is_even(n: int, most: int) -> None:
    numbers = evenly(n, most, 3)
    assert len(numbers) == min(n, most) and numbers.max() < n
    # one of each stretch: gaps are below two stretches
    assert (np.diff(numbers) > 0).all() and (np.diff(numbers) < 2 * n / min(n, most) + 1).all()
    assert numbers.tolist() == evenly(n, most, 3).tolist()
    assert n <= most or n == 11 or numbers.tolist() != evenly(n, most, 4).tolist()


def test_what_a_mixture_repeats_is_looked_at_once() -> None:
    small, large = Memory([noise(3, 8, 8, 0)]), Memory([noise(3, 8, 8, seed) for seed in range(1, 9)])
    mixture = MixtureSource([small, large], [1, 1])
    assert len(mixture) == 16
    assert len(surveyed(mixture)) == 9


def test_sizes_against_the_crop() -> None:
    sizes = [(15, 99), (64, 64), (64, 31), (65, 70), (128, 65)]
    facts = split_facts(surveyed(Memory([noise(3, *size, seed) for seed, size in enumerate(sizes)])), (32, 32), 16)
    assert facts["smaller_than_crop"] == 2 / 5
    assert facts["larger_than_twice_crop"] == 2 / 5
    assert facts["short_side"] == {"min": 15, "p5": 15, "median": 64, "p95": 65, "max": 65}
    assert facts["aspect"]["max"] == 6.6
    suspicious = {name: found["examples"] for name, found in facts["suspicious"].items() if found["count"]}
    assert suspicious == {"tiny": ["picture 0"], "elongated": ["picture 0"]}


def test_contents_against_endings(tmp_path: Path) -> None:
    picture = Image.fromarray(noise(3, 16, 16, 0).permute(1, 2, 0).numpy())
    kinds = {"a.jpg": "JPEG", "b.jpg": "PNG", "c.png": "PNG", "d.webp": "WEBP", "e.tif": "TIFF", "f.JPEG": "JPEG"}
    kinds |= {"g.gif": "GIF", "h.bmp": "BMP", "i.png": "WEBP", "j.ppm": "PPM", "k.tiff": "JPEG"}
    for name, kind in kinds.items():
        picture.save(tmp_path / name, kind)
    source = Opened(Files(path=str(tmp_path))).train
    expected = {1: "PNG", 8: "WebP", 10: "JPEG"}
    assert {i: found for i in range(len(source)) if (found := wrong_ending(source, i))} == expected
    assert wrong_ending(Part(source, np.array([0, 8])), 1) == "WebP"


def test_class_balance() -> None:
    facts = class_facts(np.array([0] * 3 + [1] * 9 + [-1] * 4), ("few", "many"))
    assert facts is not None
    assert facts["smallest"] == {"name": "few", "pictures": 3} and facts["largest"] == {"name": "many", "pictures": 9}
    assert (facts["ratio"], facts["unlabelled"], facts["empty"]) == (3, 4, 0)
    # entropy of (1/4, 3/4) in bits
    assert facts["entropy"] == pytest.approx(0.8113, abs=1e-4)
    assert class_facts(np.array([-1]), ()) is None
    assert class_facts(np.array([0]), ("a", "b"))["ratio"] is None  # type: ignore[index]
