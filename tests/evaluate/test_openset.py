"""Scores of the unknown and their measures against counting, and the protocol on pictures."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from evaluate.test_command import export
from parity.naive_discovery import measures as counted
from PIL import Image

from unlabeled.__main__ import main
from unlabeled.errors import UserError
from unlabeled.evaluate import openset_scores
from unlabeled.evaluate.features import Features
from unlabeled.evaluate.openset_measures import Measures, Ranked, Trial, measure, measured
from unlabeled.evaluate.openset_scores import Head, energy, knn, mahalanobis, relative_mahalanobis, vim
from unlabeled.evaluate.protocols.openset import Config

RANDOM = np.random.default_rng(0)


def tied(n: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Scores of which many are equal, and which are unknown."""
    unknown = np.arange(n) >= n // 2
    return np.floor(RANDOM.normal(size=n) * 2 - unknown), unknown


def test_measures_of_equal_scores_are_counted() -> None:
    for _ in range(5):
        scores, unknown = tied()
        found = measure(scores, unknown)
        assert list(found) == pytest.approx((100 * counted(scores.tolist(), 20)).tolist())
        assert len(np.unique(scores)) < 12


def test_a_perfect_and_a_useless_score() -> None:
    unknown = np.array([False, False, True, True])
    assert measure(np.array([4.0, 3.0, 2.0, 1.0]), unknown) == Measures(100, 100, 100, 0)
    same = measure(np.zeros(4), unknown)
    assert (same.auroc, same.fpr95) == (50, 100)
    # three of four known pictures lie above every unknown one, the last below all of them
    found = measure(np.array([9.0, 8.0, 7.0, 0.0, 5.0, 4.0]), np.array([False] * 4 + [True] * 2))
    assert (found.auroc, found.fpr95) == (75, 25)


def test_weights_are_repetitions() -> None:
    scores, unknown = tied(30)
    weights = RANDOM.integers(0, 4, size=(6, 30)).astype(float)
    found = Ranked(scores, unknown).measure(weights)
    for counts, column in zip(weights.astype(int), found.T, strict=True):
        again = measure(np.repeat(scores, counts), np.repeat(unknown, counts))
        assert column.tolist() == pytest.approx(list(again))


def test_intervals_of_means_over_trials() -> None:
    trials = [Trial(*tied(60)) for _ in range(3)]
    mean, intervals = measured(trials, seed=1, draws=200)
    each = [measure(*trial) for trial in trials]
    assert list(mean) == pytest.approx(np.mean(each, axis=0).tolist())
    for name, (low, high) in intervals.items():
        assert low < getattr(mean, name) < high
    assert measured(trials, seed=1, draws=200)[1] == intervals != measured(trials, seed=2, draws=200)[1]
    # one image of a kind: draws without it say nothing
    few, bounds = measured([Trial(np.array([3.0, 2.0, 1.0]), np.array([False, False, True]))], draws=50)
    assert few.auroc == 100 and bounds["auroc"] == (100, 100)


def features(n: int = 12, width: int = 5, classes: int = 3, seed: int = 0) -> Features:
    generator = torch.Generator().manual_seed(seed)
    return Features(torch.randn(n, width, generator=generator, dtype=torch.float64), torch.arange(n) % classes)


def test_neighbours_in_parts_and_at_most_all(monkeypatch: pytest.MonkeyPatch) -> None:
    train, x = features().x, features(seed=1).x
    units, others = (y / y.norm(dim=1, keepdim=True) for y in (train, x))
    distances = (others[:, None] - units[None]).square().sum(2).sort(1).values
    monkeypatch.setattr(openset_scores, "CHUNK_ELEMENTS", 3 * 12)
    for k in (1, 4, 12, 99):
        torch.testing.assert_close(knn(train, x, k), -distances[:, min(k, 12) - 1])


def test_a_direction_without_variance_does_not_count() -> None:
    train, x = features(30), features(seed=1)
    still = 2 + 1e-9 * torch.randn(30, 1, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    wide = Features(torch.cat([train.x, still], 1), train.y)
    far = torch.cat([x.x, torch.rand(12, 1, dtype=torch.float64)], 1)
    for score in (mahalanobis, relative_mahalanobis):
        torch.testing.assert_close(score(wide, far), score(train, x.x))
        # nor do units: features times a matrix have the same distances
        turned = torch.randn(5, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        torch.testing.assert_close(score(Features(train.x @ turned, train.y), x.x @ turned), score(train, x.x))


def test_directions_of_vim_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """256; of features that are no wider, half."""
    train, x = features(30), features(seed=1).x
    head = Head(features(3, seed=2).x, torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(vim(head, train.x, x), vim(head, train.x, x, 2))
    monkeypatch.setattr(openset_scores, "DIRECTIONS", 4)
    torch.testing.assert_close(vim(head, train.x, x), vim(head, train.x, x, 4))
    assert not torch.allclose(vim(head, train.x, x, 4), vim(head, train.x, x, 2))
    # no direction is left: the energy alone
    torch.testing.assert_close(vim(head, train.x, x, 5), energy(head.logits(x)))


def bench(classes: int, seed: int = 0) -> Any:
    """Classes on axes of their own; every test picture is near the axis of its class."""
    generator = torch.Generator().manual_seed(seed)

    def clouds(each: int) -> Features:
        y = torch.arange(each * classes) % classes
        return Features(10 * torch.eye(classes)[y] + torch.randn(len(y), classes, generator=generator), y)

    train, test = clouds(20), clouds(10)
    found = SimpleNamespace(pool="mean", seed=seed, num_classes=classes)
    found.features = lambda pool, blocks: (train, test)
    return found


def test_held_out_classes_are_unknown() -> None:
    found = {score.name: score for score in Config(draws=3, k=5).scores(bench(6))}
    assert list(found) == ["msp", "maxlogit", "energy", "knn", "mahalanobis", "relative", "vim"]
    for score in found.values():
        assert score.details is not None and score.interval is not None
        assert score.details["unknown"] == [30, 30, 30] and len(score.details["draws"]) == 3
        assert score.value == pytest.approx(np.mean([draw["auroc"] for draw in score.details["draws"]]))
        assert score.interval[0] <= score.value <= score.interval[1]
    assert found["knn"].value > 99 and found["mahalanobis"].value > 99 and found["maxlogit"].value > 80
    [few] = Config(draws=1, hold_out=0.01, measures=("knn",)).scores(bench(6))
    assert few.details is not None and few.details["unknown"] == [10], "one class at least"
    [many] = Config(draws=1, hold_out=0.99, measures=("knn",)).scores(bench(6))
    assert many.details is not None and many.details["unknown"] == [40], "two classes stay"


def test_other_seeds_hold_out_other_classes() -> None:
    one = Config(draws=4)
    held = [[case.unknown.tolist() for case in one._cases(bench(6, seed))] for seed in (0, 0, 1)]
    assert held[0] == held[1] != held[2] and len({tuple(draw) for draw in held[0]}) > 1


def test_two_classes_leave_none_to_hold_out() -> None:
    with pytest.raises(UserError, match=r"there are 2; expected at least 3.*--unknown PATH"):
        list(Config().scores(bench(2)))


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Two known classes by brightness in two splits, pictures of a third beside each other, and an export."""
    random = np.random.default_rng(0)
    places = {f"data/{split}/{name}": low for split in ("train", "val") for name, low in (("dark", 0), ("light", 90))}
    for place, low in {**places, "other": 180}.items():
        (tmp_path / place).mkdir(parents=True)
        for i in range(8):
            pixels = random.integers(low, low + 70, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / place / f"{i}.png")
    export(tmp_path / "export", 0)
    return tmp_path


def evaluate(pictures: Path, *options: str) -> int:
    data = ("--data", str(pictures / "data"), "--device", "cpu", "--workers", "0", "--pool", "mean")
    return main(["evaluate", str(pictures / "export"), *data, "--no-baselines", *options])


def test_pictures_of_unknown_classes(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = ("--json", str(pictures / "found.json"), "--markdown", str(pictures / "found.md"))
    options = ("--protocol", "openset", "--unknown", str(pictures / "other"), "--set", "openset.k=3")
    assert evaluate(pictures, *options, "--fractions", "0.5", "--seeds", "2", *files) == 0
    found = json.loads((pictures / "found.json").read_text(encoding="utf-8"))
    scores = found["rows"][0]["scores"]
    assert next(iter(scores)) == "openset_msp_50%" and len(scores) == 7
    for score in scores.values():
        assert [one["unknown"] for one in score["details"]] == [[8], [8]] and score["labels"] == 8
        bounds = [one["intervals"]["auroc"] for one in score["details"]]
        assert score["interval"] == pytest.approx(np.mean(bounds, axis=0).tolist())
        assert score["mean"] == pytest.approx(np.mean([one["auroc"] for one in score["details"]]))
    assert found["protocol"]["evaluation"]["openset"]["unknown"]["path"] == str(pictures / "other")
    text = (pictures / "found.md").read_text(encoding="utf-8")
    assert "| AUPR unknown |" in text.replace("  ", "") and "share of KNOWN pictures that are flagged" in text
    assert "openset kNN 50 %" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--protocol", "knn", "--unknown", "other"), "other holds what openset takes for unknown. Add openset"),
        (("--protocol", "openset", "--unknown", "data/val"), "of 2 classes that train has too, such as 'dark'"),
        (("--protocol", "openset", "--unknown", "nowhere"), "nowhere"),
        (("--protocol", "openset"), "there are 2; expected at least 3"),
        (("--protocol", "openset", "--set", "openset.hold_out=1"), "openset.hold_out"),
        (("--protocol", "openset", "--set", "openset.measures=[odin]"), "openset.measures"),
    ],
)
def test_bad_input_is_said(
    pictures: Path,
    options: tuple[str, ...],
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(pictures)
    assert evaluate(pictures, *options) == 2
    assert said in capsys.readouterr().err
