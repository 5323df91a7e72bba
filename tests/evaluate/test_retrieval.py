"""Retrieval against rankings made one by one."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from evaluate.test_protocol import FakeData, encoder  # noqa: F401 - a fixture

from unlabeled.backbone.encoder import Encoder
from unlabeled.errors import UserError
from unlabeled.evaluate.bench import Bench
from unlabeled.evaluate.evaluation import Evaluation, Evaluator, measured
from unlabeled.evaluate.features import Features
from unlabeled.evaluate.protocols import retrieval
from unlabeled.evaluate.protocols.retrieval import Config as Retrieval
from unlabeled.evaluate.protocols.retrieval import average_precision, rank
from unlabeled.evaluate.splits import Splits

CPU = torch.device("cpu")


def naive(x: np.ndarray, y: list[int]) -> dict[int, tuple[float, list[bool]]]:
    """(average precision, whether each place is relevant) of every query that has something to find."""
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    found = {}
    for query in range(len(y)):
        others = [i for i in range(len(y)) if i != query]
        others.sort(key=lambda i: -float(unit[query] @ unit[i]))
        relevant = [y[i] == y[query] for i in others]
        precisions = [sum(relevant[: k + 1]) / (k + 1) for k in range(len(others)) if relevant[k]]
        if precisions:
            found[query] = (sum(precisions) / len(precisions), relevant)
    return found


def test_every_picture_asks_for_the_others_of_its_class(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieval, "CHUNK_ELEMENTS", 5 * 23)  # five queries at a time, the last chunk short
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(23, 5, generator=generator) * torch.rand(23, 1, generator=generator)
    y = torch.cat([torch.arange(22) % 4, torch.tensor([4])])  # the last one is alone
    expected = naive(x.double().numpy(), y.tolist())
    assert len(expected) == 22
    found = rank(Features(x, y), 6)
    torch.testing.assert_close(found.average_precision, torch.tensor([ap for ap, _ in expected.values()]).double())
    assert found.relevant.tolist() == [relevant[:6] for _, relevant in expected.values()]


def test_average_precision_of_known_rankings() -> None:
    rankings = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 1], [1, 0, 1, 0], [0, 0, 0, 1]]).bool()
    assert average_precision(rankings).tolist() == pytest.approx([1, (1 / 3 + 2 / 4) / 2, (1 + 2 / 3) / 2, 1 / 4])


@pytest.mark.parametrize("labels", [torch.arange(400) // 100, torch.arange(400) % 4])
def test_collapsed_features_find_nothing_however_pictures_are_listed(labels: torch.Tensor) -> None:
    found = rank(Features(torch.ones(400, 3), labels), 10)
    assert found.relevant.double().mean().item() == pytest.approx(0.25, abs=0.12)
    assert found.average_precision.mean().item() == pytest.approx(0.25, abs=0.03)
    alike: Any = SimpleNamespace(features=lambda pool, blocks: (None, Features(torch.ones(400, 3), labels)))
    maps = []
    for alike.seed in (0, 1):
        maps.append(next(Retrieval().scores(alike)).value)
    assert maps[0] != maps[1]


def test_nothing_to_retrieve_is_the_users_error() -> None:
    with pytest.raises(UserError, match="no class has two of the 3 test pictures"):
        rank(Features(torch.eye(3), torch.arange(3)), 1)


def test_scores_by_name(encoder: Encoder) -> None:  # noqa: F811
    data = FakeData()
    asked = Retrieval(recall=(1, 5, 99), precision=(3, 10))
    config = Evaluation(pool="mean", crop_pct=1.0, knn=None, linear=None, retrieval=asked)
    bench = Bench(encoder, Splits(config, data, CPU), (8, 8))
    expected = naive(bench.features()[1].x.double().numpy(), data.splits["val"].labels.tolist())
    found = {score.name: score for score in measured("retrieval", asked, bench)}
    assert {name: score.value for name, score in found.items()} == pytest.approx(
        {
            "retrieval_map": 100 * np.mean([ap for ap, _ in expected.values()]),
            "retrieval_recall1": 100 * np.mean([any(relevant[:1]) for _, relevant in expected.values()]),
            "retrieval_recall5": 100 * np.mean([any(relevant[:5]) for _, relevant in expected.values()]),
            "retrieval_recall99": 100.0,
            "retrieval_precision3": 100 * np.mean([sum(relevant[:3]) / 3 for _, relevant in expected.values()]),
            "retrieval_precision10": 100 * np.mean([sum(relevant[:10]) / 10 for _, relevant in expected.values()]),
        }
    )
    assert all(len(score.each) == 30 and score.each.mean() == pytest.approx(score.value) for score in found.values())
    assert dict(Evaluator(config, bench.splits, (8, 8))(encoder)) == {
        name: score.value for name, score in found.items()
    }
