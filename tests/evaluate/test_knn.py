from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from unlabeled.evaluate import knn
from unlabeled.evaluate.features import Features
from unlabeled.evaluate.knn import knn_accuracy, knn_predict

GOLDEN = Path(__file__).parents[3] / "shared" / "golden" / "dino" / "knn.safetensors"


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


@pytest.mark.skipif(not GOLDEN.is_file(), reason="the recorded outputs of the official code are not here")
@pytest.mark.parametrize("k", [1, 3, 10, 20, 100])
def test_parity_with_the_official_dino_code(k: int) -> None:
    from safetensors.torch import load_file

    golden = load_file(GOLDEN)
    train = Features(golden["in/train_features"], golden["in/train_labels"])
    test = Features(golden["in/test_features"], golden["in/test_labels"])
    scores = knn_predict(train, test.x, k, 0.07, 12)
    torch.testing.assert_close(scores, golden[f"out/k{k}/scores"], rtol=1e-5, atol=1e-3)
    assert torch.equal(scores.argmax(1), golden[f"out/k{k}/prediction"])
    assert knn_accuracy(train, test, k, 0.07, 12) == pytest.approx(float(golden[f"out/k{k}/top1_top5"][0]))
