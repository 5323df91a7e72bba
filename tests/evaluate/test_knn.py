from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from unlabeled.evaluate.features import Features
from unlabeled.evaluate.probing import accuracy, hits_of
from unlabeled.evaluate.protocols import knn
from unlabeled.evaluate.protocols.knn import Config as Knn
from unlabeled.evaluate.protocols.knn import knn_predict


def knn_accuracy(train: Features, test: Features, k: int, temperature: float, num_classes: int) -> float:
    return accuracy(hits_of(knn_predict(train, test.x, k, temperature, num_classes), test.y))


def random_features(n: int, classes: int, seed: int) -> Features:
    generator = torch.Generator().manual_seed(seed)
    return Features(torch.randn(n, 6, generator=generator), torch.randint(classes, (n,), generator=generator))


def naive_votes(train: Features, picture: Tensor, k: int, temperature: float, classes: int) -> list[float]:
    cosine = [float(picture @ x / (picture.norm() * x.norm())) for x in train.x]
    nearest = sorted(range(len(cosine)), key=lambda i: -cosine[i])[:k]
    votes = [0.0] * classes
    for i in nearest:
        votes[int(train.y[i])] += math.exp(cosine[i] / temperature)
    return votes


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (5, 0.2), (1000, 1.0)])
def test_votes_of_the_nearest(k: int, temperature: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knn, "CHUNK_ELEMENTS", 31 * 4)  # four test pictures at a time, the last chunk short
    train, test = random_features(31, 4, seed=0), random_features(9, 4, seed=1)
    expected = torch.tensor([naive_votes(train, picture, k, temperature, 4) for picture in test.x])
    torch.testing.assert_close(knn_predict(train, test.x, k, temperature, 4), expected)
    hits = sum(int(votes.argmax()) == int(label) for votes, label in zip(expected, test.y, strict=True))
    assert knn_accuracy(train, test, k, temperature, 4) == pytest.approx(100 * hits / 9)


def test_a_single_picture_on_each_side() -> None:
    one = random_features(1, 1, seed=0)
    assert knn_accuracy(one, one, k=20, temperature=0.07, num_classes=1) == 100


def test_among_the_five_with_most_votes() -> None:
    scores = torch.tensor([[6.0, 5, 4, 3, 2, 1]]).repeat(3, 1)
    labels = torch.tensor([0, 4, 5])
    assert hits_of(scores, labels).tolist() == [True, False, False]
    assert hits_of(scores, labels, 5).tolist() == [True, True, False]
    assert hits_of(scores[:, :3], labels.clamp(max=2), 5).all(), "three classes have a top three"


class FakeBench:
    num_classes = 4

    def features(self, pool: str | None, blocks: int) -> tuple[Features, Features]:
        assert (pool, blocks) == ("mean", 2)
        return random_features(31, 4, seed=0), random_features(9, 4, seed=1)


def test_a_score_for_every_k_and_its_top_five() -> None:
    config = Knn(k=(1, 5), temperature=0.2, top5=True, pool="mean", blocks=2)
    found = {score.name: score for score in config.scores(FakeBench())}  # type: ignore[arg-type]
    train, test = FakeBench().features("mean", 2)
    assert list(found) == ["k1", "k1_top5", "k5", "k5_top5"]
    assert found["k5"].value == knn_accuracy(train, test, 5, 0.2, 4) == pytest.approx(found["k5"].each.mean())  # type: ignore[union-attr]
    assert found["k5_top5"].value == 100
    # as many places as neighbours, as in the official code
    assert found["k1_top5"].value == found["k1"].value


@pytest.mark.parametrize("k", [0, (), (20, 0)])
def test_refuses_no_neighbours(k: object) -> None:
    with pytest.raises(ValueError, match="k"):
        Knn(k=k)  # type: ignore[arg-type]
