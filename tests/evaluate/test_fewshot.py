"""Few-shot episodes: drawn fairly, and classified as one would by hand, one episode at a time."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from evaluate.test_linear import blobs

from unlabeled.errors import UserError
from unlabeled.evaluate.features import Features
from unlabeled.evaluate.logistic_regression import fit
from unlabeled.evaluate.protocols import fewshot
from unlabeled.evaluate.protocols.fewshot import Config as FewShot
from unlabeled.evaluate.protocols.fewshot import episodes

CONFIG = FewShot(ways=3, shots=(2,), queries=4, episodes=30, c=0.5)


def bench(test: Features, seed: int = 0) -> Any:
    classes = tuple("abcdefgh")
    splits = SimpleNamespace(sources=(None, SimpleNamespace(classes=classes)))
    return SimpleNamespace(features=lambda pool, blocks: (None, test), splits=splits, seed=seed)


def test_episodes_are_of_different_pictures_of_different_classes() -> None:
    labels = np.repeat([3, 0, 7, 5], [6, 9, 7, 6])
    rows = episodes(labels, CONFIG, shots=2, seed=0)
    assert rows.shape == (30, 3, 6)
    for episode in rows:
        assert len(set(episode.flatten().tolist())) == 18
        classes = [set(labels[way].tolist()) for way in episode.numpy()]
        assert all(len(way) == 1 for way in classes) and len(set.union(*classes)) == 3
    assert set(labels[rows.numpy()].flatten().tolist()) == {0, 3, 5, 7}
    assert torch.equal(rows, episodes(labels, CONFIG, shots=2, seed=0))
    assert not torch.equal(rows, episodes(labels, CONFIG, shots=2, seed=1))
    one, two = (labels[found[0, :, 0].numpy()].tolist() for found in (episodes(labels, CONFIG, shots=1, seed=0), rows))
    assert one != two, "drawn anew for each number of shots"


def test_every_episode_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fewshot, "AT_ONCE", 7)
    test = blobs(80, classes=5, noise=4)
    found = {score.name: score for score in CONFIG.scores(bench(test))}
    assert list(found) == ["prototype_3way_2shot", "logistic_3way_2shot"]
    x = F.normalize(test.x, dim=1)
    for number, episode in enumerate(episodes(test.y.numpy(), CONFIG, 2, seed=0)):
        means = torch.stack([(x[way[0]] + x[way[1]]) / 2 for way in episode])
        support = torch.cat([x[way[:2]] for way in episode]).double()
        y = torch.tensor([0, 0, 1, 1, 2, 2])
        # scikit-learn's C = 1/2: half the sum of the losses of 6 pictures + |weight|^2 / 2
        regression = fit(support, y, 3, 1 / 3, tolerance=1e-9).regression
        right = {"prototype": 0, "logistic": 0}
        for label, way in enumerate(episode):
            for query in x[way[2:]]:
                right["prototype"] += int(((means - query) ** 2).sum(1).argmin()) == label
                right["logistic"] += int(regression.logits(query.double()).argmax()) == label
        for name, hits in right.items():
            each = found[f"{name}_3way_2shot"].each
            assert each is not None and each[number] == pytest.approx(100 * hits / 12)
    assert found["prototype_3way_2shot"].value == pytest.approx(found["prototype_3way_2shot"].each.mean())  # type: ignore[union-attr]


def test_more_shots_are_better_and_seeds_differ() -> None:
    test = blobs(200, classes=5, noise=4)
    config = CONFIG.model_copy(update={"shots": (1, 20), "ways": 5, "episodes": 100})
    one, _, many, _ = (score.value for score in config.scores(bench(test)))
    assert many > one + 5
    assert one != next(iter(config.scores(bench(test, seed=1)))).value


def test_fewer_pictures_or_classes_than_asked() -> None:
    labels = torch.tensor([0] * 9 + [1] * 5 + [2] * 6)
    test = Features(torch.randn(20, 4), labels)
    with pytest.raises(
        UserError, match=r"class 'b' has 5 test pictures, fewer than 2 shots and 4 queries .* at most 5"
    ):
        list(CONFIG.scores(bench(test)))
    with pytest.raises(UserError, match=r"test pictures have 3 classes\. Set fewshot.ways=3"):
        list(CONFIG.model_copy(update={"ways": 5}).scores(bench(test)))
