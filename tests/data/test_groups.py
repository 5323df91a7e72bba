"""Batches of several groups against plain lists, and labels that nothing learns from."""

from __future__ import annotations

from itertools import chain, count
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from unlabeled.data.batch.groups import Groups, parted
from unlabeled.data.batch.loader import Normalize, ViewDataset, sample_rng, to_device
from unlabeled.data.batch.sampler import EpochSampler, Position
from unlabeled.data.batch.samples import Sample, collate
from unlabeled.data.label.hidden import Hidden
from unlabeled.data.label.subset import Part
from unlabeled.data.opened import Opened
from unlabeled.data.orders import keyed, window
from unlabeled.data.orders.shuffle import epoch_order
from unlabeled.data.source import Source
from unlabeled.data.sources.mixture import MixtureSource
from unlabeled.data.sources.shapes import Config as Shapes
from unlabeled.data.view.views import View
from unlabeled.errors import BadSample, UserError

N, STEPS, SEED = 40, 9, 3
# 5 new images, 30 others, and these once more
GROUPS = Groups((np.arange(5), np.arange(5, 35), np.arange(5, 35)), (1, 2, 1))
PERIOD, BATCH = 4, 24


def batches(groups: Groups = GROUPS, **how: Any) -> list[list[Position]]:
    return list(EpochSampler(N, BATCH, STEPS, seed=SEED, groups=groups, **how))


def test_groups_go_round_passes_of_their_own() -> None:
    """Row after row: the next image of the row's group, of an order that is drawn anew when it ends."""
    drawn: list[list[int]] = [[], [], []]
    for step, batch in enumerate(batches()):
        for row, position in enumerate(batch):
            group = [0, 1, 1, 2][row % PERIOD]
            rows, seen = GROUPS.rows[group], drawn[group]
            assert position[2:] == (step, row, BATCH, group) and position.epoch == len(seen) // len(rows)
            assert position.index in rows
            seen.append(position.index)
    for seen, rows in zip(drawn, GROUPS.rows, strict=True):
        passes = [seen[at : at + len(rows)] for at in range(0, len(seen) - len(rows) + 1, len(rows))]
        assert len(passes) >= 1 and all(sorted(one) == rows.tolist() for one in passes)
        assert len({tuple(one) for one in passes}) == len(passes)
    assert drawn[1][:30] != drawn[2][:30], "the same images are drawn twice, not in the same order"


def test_the_first_group_comes_as_its_images_alone_would() -> None:
    labelled = [p.index for batch in batches() for p in batch if p.turn == 0]
    alone = chain.from_iterable(epoch_order(5, SEED, epoch).tolist() for epoch in count())
    assert labelled == [next(alone) for _ in labelled]


@pytest.mark.parametrize(("world", "accumulate"), [(1, 2), (2, 1), (3, 2), (2, 3), (6, 1)])
def test_processes_and_micro_batches_hold_the_ratio_and_make_up_the_batches(world: int, accumulate: int) -> None:
    ranks = [batches(rank=rank, world=world, accumulate=accumulate) for rank in range(world)]
    for step, whole in enumerate(batches()):
        mine = [rank[step * accumulate : (step + 1) * accumulate] for rank in ranks]
        assert list(chain.from_iterable(chain.from_iterable(mine))) == whole
        for micro in chain.from_iterable(mine):
            periods = len(micro) // PERIOD
            assert [p.turn for p in micro] == [0, 1, 1, 2] * periods and periods * world * accumulate == 6


@pytest.mark.parametrize("start", range(STEPS + 1))
def test_a_start_is_a_skip(start: int) -> None:
    assert batches(start=start, rank=1, world=2) == batches(rank=1, world=2)[start:]


@pytest.mark.parametrize("base", [keyed.Config(), window.Config(shards=2)])
def test_other_orders_of_a_pass(base: keyed.Config | window.Config) -> None:
    shards = np.arange(0, N + 1, 8)
    found = list(EpochSampler(N, BATCH, STEPS, seed=SEED, groups=GROUPS, base=base, shards=shards))
    for group in (0, 1):
        seen = [p.index for batch in found for p in batch if p.turn == group]
        size = len(GROUPS.rows[group])
        assert sorted(seen[:size]) == GROUPS.rows[group].tolist() and seen != sorted(seen)
    assert found[4:] == list(EpochSampler(N, BATCH, STEPS, seed=SEED, start=4, groups=GROUPS, base=base, shards=shards))


@pytest.mark.parametrize(("world", "accumulate", "found"), [(4, 1, 6), (1, 12, 2), (8, 1, 3)])
def test_a_micro_batch_without_the_ratio_is_refused(world: int, accumulate: int, found: int) -> None:
    text = f"pictures 1 : 2 : 1, so each process needs a multiple of 4 at a time, found {found}.*multiple of 4 x proc"
    with pytest.raises(UserError, match=text):
        batches(world=world, accumulate=accumulate)


def test_an_empty_group_is_refused() -> None:
    with pytest.raises(UserError, match="group 1 of the batches has no picture"):
        Groups((np.arange(3), np.arange(0)), (1, 1))


def test_rows_are_parted_by_group() -> None:
    rows = torch.tensor([p.turn * 100 + p.row for p in batches()[0]])
    parts = parted(rows, GROUPS.shares)
    assert parts[0].tolist() == [0, 4, 8, 12, 16, 20]
    assert parts[1].tolist() == [100 + row for row in range(BATCH) if row % 4 in (1, 2)]
    assert parts[2].tolist() == [203, 207, 211, 215, 219, 223]
    assert parted(torch.zeros(24, 3, 2), GROUPS.shares)[1].shape == (12, 3, 2)


# ---------------------------------------------------------------- labels that are hidden


@pytest.fixture(scope="module")
def train() -> Source:
    return Opened(Shapes(train_size=30, val_size=5, size=16)).train


def joined(train: Source, labelled: int = 6) -> tuple[MixtureSource, Groups]:
    source = MixtureSource([Part(train, np.arange(labelled)), Hidden(train, train.classes)], order=train.classes)
    return source, Groups((np.arange(labelled), np.arange(labelled, labelled + len(train))), (1, 3), (1, 2))


def test_hidden_labels_are_for_measures_alone(train: Source) -> None:
    source, groups = joined(train)
    assert len(source) == 36 and source.classes == train.classes
    assert source.labels.tolist() == [*train.labels[:6], *[-1] * 30] == [source.label(i) for i in range(36)]
    assert [source.truth(i) for i in range(36)] == [None] * 6 + train.labels.tolist()
    dataset = ViewDataset(source, [View(size=8), View(size=8, flip=0)], 4, 0, groups=groups)
    raw = collate([dataset[p] for p in next(iter(EpochSampler(36, 8, 1, groups=groups)))])
    batch = to_device(raw, torch.device("cpu"), Normalize((0.5,) * 3, (0.5,) * 3, torch.device("cpu")))
    assert batch.truth is not None
    expected = [-1 if i < 6 else int(train.labels[i - 6]) for i in batch.index.tolist()]
    assert batch.truth.tolist() == expected and batch.labels[1::4].tolist() == [-1, -1]
    # a source that keeps none back has none, whether labelled or not
    plain = ViewDataset(train, [View(size=8)], 4, 0)
    assert collate([plain[Position(0, 0)]]).truth is None
    assert Hidden(train, ("another",)).truth(0) is None


def test_hidden_labels_go_by_their_names(train: Source) -> None:
    others = train.classes[::-2]
    found = [Hidden(train, others).truth(i) for i in range(30)]
    names = [train.classes[label] for label in train.labels]
    assert found == [others.index(name) if name in others else -1 for name in names]


@pytest.mark.parametrize("uncut", [False, True])
def test_views_that_a_group_does_not_have_are_blank(train: Source, uncut: bool) -> None:
    source, groups = joined(train)
    strong = View(size=8, erase=1.0, jitter=(0.4, 0.4, 0.4, 0.1), jitter_p=1.0, blur=1.0, count=2)
    dataset = ViewDataset(source, [View(size=8), strong], 4, 0, uncut=uncut, groups=groups)
    batch = finished([dataset[p] for p in next(iter(EpochSampler(36, 8, 1, groups=groups)))])
    alone = ViewDataset(source, [View(size=8)], 4, 0, uncut=uncut)
    single = finished([alone[p] for p in next(iter(EpochSampler(36, 8, 1, groups=groups)))])
    # whoever has the view or not, the one before it is the same
    assert torch.equal(batch[0], single[0])
    labelled, others = parted(batch[1].transpose(0, 1), (1, 3))
    assert others.std((2, 3, 4)).min() > 0.05
    if not uncut:
        assert (labelled == labelled[0, 0, 0, 0, 0]).all()


def finished(samples: list[Sample]) -> list[Tensor]:
    cpu = torch.device("cpu")
    batch = to_device(collate(samples), cpu, Normalize((0.5,) * 3, (0.5,) * 3, cpu))
    return [view.pixels for view in batch.views]


def test_an_image_of_two_groups_is_cropped_anew(train: Source) -> None:
    draws = {tuple(sample_rng(0, 0, 5, group).random(2)) for group in range(3)}
    assert len(draws) == 3
    dataset = ViewDataset(train, [View(size=8)], 4, 0)
    first, again = (dataset[Position(0, 5, turn=group)].crops[0].pixels for group in (1, 2))
    assert not torch.equal(first, again)


def test_a_bad_image_is_replaced_by_one_of_its_own_part(train: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    source, _ = joined(train)
    whole, last = type(source).image, {5, 35}

    def image(self: MixtureSource, i: int) -> Tensor:
        if i in last:
            raise BadSample(str(i), "bad")
        return whole(self, i)

    monkeypatch.setattr(MixtureSource, "image", image)
    dataset = ViewDataset(source, [View(size=8)], 4, 0)
    found = [dataset[Position(0, i)] for i in sorted(last)]
    assert [sample.index for sample in found] == [0, 6]
    assert found[0].label == train.labels[0] and found[1].label == -1
    assert [source.stand_in(i) for i in (0, 4, 5, 6, 34, 35)] == [1, 5, 0, 7, 35, 6]
