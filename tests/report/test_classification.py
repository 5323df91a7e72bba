"""Every score against a loop over pictures."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from unlabeled.report.calibration import Reliability, reliability
from unlabeled.report.classification import classification
from unlabeled.report.intervals import bootstrap
from unlabeled.report.per_class import auroc

N, C = 400, 8
CLASSES = [f"class {i}" for i in range(C)]
ABSENT = 5  # a class that no evaluated picture has
TRAIN = torch.tensor([101, 100, 20, 19, 300, 0, 55, 3])


@pytest.fixture
def scored() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(C, (N,), generator=generator)
    labels[labels == ABSENT] = 6
    logits = torch.randn(N, C, generator=generator)
    logits[torch.arange(N), labels] += torch.linspace(0, 3, C)[labels]
    return logits, labels


def naive(logits: Tensor, labels: Tensor) -> dict[str, Any]:
    rows, truth = logits.double().tolist(), labels.tolist()
    guesses = [row.index(max(row)) for row in rows]
    confusion = [[0] * C for _ in range(C)]
    loss, in_top5 = 0.0, 0
    for row, true, guess in zip(rows, truth, guesses, strict=True):
        confusion[true][guess] += 1
        loss -= row[true] - math.log(sum(map(math.exp, row)))
        in_top5 += true in sorted(range(C), key=lambda i: -row[i])[:5]
    recalls = {i: 100 * confusion[i][i] / sum(confusion[i]) for i in range(C) if i in truth}
    groups: dict[str, list[float]] = {"many": [], "medium": [], "few": []}
    for i, value in recalls.items():
        groups["many" if TRAIN[i] > 100 else "few" if TRAIN[i] < 20 else "medium"].append(value)
    correct = [a == b for a, b in zip(truth, guesses, strict=True)]
    return {
        "accuracy": 100 * sum(correct) / N,
        "top5": 100 * in_top5 / N,
        "balanced_accuracy": sum(recalls.values()) / len(recalls),
        "groups": {k: {"classes": len(v), "accuracy": pytest.approx(sum(v) / len(v))} for k, v in groups.items()},
        "nll": loss / N,
        "per_class": {CLASSES[i]: pytest.approx(value, abs=5e-4) for i, value in recalls.items()},
        "precision": {CLASSES[i]: pytest.approx(100 * _precision(confusion, i), abs=6e-4) for i in recalls},
        "auroc": {CLASSES[i]: pytest.approx(100 * _auroc(rows, truth, i), abs=6e-4) for i in recalls},
        "majority": 100 * truth.count(4) / N,
        "uneven": max(map(truth.count, recalls)) / min(map(truth.count, recalls)),
        "confusion": confusion,
        "pictures": N,
    }


def _precision(confusion: list[list[int]], i: int) -> float:
    called = sum(row[i] for row in confusion)
    return confusion[i][i] / called if called else 0.0


def _auroc(rows: list[list[float]], truth: list[int], i: int) -> float:
    """Pairs of a picture of the class and one of another in the right order, ties counted half."""
    chance = [math.exp(row[i]) / sum(map(math.exp, row)) for row in rows]
    own = [p for p, true in zip(chance, truth, strict=True) if true == i]
    others = [p for p, true in zip(chance, truth, strict=True) if true != i]
    return sum((a > b) + (a == b) / 2 for a in own for b in others) / len(own) / len(others)


def test_against_loops(scored: tuple[Tensor, Tensor]) -> None:
    found, expected = classification(*scored, CLASSES, TRAIN).summary(), naive(*scored)
    for name in ("accuracy", "top5", "balanced_accuracy", "nll", "majority", "uneven"):
        assert found[name] == pytest.approx(expected[name]), name
    for name in ("groups", "per_class", "precision", "auroc", "confusion", "pictures"):
        assert found[name] == expected[name], name
    for mean, each in (("mean_precision", "precision"), ("mean_auroc", "auroc")):
        assert found[mean] == pytest.approx(sum(found[each].values()) / len(found[each]), abs=1e-3)
    assert expected["groups"]["medium"]["classes"] == 3 and CLASSES[ABSENT] not in found["per_class"]
    low, high = bootstrap((scored[0].argmax(1) == scored[1]).numpy())
    assert found["interval"] == (100 * low, 100 * high) and 100 * low < found["accuracy"] < 100 * high
    json.dumps(found, allow_nan=False)


def test_what_is_not_known_is_left_out(scored: tuple[Tensor, Tensor]) -> None:
    logits, labels = scored
    found = classification(logits[:, :5], labels.clamp(max=4), CLASSES[:5])
    assert found.top5 is None and found.groups == {} and found.majority is None


def test_equal_probabilities_count_half() -> None:
    logits = torch.tensor([[1.0, 1.0], [1.0, 1.0], [2.0, 1.0], [0.0, 1.0]])
    labels = torch.tensor([0, 1, 0, 1])
    # of the pairs (0, 1) (0, 3) (2, 1) (2, 3) the first is a tie
    assert auroc(logits, labels).tolist() == [3.5 / 4, 3.5 / 4]
    assert auroc(logits, torch.zeros(4, dtype=torch.int64)).isnan().all()


def test_curves_end_where_classes_are_very_many() -> None:
    logits, labels = torch.randn(30, 1001), torch.arange(30)
    found = classification(logits, labels, [str(i) for i in range(1001)])
    assert found.auroc == {} and found.mean_auroc is None and len(found.precision) == 30
    kept = classification(logits[:, :1000], labels, [str(i) for i in range(1000)])
    assert len(kept.auroc) == 30, "in parts of 64 classes"
    assert kept.auroc["29"] == pytest.approx(100 * auroc(logits[:, :1000].log_softmax(1), labels)[29].item())


def bins_of(logits: Tensor, labels: Tensor) -> Reliability:
    confidence, predicted = logits.double().softmax(-1).max(-1)
    return reliability(confidence, predicted == labels)


@pytest.mark.parametrize("sharpen", [0.3, 1.0, 8.0])
def test_calibration_error_against_a_loop(scored: tuple[Tensor, Tensor], sharpen: float) -> None:
    logits, labels = sharpen * scored[0].double(), scored[1]
    bins: list[list[tuple[float, bool]]] = [[] for _ in range(15)]
    for row, true in zip(logits.softmax(1).tolist(), labels.tolist(), strict=True):
        sure = max(row)
        place = next(m for m in range(15) if m / 15 < sure <= (m + 1) / 15)
        bins[place].append((sure, row.index(sure) == true))
    gaps = [abs(sum(s for s, _ in held) - sum(c for _, c in held)) for held in bins]
    found = bins_of(logits, labels)
    assert found.counts.tolist() == [len(held) for held in bins]
    assert found.error == pytest.approx(sum(gaps) / N)
    assert classification(logits, labels, CLASSES).ece == pytest.approx(100 * sum(gaps) / N, rel=1e-4)


@pytest.mark.parametrize("right, error", [(9, 0.0), (5, 0.4), (10, 0.1)])
def test_calibration_error_by_hand(right: int, error: float) -> None:
    """Ten pictures, each 90 % sure."""
    logits = torch.tensor([[math.log(9.0), 0.0]]).expand(10, 2)
    labels = (torch.arange(10) >= right).long()
    assert bins_of(logits, labels).error == pytest.approx(error, abs=1e-6)


def test_bins_are_closed_above() -> None:
    """Sure of one class of five, and of none: probabilities 1 and 0.2 end the bins (14/15, 1] and (2/15, 3/15]."""
    logits = torch.tensor([[1000.0, 0, 0, 0, 0], [0.0, 0, 0, 0, 0]])
    assert bins_of(logits, torch.tensor([0, 0])).counts.nonzero().flatten().tolist() == [2, 14]


@pytest.mark.parametrize("train, many", [(TRAIN, 2), (TRAIN // 2, 1)])
def test_groups_go_by_training_pictures(scored: tuple[Tensor, Tensor], train: Tensor, many: int) -> None:
    assert classification(*scored, CLASSES, train).groups["many"].classes == many
