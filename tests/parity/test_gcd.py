"""Category discovery against numbers of the official code (sgvaze/generalized-category-discovery)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from parity.golden import Golden, assert_close, peek
from torch import Tensor

from unlabeled.discover.accuracy import accuracy, contingency, matching
from unlabeled.discover.kmeans import Labelled, begin, fit

EXACT = 1e-9


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test per case of whatever set is given, as its names tell."""
    if "case" in metafunc.fixturenames:
        golden = peek(metafunc.config, "gcd", "hungarian.safetensors")
        metafunc.parametrize("case", (golden and golden.found(r"out/v2_(\w+)$")) or ["absent"])


def shares(clusters: Tensor, classes: Tensor, known: int) -> Tensor:
    """Accuracy of all, old and new, by one matching: shares, 0 where there are none."""
    found = accuracy(clusters.numpy(), classes.numpy(), known)
    return torch.tensor([found.everything, found.old or 0.0, found.new or 0.0], dtype=torch.float64) / 100


def apart(clusters: Tensor, classes: Tensor, known: int) -> Tensor:
    """The same with a matching for each group, which flatters."""
    old = classes < known
    each = [shares(clusters[rows], classes[rows], known)[0] for rows in (old, ~old)]
    whole = (each[0] * old.sum() + each[1] * (~old).sum()) / len(old)
    return torch.stack([whole, *each])


def test_hungarian_accuracy(folder: Path, case: str) -> None:
    """Old are the classes below `old`, of which the official script takes three."""
    golden = Golden(folder / "hungarian.safetensors")
    known = golden.config.get("old", 3)
    classes, clusters = golden[f"in/y{case}"], golden[f"in/p{case}"]
    assert_close(shares(clusters, classes, known), golden[f"out/v2_{case}"], EXACT, "one matching for all")
    assert_close(apart(clusters, classes, known), golden[f"out/v1_{case}"], EXACT, "a matching for each group")
    right = matching(contingency(clusters.numpy(), classes.numpy()))[clusters.numpy()] == classes.numpy()
    assert_close(torch.tensor(np.mean(right)), golden[f"out/acc{case}"], EXACT, "accuracy")


def test_semi_supervised_kmeans(folder: Path) -> None:
    golden = Golden(folder / "semi_kmeans.safetensors")
    y, x = golden["in/labels"], golden["in/unlabelled"]
    labelled = Labelled(golden["in/labelled"], y, int(y.max()) + 1)
    k = len(golden["out/start"])
    start = begin(labelled, x, k, golden["in/uniforms"].tolist())
    assert_close(start, golden["out/start"], EXACT, "centres to start from")
    found = fit(labelled, x, start, steps=golden.config.get("iters", 200))
    assert_close(torch.cat([y, found.labels]), golden["out/labels"], EXACT, "clusters")
    assert_close(found.centres, golden["out/centers"], EXACT, "centres")
    assert_close(torch.tensor(found.inertia, dtype=torch.float64), golden["out/inertia"], EXACT, "inertia")
    # the official function returns the counter of another loop, over labelled pictures
    assert int(golden["out/iterations"]) in (found.iterations, len(y))
    true = golden["in/true"]
    assert_close(shares(found.labels, true, labelled.known), golden["out/acc_v2"], EXACT, "one matching for all")
    assert_close(apart(found.labels, true, labelled.known), golden["out/acc_v1"], EXACT, "a matching for each group")
