"""Orders of an epoch: exact permutations of any number, random ones, and the same for any number of processes."""

from __future__ import annotations

import threading
from itertools import chain, pairwise

import numpy as np
import pytest
from pydantic import Field
from support import TINY_PRETRAIN

from unlabeled.data import permutation
from unlabeled.data.archive.listing import IndexFolder
from unlabeled.data.batch.sampler import Ahead, EpochSampler, Order, Position
from unlabeled.data.label.subset import Part
from unlabeled.data.opened import Opened
from unlabeled.data.order import EpochOrder, Rows
from unlabeled.data.orders import keyed, shuffle, window
from unlabeled.data.orders.shuffle import epoch_order
from unlabeled.data.permutation import Permutation
from unlabeled.data.sources.mixture import MixtureSource
from unlabeled.data.sources.shapes import Config as Shapes
from unlabeled.launch.plan import plan
from unlabeled.recipe import parse
from unlabeled.stages.pretrain import STAGE, PretrainRecipe

SHARDS = np.array([0, 7, 7, 20, 21, 40, 64, 90, 100])  # one of them is empty
ORDERS = [shuffle.Config(), keyed.Config(), window.Config(shards=3), window.Config(shards=1), window.Config()]
ORDERS += [window.Config(shards=3, together=4), window.Config(together=200)]


def permuted(n: int, *key: int) -> Permutation:
    return Permutation(n, np.random.Generator(np.random.Philox(np.random.SeedSequence((n, *key)))))


# ---------------------------------------------------------------- the keyed permutation


@pytest.mark.parametrize("n", [*range(1, 70), 99, 100, 101, 1023, 1024, 1025, 4097, 65_537])
def test_every_number_comes_once(n: int) -> None:
    assert np.array_equal(np.sort(permuted(n)(np.arange(n))), np.arange(n))


@pytest.mark.parametrize("n", [10**9, 2**40 + 1, 10**12])
def test_numbers_of_a_huge_permutation_differ_and_do_not_depend_on_what_else_is_asked(n: int) -> None:
    order, positions = permuted(n), np.array([0, 1, 2, n // 3, n - 2, n - 1])
    found = order(positions)
    assert len(set(found.tolist())) == 6 and found.min() >= 0 and found.max() < n
    assert [order(positions[i : i + 1])[0] for i in (5, 0, 3)] == [found[5], found[0], found[3]]
    many = order(np.arange(20_000) + n // 2)
    assert len(np.unique(many)) == len(many)


def excess(counts: np.ndarray, expected: float) -> float:
    """Pearson's chi-square of equal cells, in standard deviations above its mean."""
    freedom = counts.size - 1
    return float((((counts - expected) ** 2 / expected).sum() - freedom) / np.sqrt(2 * freedom))


def numbers_by_position(epochs: int, n: int = 32) -> float:
    """How far the table of (position, number) over epochs is from an even one."""
    table = np.zeros((n, n))
    for epoch in range(epochs):
        table[np.arange(n), permuted(n, epoch)(np.arange(n))] += 1
    return excess(table, epochs / n) * np.sqrt((n * n - 1) / (n - 1) ** 2)  # margins are fixed


def pairs(n: int, apart: int, many: int = 50_000) -> float:
    """How far pairs of the numbers at positions `apart` from each other are from independent ones."""
    positions = np.arange(many, dtype=np.int64) * 2 * apart if apart * 2 * many < n else np.arange(many)
    order = permuted(n, 1)
    one, other = (order(at) * 16 // n for at in (positions, positions + apart))
    return excess(np.bincount(one * 16 + other, minlength=256), many / 256)


def differences(n: int, many: int = 50_000) -> float:
    """How far differences of neighbours are from being equally frequent."""
    order = permuted(n, 2)(np.arange(many + 1) + n // 5)
    return excess(np.bincount((np.diff(order) % n) * 250 // n, minlength=250), many / 250)


def test_it_is_as_even_as_chance() -> None:
    assert abs(numbers_by_position(500)) < 5
    for n in (2**30, 10**9):
        assert max(abs(pairs(n, apart)) for apart in (1, 31_623, 32_768)) < 5
        assert abs(differences(n)) < 5


def orders_of_five(keys: int = 500) -> float:
    """How far the orders of five numbers are from being equally frequent."""
    powers = 5 ** np.arange(5)
    found = [int(permuted(5, key)(np.arange(5)) @ powers) for key in range(keys)]
    counts = np.unique(found, return_counts=True)[1]
    return excess(np.pad(counts, (0, 120 - len(counts))), keys / 120)


def test_so_are_orders_of_few_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    assert abs(orders_of_five()) < 5
    monkeypatch.setattr(permutation, "ROUNDS", 4)
    assert orders_of_five() > 5


def test_too_few_rounds_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(permutation, "ROUNDS", 2)
    assert max(pairs(10**9, apart) for apart in (1, 31_623, 32_768)) > 50
    assert differences(10**9) > 7


def test_keys_are_of_epoch_and_seed() -> None:
    orders = {tuple(keyed.Config().epoch(SHARDS, seed, epoch)(np.arange(100))) for seed in (0, 1) for epoch in (0, 1)}
    assert len(orders) == 4


def test_they_never_change_between_releases() -> None:
    # a run resumed under another version must see the same batches
    shards = np.array([0, 3, 5, 8])
    found = [order.epoch(shards, 0, 0)(np.arange(8)).tolist() for order in (keyed.Config(), window.Config(shards=2))]
    assert found == [[2, 1, 7, 4, 0, 6, 5, 3], [3, 4, 6, 5, 0, 2, 1, 7]]


# ---------------------------------------------------------------- all orders


@pytest.mark.parametrize("order", ORDERS, ids=repr)
def test_an_epoch_is_a_permutation_of_which_any_part_can_be_asked_for(order: EpochOrder) -> None:
    for epoch in range(3):
        whole = order.epoch(SHARDS, 5, epoch)(np.arange(100))
        assert sorted(whole.tolist()) == list(range(100))
        some = np.array([99, 3, 50])
        assert np.array_equal(order.epoch(SHARDS, 5, epoch)(some), whole[some])


@pytest.mark.parametrize("order", ORDERS[1:3], ids=repr)
def test_processes_accumulation_and_restarts_do_not_change_it(order: EpochOrder) -> None:
    def batches(**how: int) -> list[list[Position]]:
        return list(EpochSampler(100, 36, 7, seed=3, base=order, shards=SHARDS, **how))

    whole = batches()
    for world in (2, 3):
        ranks = [batches(rank=rank, world=world) for rank in range(world)]
        assert [list(chain(*parts)) for parts in zip(*ranks, strict=True)] == whole
    assert [a + b for a, b in pairwise(batches(accumulate=2))][::2] == whole
    assert [batches(start=start) for start in (1, 2, 6)] == [whole[start:] for start in (1, 2, 6)]
    epoch = order.epoch(SHARDS, 3, 1)(np.arange(72)).tolist()
    assert [position.index for batch in whole[2:4] for position in batch] == epoch
    assert {position.turn for batch in whole for position in batch} == {0}


def test_a_balanced_epoch_begins_with_the_order_of_the_recipe() -> None:
    labels = np.repeat([0, 1], [60, 40])
    order = Order(labels, repeats=2)
    base = keyed.Config()
    drawn = order.of(3, 0, base, SHARDS)
    assert np.array_equal(drawn[::2], base.epoch(SHARDS, 3, 0)(np.arange(50)))
    assert not np.array_equal(drawn, order.of(3, 0))
    balanced = Order(labels, "balanced").of(3, 0, base, SHARDS)
    assert np.bincount(labels[balanced]).tolist() == [50, 50]


def test_a_window_is_of_few_shards_and_mixes_them() -> None:
    shards = np.arange(0, 10_001, 100)
    order = window.Config(shards=10).epoch(shards, 1, 0)(np.arange(10_000))
    of = order // 100
    for first in range(0, 10_000, 1000):
        inside = of[first : first + 1000]
        assert len(set(inside.tolist())) == 10
        assert excess(np.bincount(np.unique(inside[:500], return_inverse=True)[1]), 50) < 5
    assert sorted(dict.fromkeys(of.tolist())) == list(range(100))
    other = window.Config(shards=10).epoch(shards, 1, 1)(np.arange(1000)) // 100
    assert set(other.tolist()) != set(of[:1000].tolist()), "another epoch has other windows"


def test_pictures_that_come_together_lie_side_by_side() -> None:
    shards = np.arange(0, 10_001, 100)
    order = window.Config(shards=10, together=5).epoch(shards, 1, 0)(np.arange(10_000)).reshape(-1, 5)
    assert (np.diff(order) == 1).all() and (order[:, 0] % 5 == 0).all()
    firsts = order[:200, 0]  # of the first window
    assert np.mean(np.diff(firsts) == 5) < 0.05, "groups are mixed"
    assert len(set((firsts // 100).tolist())) == 10
    odd = window.Config(shards=10, together=7).epoch(shards, 1, 0)(np.arange(1000))
    assert len(set(odd.tolist())) == 1000 and np.mean(np.diff(odd) == 1) > 0.8


def test_windows_are_as_long_as_each_other() -> None:
    windows = window.Windows(np.arange(0, 661, 10), 64, 1, 0, 0).windows
    assert np.diff(windows).tolist() == [330, 330]


def test_what_orders_say_of_their_cost() -> None:
    assert shuffle.Config().describe(np.array([0, 9_999_999])) is None
    said = shuffle.Config().describe(np.array([0, 10**8])) or ""
    assert "about 22 s" in said and "3.2 GB" in said and "data.order.name=keyed" in said
    assert "8 shards in 3 windows of about 33" in (window.Config(shards=3).describe(SHARDS) or "")
    assert "one shard" in (window.Config().describe(np.array([0, 100])) or "")


def test_a_recipe_chooses_it_and_a_plan_tells() -> None:
    said = TINY_PRETRAIN.replace("size: 16}", "size: 16, order: {name: window, shards: 8}}", 1)
    recipe = parse(PretrainRecipe, said)
    job = STAGE.job(recipe, Opened(recipe.data))
    assert job.dataset.base == window.Config(shards=8)
    assert dict(plan(job, [], 1, "cpu"))["order"].startswith("window: these pictures are one shard")
    plain = parse(PretrainRecipe, TINY_PRETRAIN)
    assert "order" not in dict(plan(STAGE.job(plain, Opened(plain.data)), [], 1, "cpu"))


# ---------------------------------------------------------------- shards of sources


class _Shards(MixtureSource):
    shards: Rows = SHARDS  # type: ignore[assignment]


def test_shards_of_parts_and_mixtures() -> None:
    one = _Shards([Shapes(train_size=100, size=16).source("train", IndexFolder())])
    assert Part(one, np.array([3, 6, 7, 22, 99])).shards.tolist() == [0, 2, 2, 3, 3, 4, 4, 4, 5]
    plain = Shapes(train_size=40, size=16).source("train", IndexFolder())
    assert plain.shards.tolist() == [0, 40]
    assert MixtureSource([one, plain]).shards.tolist() == [*SHARDS[:-1], 100, 140]
    assert MixtureSource([one, plain], [1, 1]).shards.tolist() == [*SHARDS[:-1], 100, 140, 180, 200]
    more = Shapes(train_size=150, size=16).source("train", IndexFolder())
    again = [*SHARDS[:-1], 100, 107, 107, 120, 121, 140]  # one of them is not gone through to its end
    assert MixtureSource([one, more], [1, 1]).shards.tolist() == [*again, 150, 300]


# ---------------------------------------------------------------- the next epoch is made while this one runs


class _Watched(shuffle.Config):
    """Notes whether the order of an epoch is made by the program's own thread."""

    made: dict[int, bool] = Field(default_factory=dict)

    def epoch(self, shards: Rows, seed: int, epoch: int) -> shuffle.Numbers:
        assert epoch not in self.made, "once"
        self.made[epoch] = threading.current_thread() is threading.main_thread()
        return super().epoch(shards, seed, epoch)


def test_the_next_order_is_sorted_in_a_thread_and_is_the_same() -> None:
    base = _Watched()
    batches = list(EpochSampler(100, 25, 10, seed=3, base=base, start=2))
    assert batches == list(EpochSampler(100, 25, 10, seed=3))[2:]
    assert sorted(base.made) == [0, 1, 2], "none beyond the last epoch"
    assert [base.made[epoch] for epoch in range(3)] == [True, False, False]
    assert [p.index for p in batches[2]] == epoch_order(100, 3, 1)[:25].tolist()


def test_what_goes_wrong_in_the_thread_is_raised_when_the_epoch_begins() -> None:
    def make(number: int) -> int:
        if number:
            raise MemoryError("no room")
        return number

    ahead = Ahead(make, 3)
    assert ahead(0) == 0
    with pytest.raises(MemoryError, match="no room"):
        ahead(1)
