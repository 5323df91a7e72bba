"""Confusions by pairs that occur against a matrix by a loop, and without room for all pairs."""

from __future__ import annotations

import torch

from unlabeled.report.classification import Outcomes, classification, classification_of
from unlabeled.report.confusion import GROUPS, MOST_CELLS, Confusion
from unlabeled.report.page import HARDEST
from unlabeled.report.per_class import recall

N, C = 400, 17


def drawn(n: int, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randint(classes, (n,), generator=generator) for _ in range(2))  # type: ignore[return-value]


def test_as_a_loop_counts() -> None:
    predicted, labels = drawn(N, C)
    counts = [[0] * C for _ in range(C)]
    for guess, true in zip(predicted.tolist(), labels.tolist(), strict=True):
        counts[true][guess] += 1
    found = Confusion.of(predicted, labels, C)
    assert found.dense().tolist() == counts
    assert found.row(3) == {j: count for j, count in enumerate(counts[3]) if count}
    recalls = recall(predicted, labels, C)
    assert found.hardest() == recalls.nan_to_num(2.0).argsort(stable=True)[:HARDEST].tolist()
    matrix, names = found.drawn([str(i) for i in range(C)])
    assert torch.equal(matrix, found.dense()) and names[-1] == "16"


def test_many_classes_are_drawn_as_groups_of_neighbours() -> None:
    classes = 20_000
    predicted, labels = drawn(N, classes)
    matrix, names = Confusion.of(predicted, labels, classes).drawn([str(i) for i in range(classes)])
    size = classes // GROUPS
    assert matrix.shape == (GROUPS, GROUPS) and matrix.sum() == N and names[1] == str(size)
    expected = torch.zeros_like(matrix)
    for guess, true in zip(predicted.tolist(), labels.tolist(), strict=True):
        expected[true // size, guess // size] += 1
    assert torch.equal(matrix, expected)


def test_a_result_of_many_classes_has_no_matrix() -> None:
    for classes, has in ((MOST_CELLS, True), (MOST_CELLS + 1, False)):
        _, labels = drawn(50, classes)
        logits = torch.randn(50, classes, generator=torch.Generator().manual_seed(1))
        result = classification(logits, labels, [str(i) for i in range(classes)]).summary()
        assert ("confusion" in result) == has and ("confused" in result) != has


def test_what_is_kept_of_logits_says_the_same() -> None:
    _, labels = drawn(N, C)
    logits = 3 * torch.randn(N, C, generator=torch.Generator().manual_seed(1))
    names = [str(i) for i in range(C)]
    parts = [Outcomes.of(x, y).columns() for x, y in zip(logits.split(64), labels.split(64), strict=True)]
    kept = classification_of(Outcomes.read(torch.cat(parts), labels), names).summary()
    whole = classification(logits, labels, names).summary()
    assert {name: kept[name] for name in kept if "auroc" not in name} == {
        name: whole[name] for name in whole if "auroc" not in name
    }
