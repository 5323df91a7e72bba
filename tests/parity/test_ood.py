"""Scores of the unknown against numbers of the official code (Jingkang50/OpenOOD), which computes in float32."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from parity.golden import Golden, assert_close, peek
from torch import Tensor

from unlabeled.evaluate.features import Features
from unlabeled.evaluate.openset_measures import measure
from unlabeled.evaluate.openset_scores import (
    Head,
    energy,
    knn,
    mahalanobis,
    maxlogit,
    msp,
    relative_mahalanobis,
    vim,
)

TOLERANCE = 1e-5


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test per score that the given set measures, as its names tell."""
    if "score" in metafunc.fixturenames:
        golden = peek(metafunc.config, "ood", "scores.safetensors")
        metafunc.parametrize("score", (golden and golden.found(r"out/auroc_fpr95_(\w+)$")) or ["absent"])


@pytest.fixture(scope="module")
def golden(folder: Path) -> Golden:
    return Golden(folder / "scores.safetensors")


def scores(golden: Golden) -> dict[str, Tensor]:
    """Ours, by the official names, in float64."""
    c, x = golden.config, golden["in/test"].double()
    train = Features(golden["in/train"].double(), golden["in/train_labels"])
    head = Head(golden["in/weight"].double(), golden["in/bias"].double())
    logits = head.logits(x)
    return {
        "predicted": logits.argmax(1),
        "msp": msp(logits),
        "maxlogit": maxlogit(logits),
        "energy": energy(logits, c.get("T", 1.0)),
        "knn": knn(train.x, x, c.get("k", 50)),
        "vim": vim(head, train.x, x, c.get("vim_dim", 256)),
        "mahalanobis": mahalanobis(train, x),
        "relative_mahalanobis": relative_mahalanobis(train, x),
    }


def test_scores(golden: Golden) -> None:
    for name, found in scores(golden).items():
        assert_close(found, golden[f"out/{name}"], TOLERANCE, name)


def test_measures(golden: Golden, score: str) -> None:
    """The first half of the pictures is known."""
    found = scores(golden)[score].numpy()
    unknown = torch.arange(len(found)).numpy() >= golden.config.get("n", len(found) // 2)
    measures = torch.tensor(measure(found, unknown), dtype=torch.float64) / 100
    assert_close(measures, golden[f"out/auroc_fpr95_{score}"], TOLERANCE, "AUROC, AUPR both ways, FPR95")
