"""Mixup and CutMix of neighbours: timm's numbers on the same draws, and the same pairs however a batch is cut up."""

from __future__ import annotations

from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from timm.data import Mixup
from torch import Tensor

from unlabeled.data.batch.loader import Normalize, ViewDataset, to_device
from unlabeled.data.batch.sampler import Position
from unlabeled.data.batch.samples import collate
from unlabeled.data.opened import Opened
from unlabeled.data.sources.shapes import Config as Shapes
from unlabeled.data.view.mixing import Mixing, stack
from unlabeled.data.view.views import View
from unlabeled.errors import UserError
from unlabeled.nn.mixing import Mix, mix_images, mix_targets

CLASSES, SIDE, STEPS = 4, 12, 30
GENERATOR = np.random.Generator


def pair(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, 3, SIDE, SIDE, generator=generator), torch.tensor([1, 3])


def drawn(mixing: Mixing, step: int, rows: range = range(2), seed: int = 0, epoch: int = 0) -> Mix:
    mix = stack([mixing.draw(Position(epoch, 0, step, row, 8), (SIDE, SIDE), seed) for row in rows])
    assert mix is not None
    return mix


def timms(images: Tensor, labels: Tensor, share: float, centre: tuple[int, int] | None) -> tuple[Tensor, Tensor]:
    """timm's own mix of a pair, where its reversed batch is the neighbour, with these draws."""
    cut = centre is not None
    own = Mixup(0.0 if cut else 1.0, 1.0 if cut else 0.0, prob=1.0, label_smoothing=0.0, num_classes=CLASSES)
    with mock.patch("numpy.random.beta", return_value=share), mock.patch("numpy.random.randint", side_effect=centre):
        return own(images.clone(), labels)


class Spy:
    """A generator that notes what it draws."""

    def __init__(self) -> None:
        self.share, self.centre = 1.0, []

    def watching(self, bits: Any) -> Spy:
        self.rng = GENERATOR(bits)
        return self

    def random(self) -> float:
        return self.rng.random()

    def beta(self, a: float, b: float) -> float:
        self.share = self.rng.beta(a, b)
        return self.share

    def integers(self, high: int) -> int:
        self.centre.append(int(self.rng.integers(high)))
        return self.centre[-1]


@pytest.mark.parametrize("how", [{"mixup": 0.8}, {"cutmix": 1.0}])
def test_timms_mix_on_the_same_draws(how: dict[str, Any]) -> None:
    images, labels = pair()
    for step in range(STEPS):
        spy = Spy()
        with mock.patch("numpy.random.Generator", spy.watching):
            share, box = Mixing(**how).draw(Position(0, 0, step, 0, 8), (SIDE, SIDE), 0)
        mix = Mix(torch.tensor([share] * 2), torch.tensor([box] * 2))
        expected, targets = timms(images, labels, spy.share, tuple(spy.centre) if spy.centre else None)
        torch.testing.assert_close(mix_images(images, mix), expected, rtol=1e-5, atol=1e-6)
        one_hot = torch.nn.functional.one_hot(labels, CLASSES).float()
        torch.testing.assert_close(mix_targets(one_hot, mix), targets, rtol=1e-5, atol=1e-6)


def test_every_pair_draws_for_itself_and_again_at_every_step() -> None:
    mix = drawn(Mixing(mixup=1.0), 3, range(8))
    assert torch.equal(mix.share[0::2], mix.share[1::2]) and len(mix.share.unique()) == 4
    assert torch.equal(drawn(Mixing(mixup=1.0), 3, range(4, 8)).share, mix.share[4:])
    assert not torch.equal(drawn(Mixing(mixup=1.0), 4, range(8)).share, mix.share)
    assert not torch.equal(drawn(Mixing(mixup=1.0), 3, range(8), seed=1).share, mix.share)


def test_probability_switch_and_the_epoch_when_it_ends() -> None:
    both = [drawn(Mixing(mixup=0.5, cutmix=5.0, prob=0.6, switch=0.3), step) for step in range(2000)]
    mixed = [mix for mix in both if mix.share[0] < 1 or mix.box.any()]
    cut = [mix for mix in mixed if mix.box.any()]
    assert len(mixed) / len(both) == pytest.approx(0.6, abs=0.04)
    assert len(cut) / len(mixed) == pytest.approx(0.3, abs=0.04)
    # Beta(a, a) has a variance of 1 / (8 a + 4)
    shares = [mix.share[0].item() for mix in mixed if not mix.box.any()]
    assert np.var(shares) == pytest.approx(1 / 8, abs=0.015)
    ends = Mixing(mixup=1.0, off_epoch=5)
    assert all((drawn(ends, step, epoch=4).share < 1).all() for step in range(STEPS))
    assert all((drawn(ends, step, epoch=5).share == 1).all() for step in range(STEPS))


def test_a_batch_mixes_alike_in_one_piece_or_two() -> None:
    source = Opened(Shapes(train_size=16, size=SIDE)).train
    dataset = ViewDataset(source, [View(size=SIDE)], 4, seed=0, mixing=Mixing(mixup=1.0, cutmix=1.0))
    positions = [Position(0, row, 2, row, 8) for row in range(8)]
    normalize = Normalize((0.5,) * 3, (0.5,) * 3, torch.device("cpu"))

    def mixed(some: list[Position]) -> Tensor:
        batch = to_device(collate([dataset[p] for p in some]), torch.device("cpu"), normalize)
        assert batch.mix is not None
        return mix_images(batch.views[0].pixels[0], batch.mix)

    whole = mixed(positions)
    assert torch.equal(torch.cat([mixed(positions[:4]), mixed(positions[4:])]), whole)
    plain = to_device(collate([dataset[p] for p in positions]), torch.device("cpu"), normalize).views[0].pixels[0]
    assert not torch.equal(plain, whole)


def test_pairs_must_not_be_parted() -> None:
    Mixing(mixup=0.8).check(4)
    Mixing().check(3)
    Mixing(mixup=0.8, cutmix=1.0, prob=0.0).check(3)
    for mixing in (Mixing(mixup=0.8), Mixing(cutmix=1.0)):
        with pytest.raises(UserError, match="even number of pictures at a time, found 3"):
            mixing.check(3)


def test_together_all_pairs_of_a_batch_are_mixed_alike() -> None:
    one = drawn(Mixing(mixup=1.0, cutmix=1.0, together=True), 3, range(8))
    assert len(one.share.unique()) == 1 and len(one.box.unique(dim=0)) == 1
    shares = [drawn(Mixing(mixup=1.0, together=True), step).share[0].item() for step in range(STEPS)]
    assert len(set(shares)) == STEPS and 0.3 < sum(shares) / STEPS < 0.7
