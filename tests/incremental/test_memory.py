"""How many images are remembered, and which: counted class by class."""

from __future__ import annotations

import pytest
import torch
from incremental.tiny import blobs
from pydantic import ValidationError

from unlabeled.errors import UserError
from unlabeled.incremental.herding import herd
from unlabeled.incremental.memory import Memory, added, shrunk


def test_how_many_of_each_class() -> None:
    assert [Memory(total=2000).quota(seen) for seen in (10, 20, 30, 2000)] == [200, 100, 66, 1]
    assert [Memory(per_class=20).quota(seen) for seen in (10, 500)] == [20, 20]
    assert Memory().quota(10) == 0 and Memory().none and not Memory(total=3).none


def test_it_says_what_it_is() -> None:
    said = {Memory(**one).describe() for one in ({}, {"total": 2000}, {"per_class": 20})}
    assert said == {"no memory", "2000 images in all", "20 images of each class"}


def test_settings_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"expected total or per_class, found both \(5, 2\)"):
        Memory(total=5, per_class=2)
    with pytest.raises(UserError, match=r"memory\.total is 9 for 10 classes"):
        Memory(total=9).check(10)
    for fine in (Memory(total=10), Memory(per_class=1), Memory()):
        fine.check(10)


def test_the_first_of_each_class_stay() -> None:
    memory, labels = torch.tensor([9, 4, 7, 1, 8, 3]), torch.tensor([0, 0, 0, 2, 5, 5])
    assert shrunk(memory, labels, 2).tolist() == [9, 4, 1, 8, 3]
    assert shrunk(memory, labels, 1).tolist() == [9, 1, 8]
    assert shrunk(memory, labels, 0).tolist() == [] and shrunk(memory[:0], labels[:0], 3).tolist() == []


@pytest.mark.parametrize("replacement", [True, False])
def test_new_classes_are_herded_and_old_ones_left_out(replacement: bool) -> None:
    features, labels = blobs(4, 7)
    order = torch.randperm(28, generator=torch.Generator().manual_seed(0))
    features, labels, numbers = features[order], labels[order], 100 + 3 * torch.arange(28)
    found = added(features, labels, numbers, 2, 5, replacement)
    assert len(found) == 10
    for place, label in enumerate((2, 3)):
        rows = [row for row in range(28) if labels[row] == label]
        best = herd(features[rows], 5, replacement)
        assert found[5 * place : 5 * place + 5].tolist() == [int(numbers[rows[i]]) for i in best]


def test_memory_of_a_walk_through_tasks() -> None:
    """After every task no class has more than its part, and what is left was there before."""
    features, labels = blobs(6, 8)
    memory, numbers, rule = torch.empty(0, dtype=torch.int64), torch.arange(48), Memory(total=12)
    for old, seen in ((0, 2), (2, 4), (4, 6)):
        of_task = (labels >= old) & (labels < seen)
        most = rule.quota(seen)
        new = added(features[of_task], labels[of_task], numbers[of_task], old, most, rule.replacement)
        left = shrunk(memory, labels[memory], most)
        assert set(left.tolist()) <= set(memory.tolist())
        memory = torch.cat([left, new])
        assert torch.bincount(labels[memory]).tolist() == [12 // seen] * seen
    assert added(features[:0], labels[:0], numbers[:0], 0, 3, True).tolist() == []
