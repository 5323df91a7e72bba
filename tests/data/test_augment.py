"""RandAugment, random erasing and single-shot boxes: against timm's own code and the papers' rules."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from timm.data import random_erasing
from timm.data.transforms_factory import transforms_imagenet_train
from torch import Tensor

from unlabeled.data.batch.loader import Normalize, ViewDataset, make_loader, to_device
from unlabeled.data.batch.sampler import Position
from unlabeled.data.batch.samples import collate
from unlabeled.data.source import Source
from unlabeled.data.view.augment import Erased, draw_erased, rand_augment
from unlabeled.data.view.views import View
from unlabeled.doctor.speed import _repeated
from unlabeled.launch.plan import describe_view

CPU = torch.device("cpu")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
POSITIONS = [Position(epoch, index) for epoch in (0, 3) for index in (4, 0, 9, 2)]
SPEC = "rand-m9-mstd0.5-inc1"
VIEW = View(size=32, count=2, rand_augment=SPEC, erase=0.5)


def picture(height: int = 32, width: int = 48) -> Tensor:
    rng = torch.Generator().manual_seed(height)
    return torch.randint(0, 256, (3, height, width), generator=rng, dtype=torch.uint8)


class Pictures(Source):
    """A source of noise."""

    classes: tuple[str, ...] = ("a",)
    labels = np.zeros(10, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, i: int) -> Tensor:
        return picture(40 + i, 50)

    def key(self, i: int) -> str:
        return str(i)

    def fingerprint(self) -> str:
        return "noise"


# RandAugment


def timms(pixels: Tensor, pythons: int, numpys: int, spec: str = SPEC) -> Tensor:
    """By the step that timm's own training has, with the mean that it is given there."""
    height, width = pixels.shape[1:]
    _, augments, _ = transforms_imagenet_train(
        (height, width), auto_augment=spec, interpolation="bicubic", mean=MEAN, std=STD, separate=True
    )
    random.seed(pythons)
    np.random.seed(numpys)
    augmented = augments(Image.fromarray(pixels.permute(1, 2, 0).numpy()))
    return torch.from_numpy(np.array(augmented)).permute(2, 0, 1)


@pytest.mark.parametrize(("height", "width"), [(32, 48), (48, 48)])
def test_rand_augment_is_timms_on_the_same_seeds(height: int, width: int) -> None:
    image, changed = picture(height, width), 0
    for seed in range(40):
        expected = timms(image, *np.random.default_rng(seed).integers(2**32, size=2).tolist())
        found = rand_augment(image, SPEC, np.random.default_rng(seed))
        assert torch.equal(found, expected) and found.dtype == torch.uint8 and found.is_contiguous()
        changed += not torch.equal(found, image)
    assert changed > 20


@pytest.mark.parametrize("spec", ["rand-m10-n1-p1-inc1", "rand-m1-n1-p1", "rand-m20-n1-p1-mmax20-inc1"])
def test_a_posterizing_to_no_bits_is_black(spec: str) -> None:
    """As it is by timm with Pillow before 13, which refuses it: timm alone ends a run there, sooner or later."""
    image, black = picture(), 0
    for seed in range(100):
        found = rand_augment(image, spec, np.random.default_rng(seed))
        try:
            expected = timms(image, *np.random.default_rng(seed).integers(2**32, size=2).tolist(), spec)
        except ValueError:
            expected = torch.zeros_like(image)
        assert torch.equal(found, expected)
        black += not found.any()
    assert 0 < black < 25


def test_rand_augment_leaves_the_global_generators_alone() -> None:
    random.seed(1)
    np.random.seed(1)
    random.gauss(0, 1)  # one of a pair: the other is part of the state
    before = random.getstate(), np.random.get_state()[1].tolist()
    rand_augment(picture(), SPEC, np.random.default_rng(0))
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before


def test_rand_augment_is_of_the_cut_and_flipped_crop() -> None:
    image, view, changed = picture(60, 80), View(size=32, rand_augment=SPEC), 0
    for seed in range(5):
        rng = np.random.default_rng(seed)
        crop = View(size=32).apply(image, view.draw(rng, 60, 80))
        expected = rand_augment(crop, SPEC, rng)
        assert torch.equal(view.sample(image, np.random.default_rng(seed), patch=8).pixels[0], expected)
        changed += not torch.equal(crop, expected)
    assert changed > 1


# random erasing


class Scripted:
    """Python's `random` as `timm` sees it, with what was drawn for us."""

    def __init__(self, uniform: np.ndarray) -> None:
        self.chance, self.attempts = float(uniform[0]), iter(uniform[1:].reshape(10, 4))
        self.now: list[float] = []

    def random(self) -> float:
        return self.chance

    def uniform(self, low: float, high: float) -> float:
        if len(self.now) != 3:  # the places of a box that did not fit were never asked for
            self.now = next(self.attempts).tolist()
        return low + self.now.pop(0) * (high - low)

    def randint(self, low: int, high: int) -> int:
        return low + int(self.now.pop(0) * (high - low + 1))


@pytest.mark.parametrize("shape", [(224, 224), (32, 32), (20, 90), (6, 60), (3, 3)])
@pytest.mark.parametrize("probability", [0.25, 1.0])
def test_erased_boxes_are_timms_on_the_same_draws(
    shape: tuple[int, int], probability: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    timm, erased = random_erasing.RandomErasing(probability, mode="const", device="cpu"), 0
    for seed in range(200):
        monkeypatch.setattr(random_erasing, "random", Scripted(np.random.default_rng(seed).random(41)))
        expected = timm(torch.ones(1, *shape))[0]
        top, left, h, w = draw_erased(probability, shape, np.random.default_rng(seed)).box.tolist()
        found = torch.ones(shape)
        found[top : top + h, left : left + w] = 0
        assert torch.equal(found, expected)
        erased += h > 0
    # in narrow crops all ten attempts may be too large
    spread = 5 * math.sqrt(200 * probability * (1 - probability))
    assert min(shape) < 10 or abs(erased - 200 * probability) <= spread


def test_an_erased_box_costs_the_same_draws_whatever_comes_of_it() -> None:
    after = set()
    for probability, shape in [(1e-9, (32, 32)), (1.0, (32, 32)), (1.0, (2, 50))]:
        rng = np.random.default_rng(7)
        draw_erased(probability, shape, rng)
        after.add(rng.random())
    assert len(after) == 1


@pytest.mark.parametrize("grey", [0.0, 0.5])
def test_erased_pixels_are_normal_and_the_others_untouched(grey: float) -> None:
    """As the last step: neither recolouring nor normalising comes after it."""
    dataset = ViewDataset(Pictures(), [View(size=48, count=2, grayscale=grey, erase=0.7)], patch=8, seed=5)
    normalize, noise = Normalize(MEAN, STD, CPU), []
    raw = collate([dataset[position] for position in POSITIONS])
    (found,), (plain,) = (to_device(batch, CPU, normalize).views for batch in (raw, without_erasing(raw)))
    drawn: Any = raw.crops[0].erased
    assert isinstance(drawn, Erased) and drawn.box.shape == (8, 2, 4) and drawn.key.shape == (8, 2)
    for b, crop in np.ndindex(8, 2):
        top, left, h, w = drawn.box[b, crop].tolist()
        box = torch.zeros(48, 48, dtype=torch.bool)
        box[top : top + h, left : left + w] = True
        assert torch.equal(found.pixels[crop, b][:, ~box], plain.pixels[crop, b][:, ~box])
        noise.append(found.pixels[crop, b][:, box])
    values = torch.cat([part.flatten() for part in noise])
    assert 5 < sum(len(part[0]) > 0 for part in noise) < 16 and len(values) > 5000
    assert abs(values.mean()) < 5 / math.sqrt(len(values)) and abs(values.std() - 1) < 5 / math.sqrt(2 * len(values))
    # channels and boxes have their own: nothing is said twice
    assert len(values.unique()) > 0.99 * len(values)


def without_erasing(raw: Any) -> Any:
    return raw._replace(crops=[crops._replace(erased=None) for crops in raw.crops])


# whoever makes it


def batches(sizes: int, workers: int = 0) -> Tensor:
    positions = [POSITIONS[i : i + sizes] for i in range(0, len(POSITIONS), sizes)]
    dataset = ViewDataset(Pictures(), [VIEW], patch=8, seed=5)
    loader = make_loader(dataset, positions, workers=workers, device=CPU, timeout=60, collate=collate)
    normalize = Normalize(MEAN, STD, CPU)
    return torch.cat([to_device(raw, CPU, normalize).views[0].pixels for raw in loader], dim=1)


@pytest.mark.parametrize(("size", "workers"), [(4, 0), (8, 2), (2, 2)])
def test_micro_batches_and_workers_change_nothing(size: int, workers: int) -> None:
    assert torch.equal(batches(size, workers), batches(8))


def test_a_benchmark_repeats_erased_pictures_as_they_are() -> None:
    dataset = ViewDataset(Pictures(), [VIEW], patch=8, seed=5)
    raw = collate([dataset[position] for position in POSITIONS])
    repeated = to_device(_repeated(raw, 12, CPU), CPU, Normalize(MEAN, STD, CPU)).views[0].pixels
    assert torch.equal(repeated, torch.cat([batches(8), batches(8)[:, :4]], dim=1))


def test_other_views_draw_as_before() -> None:
    """The boxes of a view that has neither do not move when the options are there but off."""
    image = picture(60, 80)
    plain = View(size=32, count=2, grayscale=0.5)
    rng = np.random.default_rng(3)
    for _ in range(plain.count):
        plain.draw(rng, 60, 80)
        rng.random(13)
    expected = rng.random()
    rng = np.random.default_rng(3)
    crops = plain.sample(image, rng, patch=8)
    assert crops.erased is None and rng.random() == expected


# single-shot boxes


def test_single_shot_boxes_are_maes() -> None:
    """`RandomResizedCrop.get_params` of MAE's `util/crop.py`, with our draws for its own."""
    view, clamped = View(scale=(0.08, 1.0), single_shot=True), 0
    for seed in range(200):
        for height, width in [(50, 75), (30, 90), (9, 120), (1, 1)]:
            area, aspect, down, right = np.random.default_rng(seed).random(4)
            target = height * width * (0.08 + 0.92 * area)
            ratio = math.exp(math.log(3 / 4) + aspect * (math.log(4 / 3) - math.log(3 / 4)))
            wanted = round(math.sqrt(target / ratio)), round(math.sqrt(target * ratio))
            h, w = min(max(wanted[0], 1), height), min(max(wanted[1], 1), width)
            clamped += (h, w) != wanted
            expected = (int(down * (height - h + 1)), int(right * (width - w + 1)), h, w)
            assert view.draw(np.random.default_rng(seed), height, width).box == expected
    assert clamped > 100


def test_single_shot_keeps_the_flips() -> None:
    flips = [[View(single_shot=s).draw(np.random.default_rng(i), 40, 90).flip for i in range(50)] for s in (0, 1)]
    assert flips[0] == flips[1]


# what is refused and what is said


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"rand_augment": "augmix-m3"}, "found 'augmix' in 'augmix-m3': expected rand, then any of -m9"),
        ({"rand_augment": ""}, "found '' in ''"),
        ({"rand_augment": "rand-m9-mtsd0.5"}, "found 'mtsd0.5'"),
        ({"rand_augment": "rand-m9.5"}, "found 'm9.5'"),
        ({"rand_augment": "rand-m9-inc"}, "found 'inc'"),
        ({"rand_augment": "rand-tweight"}, "found 'tweight'"),
        ({"rand_augment": "rand-n99-tweights"}, r"timm cannot make a RandAugment of 'rand-n99-tweights' \(Cannot take"),
        ({"rand_augment": SPEC, "jitter": (0.4, 0.4, 0.2, 0.1)}, "Set jitter: null or rand_augment: null"),
        ({"erase": 1.1}, "less than or equal to 1"),
    ],
)
def test_impossible_fields_are_refused(fields: dict[str, Any], text: str) -> None:
    with pytest.raises(ValidationError, match=text):
        View(**fields)


@pytest.mark.parametrize("spec", ["rand", SPEC, "rand-m7-n3-p0.8-mmax10", "rand-m9-t3a", "rand-mstd101-tweights-inc0"])
def test_what_timm_knows_is_taken(spec: str) -> None:
    assert View(rand_augment=spec).rand_augment == spec


def test_rand_augment_is_for_three_channels() -> None:
    View(rand_augment=SPEC).check(16)
    View(erase=0.25, single_shot=True).check(16, channels=4)
    with pytest.raises(ValueError, match=f"rand_augment '{SPEC}' is for 3 channels, found 4. Set rand_augment: null"):
        View(rand_augment=SPEC).check(16, channels=4)


def test_the_plan_says_so() -> None:
    view = View(scale=(0.08, 1.0), rand_augment=SPEC, erase=0.25, single_shot=True)
    expected = f"area 0.08 to 1 (single-shot), bicubic, flip 0.5, RandAugment {SPEC}, erase 0.25"
    assert describe_view(view, 16).endswith(expected)
    assert describe_view(View(), 16) == "1 crop of 224x224, area 0.2 to 1, bicubic, flip 0.5"
