"""Block masks: how many are hidden, how they are shared out over a batch, and what is refused."""

from __future__ import annotations

import math
from itertools import chain
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from unlabeled.data import masking
from unlabeled.data.batch.loader import ViewDataset, make_loader
from unlabeled.data.batch.sampler import EpochSampler
from unlabeled.data.batch.samples import RawBatch, collate
from unlabeled.data.mask import Mask, Place
from unlabeled.data.masking import _add_block
from unlabeled.data.masks import stratified_block
from unlabeled.data.masks.block import Config as BlockMask
from unlabeled.data.masks.fixed_block import Config as FixedBlockMask
from unlabeled.data.masks.inverse import Config as InverseMask
from unlabeled.data.masks.random import Config as RandomMask
from unlabeled.data.masks.stratified_block import Config as StratifiedBlockMask
from unlabeled.data.source import Source
from unlabeled.data.view.views import View
from unlabeled.pretrain.methods.mae import Config as MAE

GRID = (14, 14)


def hidden_of(mask: Mask, n: int, grid: tuple[int, int] = GRID) -> Tensor:
    rng = np.random.default_rng(0)
    return torch.stack([mask.draw(rng, grid, 16).hidden for _ in range(n)])


# every crop another number


def test_a_ratio_is_picked_for_every_crop() -> None:
    counts = hidden_of(BlockMask(ratios=(0.0, 0.5), variances=(0.0, 0.1), shape="random"), 1000).sum(1)
    masked = counts[counts > 0]
    assert abs(len(masked) - 500) < 4.5 * math.sqrt(250)
    # uniform in [.4, .6], rounded down
    assert masked.min() == int(0.4 * 196) and masked.max() == int(0.6 * 196)
    assert abs(masked.double().mean() - (0.5 * 196 - 0.5)) < 4.5 * (0.2 * 196 / math.sqrt(12)) / math.sqrt(500)


@pytest.mark.parametrize("grid", [(14, 14), (6, 6), (4, 9), (2, 2)])
def test_blocks_never_hide_more_than_asked(grid: tuple[int, int]) -> None:
    counts = hidden_of(BlockMask(ratios=(0.3,), variances=(0.0,)), 200, grid).sum(1)
    assert counts.max() <= 0.3 * grid[0] * grid[1] and counts.double().mean() > 0.6 * 0.3 * grid[0] * grid[1]


def test_a_block_is_a_rectangle_that_spans_neither_side() -> None:
    rng = np.random.default_rng(0)
    for _ in range(500):
        hidden = np.zeros((4, 6), dtype=bool)
        added = _add_block(rng, hidden, 2, 14, (0.3, 1 / 0.3))
        height, width = hidden.any(1).sum(), hidden.any(0).sum()
        assert added == hidden.sum() == height * width <= 14 and height < 4 and width < 6


@pytest.mark.parametrize("kind", [BlockMask, StratifiedBlockMask, FixedBlockMask])
@pytest.mark.parametrize("aspect", [(0.1, 0.2), (1.0, 1.0), (4.0, 8.0)])
def test_blocks_have_the_aspect_asked_for(
    kind: Any, aspect: tuple[float, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of blocks that all lie free: sides are rounded, so within half a patch of the exact ones."""
    shapes: list[tuple[int, int]] = []

    def alone(rng: np.random.Generator, hidden: np.ndarray, smallest: float, room: float, aspect: Any) -> int:
        free = np.zeros_like(hidden)
        added = _add_block(rng, free, smallest, room, aspect)
        if added:
            shapes.append((int(free.any(1).sum()), int(free.any(0).sum())))
        hidden |= free
        return added

    monkeypatch.setattr(masking, "_add_block", alone)
    share = {"share": 1.0} if kind is StratifiedBlockMask else {}
    hidden_of(kind(aspect=aspect, **share), 40, (40, 40))
    assert len(shapes) > 20
    for height, width in shapes:
        assert (height - 0.5) / (width + 0.5) <= aspect[1] and (height + 0.5) / (width - 0.5) >= aspect[0]
    assert len(set(shapes)) > 3


@pytest.mark.parametrize("aspect", [(2.0, 1.0), (0.0, 1.0), (-1.0, 1.0), (0.3, math.inf), (0.3,)])
def test_aspects_that_are_none_are_refused(aspect: Any) -> None:
    with pytest.raises(ValidationError, match="aspect"):
        BlockMask(aspect=aspect)


def test_no_block_adds_more_than_the_largest(monkeypatch: pytest.MonkeyPatch) -> None:
    added: list[int] = []
    monkeypatch.setattr(masking, "_add_block", lambda *arguments: added.append(_add_block(*arguments)) or added[-1])
    hidden_of(StratifiedBlockMask(share=1.0, ratio=(1.0, 1.0)), 20)
    assert 49 < max(added) <= 98


def test_masks_of_unequal_crops_have_no_indices() -> None:
    view = View(size=32, count=4, mask=BlockMask())
    mask: Any = view.sample(torch.zeros(3, 40, 40, dtype=torch.uint8), np.random.default_rng(0), patch=4).mask
    assert mask.hidden.shape == (4, 64) and mask.keep is None and mask.drop is None
    assert not BlockMask.equal_counts and not StratifiedBlockMask.equal_counts


# every crop the same number


@pytest.mark.parametrize("mask", [FixedBlockMask(ratio=0.4), InverseMask(mask=FixedBlockMask(ratio=0.6))])
def test_a_fixed_share_is_hidden(mask: Mask) -> None:
    rng = np.random.default_rng(0)
    for _ in range(100):
        drawn = mask.draw(rng, GRID, 16)
        keep, drop = drawn.indices()
        # 196 (1 - .4) rounded down stay visible; for the inverse, 196 (1 - .6) rounded down are hidden
        assert len(drop) == (196 - 117 if isinstance(mask, FixedBlockMask) else 78)
        assert torch.cat([keep, drop]).sort().values.tolist() == list(range(196))
        assert drawn.hidden[drop].all() and not drawn.hidden[keep].any()
    assert mask.equal_counts


def test_a_fixed_share_comes_in_blocks() -> None:
    hidden = hidden_of(FixedBlockMask(ratio=0.4), 200).view(-1, *GRID).double()
    pairs = (hidden[:, 1:] * hidden[:, :-1]).mean()
    # independent patches would give .4 squared
    assert pairs > 0.3


def test_a_fixed_shares_drop_is_in_random_order() -> None:
    rng, mask = np.random.default_rng(0), FixedBlockMask(ratio=0.5)
    drops = torch.stack([mask.draw(rng, (6, 6), 16).indices()[1] for _ in range(1000)]).double()
    first, last = drops[:, :9].mean(), drops[:, 9:].mean()
    assert abs(first - last) < 0.5 and drops.diff(dim=1).lt(0).double().mean() > 0.4


def test_an_inverse_keeps_what_the_other_hides() -> None:
    inner = RandomMask(ratio=0.75)
    one = inner.draw(np.random.default_rng(3), GRID, 16)
    other = InverseMask(mask=inner).draw(np.random.default_rng(3), GRID, 16)
    assert torch.equal(other.hidden, ~one.hidden)
    for a, b in zip(other.indices(), reversed(one.indices()), strict=True):
        assert torch.equal(a, b)


# shared out over a global batch


class Flat(Source):
    """A source of flat pictures."""

    classes: tuple[str, ...] = ()

    def __init__(self, n: int) -> None:
        self.labels = np.full(n, -1)

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, i: int) -> Tensor:
        return torch.full((3, 64, 64), i, dtype=torch.uint8)

    def key(self, i: int) -> str:
        return str(i)

    def fingerprint(self) -> str:
        return "flat"


BATCH, STEPS = 12, 4
STRATIFIED = StratifiedBlockMask()
VIEWS = (View(size=64, mask=STRATIFIED), View(size=64, mask=STRATIFIED), View(size=32, count=2))
ONE_VIEW = (View(size=64, count=2, mask=STRATIFIED),)


def global_batches(world: int, accumulate: int, workers: int = 0, views: tuple[View, ...] = VIEWS) -> list[Tensor]:
    """Hidden patches of each step's global batch, [BATCH, 2 crops, 256]."""
    ranks = []
    for rank in range(world):
        sampler = EpochSampler(30, BATCH, STEPS, seed=5, rank=rank, world=world, accumulate=accumulate)
        dataset = ViewDataset(Flat(30), views, patch=4, seed=5)
        loader = make_loader(dataset, sampler, workers=workers, device=torch.device("cpu"), timeout=60, collate=collate)
        ranks.append([hidden_in(raw) for raw in loader])
    steps = [[rank[step * accumulate : (step + 1) * accumulate] for rank in ranks] for step in range(STEPS)]
    return [torch.cat(list(chain.from_iterable(step))) for step in steps]


def hidden_in(raw: RawBatch) -> Tensor:
    return torch.cat([crops.mask.hidden for crops in raw.crops if crops.mask is not None], dim=1)


@pytest.mark.parametrize("views", [VIEWS, ONE_VIEW], ids=["two views", "one view of two crops"])
def test_half_of_the_crops_are_masked_and_their_ratios_are_spread_evenly(views: tuple[View, ...]) -> None:
    for hidden in global_batches(1, 1, views=views):
        counts = hidden.sum(-1).flatten().sort().values
        assert hidden.shape == (BATCH, 2, 256) and (counts[:BATCH] == 0).all() and (counts[BATCH:] > 0).all()
        edges = torch.linspace(0.1, 0.5, BATCH + 1)
        # blocks may fall short by a few patches, and counts are rounded down
        assert (counts[BATCH:] <= edges[1:] * 256).all() and (counts[BATCH:] >= edges[:-1] * 256 - 4).all()


def test_which_crops_are_masked_changes_from_step_to_step() -> None:
    masked = torch.stack([hidden.any(-1) for hidden in global_batches(1, 1)])
    assert len(masked.flatten(1).unique(dim=0)) == STEPS
    # both crops of a picture are drawn apart
    assert not torch.equal(masked[..., 0], masked[..., 1])


@pytest.mark.parametrize(("world", "accumulate", "workers"), [(1, 1, 2), (2, 1, 0), (1, 3, 0), (2, 3, 2)])
def test_masks_depend_on_neither_workers_processes_nor_accumulation(world: int, accumulate: int, workers: int) -> None:
    for found, expected in zip(global_batches(world, accumulate, workers), global_batches(1, 1), strict=True):
        assert torch.equal(found, expected)


def test_every_crop_of_a_batch_has_its_own_slot() -> None:
    places = [Place(seed=1, step=3, row=row, batch=6, crop=0, crops=2) for row in range(6)]
    slots = [place.slot() for place in places] + [place.after(1).slot() for place in places]
    assert sorted(slots) == list(range(12)) != slots


# what is refused


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"name": "block", "ratios": [0.3], "variances": [0.4]}, r"ratio 0.3 with variance 0.4 leaves \[0, 1\]"),
        ({"name": "block", "ratios": [0.3]}, "expected as many variances as ratios, found 2 and 1"),
        ({"name": "stratified_block", "ratio": [0.5, 0.1]}, r"expected \[low, high\], found \[0.5, 0.1\]"),
        ({"name": "stratified_block", "share": 0.0}, "greater than 0"),
        (
            {"name": "inverse", "mask": {"name": "block"}},
            "expected a mask that hides as many patches in every crop, found block",
        ),
        ({"name": "blocks"}, "'block', 'fixed_block', 'inverse', 'multi_block', 'random', 'stratified_block'"),
    ],
)
def test_impossible_masks_are_refused(fields: dict[str, Any], text: str) -> None:
    with pytest.raises(ValidationError, match=text):
        View.model_validate({"mask": fields})


@pytest.mark.parametrize(
    ("mask", "size", "text"),
    [
        (
            BlockMask(),
            (16, 224),
            "needs at least 2x2 patches, found 1x14 in a crop of 16x224 pixels with patch size 16",
        ),
        (StratifiedBlockMask(), (16, 16), "needs at least 2x2 patches, found 1x1"),
        (FixedBlockMask(), (64, 16), "needs at least 2x2 patches, found 4x1"),
        (FixedBlockMask(ratio=0.9), (32, 32), "hides every unit of a 32x32 crop, which has 4"),
        (InverseMask(mask=RandomMask(unit=24)), (48, 48), "mask unit of 24 pixels is not a multiple"),
    ],
)
def test_masks_that_do_not_fit_the_crop_are_refused(mask: Mask, size: tuple[int, int], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        View(size=size, mask=mask).check(16)


def test_mae_refuses_a_mask_of_unequal_crops() -> None:
    with pytest.raises(ValidationError, match=r"found mask block\. Use fixed_block, inverse, multi_block or random"):
        MAE(view=View(mask=BlockMask()))


def test_dinov2s_largest_block_is_half_the_rows_rounded_down(monkeypatch: pytest.MonkeyPatch) -> None:
    """Officially 0.5 * size // patch * size // patch: 98 of 14x14 patches, 105 of 15x15, 666 of 37x37."""
    seen: list[float] = []
    monkeypatch.setattr(stratified_block, "hide_blocks", lambda *given: (seen.append(given[4]), np.zeros(1, bool))[1])
    for side in (14, 15, 37):
        StratifiedBlockMask(share=1.0).draw(np.random.default_rng(0), (side, side), 16)
        assert seen[-1] == 0.5 * (side * 16) // 16 * (side * 16) // 16
