"""The order of samples against plain lists."""

from __future__ import annotations

from collections import Counter
from itertools import chain
from typing import Literal

import numpy as np
import pytest
import torch

from unlabeled.data.batch.loader import ViewDataset, sample_rng
from unlabeled.data.batch.sampler import EpochSampler, Order, Position
from unlabeled.data.opened import Opened
from unlabeled.data.orders.shuffle import epoch_order
from unlabeled.data.sources.shapes import Config as Shapes
from unlabeled.data.view.views import View
from unlabeled.errors import UserError

N, BATCH, STEPS, SEED = 100, 36, 7, 3
SPLITS = [(world, accumulate) for world in (1, 2, 3) for accumulate in (1, 2, 3)]


def reference() -> list[list[Position]]:
    """Global batches, epoch by epoch; what does not fill a batch is dropped."""
    batches = []
    for epoch in range(STEPS):
        order = [Position(epoch, index) for index in epoch_order(N, SEED, epoch).tolist()]
        while len(order) >= BATCH:
            batches.append(order[:BATCH])
            order = order[BATCH:]
    numbered = enumerate(batches[:STEPS])
    return [[Position(p.epoch, p.index, step, row, BATCH) for row, p in enumerate(batch)] for step, batch in numbered]


def micro_batches(rank: int, world: int, accumulate: int, start: int = 0) -> list[list[Position]]:
    sampler = EpochSampler(N, BATCH, STEPS, seed=SEED, start=start, rank=rank, world=world, accumulate=accumulate)
    batches = list(sampler)
    assert len(batches) == len(sampler)
    return batches


@pytest.mark.parametrize("epoch", [0, 1, 100])
def test_an_epoch_is_a_permutation(epoch: int) -> None:
    order = epoch_order(N, SEED, epoch).tolist()
    assert sorted(order) == list(range(N))
    assert order not in (epoch_order(N, SEED, epoch + 1).tolist(), epoch_order(N, SEED + 1, epoch).tolist())


def test_the_order_never_changes_between_releases() -> None:
    # a run resumed under another version must see the same batches
    assert epoch_order(8, 0, 0).tolist() == [5, 6, 3, 7, 4, 1, 2, 0]


@pytest.mark.parametrize(("world", "accumulate"), SPLITS)
def test_ranks_and_micro_batches_make_up_the_global_batches(world: int, accumulate: int) -> None:
    ranks = [micro_batches(rank, world, accumulate) for rank in range(world)]
    for step, expected in enumerate(reference()):
        mine = [rank[step * accumulate : (step + 1) * accumulate] for rank in ranks]
        assert list(chain.from_iterable(chain.from_iterable(mine))) == expected
        assert {len(micro) for rank in mine for micro in rank} == {BATCH // (world * accumulate)}


@pytest.mark.parametrize("start", range(STEPS + 1))
@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_start_is_a_skip(start: int, accumulate: int) -> None:
    whole = micro_batches(1, 2, accumulate)
    assert micro_batches(1, 2, accumulate, start) == whole[start * accumulate :]


def test_the_tail_of_an_epoch_is_dropped() -> None:
    seen = [position for batch in micro_batches(0, 1, 1) for position in batch if position.epoch == 0]
    assert len(seen) == len(set(seen)) == 2 * BATCH


def test_uneven_data_gives_equal_steps() -> None:
    ranks = [list(EpochSampler(7, 2, 6, rank=rank, world=2)) for rank in range(2)]
    assert [len(rank) for rank in ranks] == [6, 6]
    first_epoch = [position.index for rank in ranks for batch in rank[:3] for position in batch]
    assert sorted(first_epoch) == sorted(epoch_order(7, 0, 0)[:6].tolist())


@pytest.mark.parametrize(
    ("n", "batch", "world", "accumulate", "text"),
    [
        (10, 16, 1, 1, "batch of 16 is larger than the data: found 10 pictures.*at most 10"),
        (0, 1, 1, 1, "batch of 1 is larger than the data: found 0 pictures"),
        (
            100,
            16,
            3,
            1,
            "16 does not divide among 3 processes x 1 accumulation steps. Use a multiple of 3, such as 15",
        ),
        (
            100,
            2,
            2,
            3,
            "2 does not divide among 2 processes x 3 accumulation steps. Use a multiple of 6, such as 6",
        ),
    ],
)
def test_impossible_batches_are_refused(n: int, batch: int, world: int, accumulate: int, text: str) -> None:
    with pytest.raises(UserError, match=text):
        EpochSampler(n, batch, 1, world=world, accumulate=accumulate)


# 60, 25, 10, 4 and 1 samples of five classes, in no order
UNEVEN = np.random.default_rng(0).permutation(np.repeat(np.arange(5), [60, 25, 10, 4, 1]))


def test_a_balanced_epoch_draws_classes_evenly_and_samples_of_a_class_too() -> None:
    for epoch in range(3):
        order = Order(UNEVEN, "balanced").of(7, epoch)
        assert np.bincount(UNEVEN[order]).tolist() == [20] * 5
        times = np.bincount(order, minlength=100)
        for c in range(5):
            of_class = times[c == UNEVEN]
            assert of_class.max() - of_class.min() <= 1 and of_class.sum() == 20
    one, other = (Order(UNEVEN, "balanced").of(7, epoch) for epoch in (0, 1))
    assert UNEVEN[one].tolist() != UNEVEN[other].tolist()
    assert set(one[UNEVEN[one] == 0]) != set(other[UNEVEN[other] == 0]), "of many samples others in each epoch"
    # spread over the epoch, not class after class
    assert all(np.bincount(UNEVEN[chunk], minlength=5).max() < 15 for chunk in np.split(order, 4))


def test_a_square_root_epoch() -> None:
    order = Order(UNEVEN, "sqrt").of(7, 0)
    roots = np.sqrt([60, 25, 10, 4, 1])
    assert np.abs(np.bincount(UNEVEN[order]) - 100 * roots / roots.sum()).max() < 1
    assert len(order) == 100


def test_a_sample_that_comes_again_is_cropped_anew() -> None:
    (batch,) = EpochSampler(100, 100, 1, seed=3, order=Order(UNEVEN, "balanced"))
    seen: dict[int, int] = {}
    for position in batch:
        assert position.turn == seen.get(position.index, 0)
        seen[position.index] = position.turn + 1
    assert max(seen.values()) == 20  # the only sample of its class
    draws = {tuple(sample_rng(0, 0, 5, turn).random(2)) for turn in range(4)}
    assert len(draws) == 4
    dataset = ViewDataset(Opened(Shapes(train_size=9, size=16)).train, [View(size=8)], 4, seed=0)
    first, again = (dataset[Position(0, 5, turn=turn)].crops[0].pixels for turn in (0, 1))
    assert not torch.equal(first, again)


def test_balance_begins_at_its_epoch() -> None:
    order = Order(UNEVEN, "balanced", since=2)
    assert all(np.array_equal(order.of(7, epoch), epoch_order(100, 7, epoch)) for epoch in (0, 1))
    assert np.bincount(UNEVEN[order.of(7, 2)]).tolist() == [20] * 5


def test_ranks_share_a_balanced_epoch_and_it_resumes_anywhere() -> None:
    order = Order(UNEVEN, "balanced")

    def batches(**how: int) -> list[list[Position]]:
        return list(EpochSampler(100, 20, 10, seed=3, order=order, **how))

    whole = batches()
    assert [p.index for batch in whole[5:] for p in batch] == order.of(3, 1).tolist()
    halves = batches(rank=0, world=2), batches(rank=1, world=2)
    assert [a + b for a, b in zip(*halves, strict=True)] == whole
    assert batches(start=7) == whole[7:]


@pytest.mark.parametrize("balance", ["none", "balanced"])
@pytest.mark.parametrize("repeats", [2, 3])
def test_a_batch_of_repeated_samples(balance: Literal["none", "balanced"], repeats: int) -> None:
    order = Order(np.arange(200) % 5, balance, repeats=repeats)
    epoch = list(EpochSampler(200, 24, 8, seed=3, order=order))
    seen = [(position.index, position.turn) for batch in epoch for position in batch]
    assert len(set(seen)) == 192  # no crop comes twice
    times = Counter(Counter(index for index, _ in seen).values())
    assert times[repeats] >= 192 // repeats - 1 and max(times) == repeats
    for batch in epoch:
        assert 24 // repeats <= len({position.index for position in batch}) <= 24 // repeats + 1
        assert all(one.index != other.index for one, other in zip(batch[::2], batch[1::2], strict=True))
    halves = [list(EpochSampler(200, 24, 8, seed=3, order=order, rank=rank, world=2)) for rank in range(2)]
    assert [a + b for a, b in zip(*halves, strict=True)] == epoch
    assert list(EpochSampler(200, 24, 8, seed=3, start=5, order=order)) == epoch[5:]
    assert {index for index, _ in seen} != set(Order(order.labels, balance, repeats=repeats).of(3, 1).tolist())
