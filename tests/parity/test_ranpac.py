"""Heads in closed form against numbers of official code: nearest means (SimpleCIL, FeCAM) and RanPAC."""

from __future__ import annotations

from pathlib import Path

import torch
from parity.golden import Golden, assert_close
from parity.incremental import NOTHING, TOLERANCE, after, coming
from torch import Tensor

from unlabeled.incremental.strategies import ncm, ranpac
from unlabeled.incremental.strategy import Coming, Kept, Seen, Strategy


def tasks_of(golden: Golden) -> list[tuple[Tensor, Tensor]]:
    """Features and labels of every task, one after the other."""
    numbers = sorted(int(n) for n in golden.found(r"in/x(\d+)"))
    return [(golden[f"in/x{n}"], golden[f"in/y{n}"]) for n in numbers]


def learnt(strategy: Strategy, tasks: list[tuple[Tensor, Tensor]], kept: Kept = NOTHING) -> list[Kept]:
    """What is kept after each task."""
    found, old = [], 0
    for x, y in tasks:
        classes = int(y.max()) + 1
        kept = Kept(strategy.learnt(after(x, y), coming(old, classes - old), kept), NOTHING.memory)
        found.append(kept)
        old = classes
    return found


def test_nearest_means(folder: Path) -> None:
    golden, strategy = Golden(folder / "simplecil.safetensors"), ncm.Config()
    kept = learnt(strategy, tasks_of(golden))[-1]
    means = kept.tensors["sums"] / kept.tensors["counts"][:, None]
    assert_close(means, golden["out/prototypes"], TOLERANCE, "means")
    x = golden["in/test"]
    scores = strategy.scores(Seen(x, x), kept)
    assert_close(scores, golden["out/logits"], TOLERANCE, "cosines")
    assert_close(scores.argmax(1), golden["out/predicted"], 0, "classes")
    assert (x @ strategy.rows(kept).T).argmax(1).equal(golden["out/predicted"])  # type: ignore[union-attr]


def test_distances_by_covariances(folder: Path) -> None:
    golden = Golden(folder / "fecam.safetensors")
    c, y = golden.config, golden["in/y"]
    strategy = ncm.Config(metric="mahalanobis", shrink=(c.get("alpha1", 1.0), c.get("alpha2", 0.0)))
    [kept] = learnt(strategy, [(golden["in/x"], y)])
    sums, counts, moments = (kept.tensors[name] for name in ("sums", "counts", "moments"))
    assert_close(sums / counts[:, None], golden["out/means"], TOLERANCE, "means")
    spread = [ncm.covariance(*one) for one in zip(moments, sums, counts, strict=True)]
    shrunk = [ncm.shrunk(one, strategy.shrink) for one in spread]
    assert_close(torch.stack(shrunk), golden["out/shrunk"], TOLERANCE, "shrunk covariances")
    normalised = torch.stack([ncm.normalised(one) for one in shrunk])
    assert_close(normalised, golden["out/normalised"], TOLERANCE, "correlations")
    x = golden["in/test"]
    assert_close(-strategy.scores(Seen(x, x), kept), golden["out/distances"], TOLERANCE, "distances")


def test_random_projection_and_ridge(folder: Path) -> None:
    golden = Golden(folder / "ranpac.safetensors")
    projection, tasks, x = golden["in/W_rand"], tasks_of(golden), golden["in/test"]
    kept, old, classes = NOTHING, 0, int(max(y.max() for _, y in tasks)) + 1
    for number, (features, labels) in enumerate(tasks):
        # the images in the order of the set, the last fifth of which chooses
        ridge = ranpac.chosen_ridge(features, labels, projection, classes)
        assert ridge == float(golden[f"out/ridge{number}"])
        strategy = ranpac.Config(dim=projection.shape[1], ridge=ridge)
        begun = kept if kept.tensors else nothing_but(projection)
        kept = Kept(strategy.learnt(after(features, labels), task_of(old, labels), begun), NOTHING.memory)
        old = int(labels.max()) + 1
        assert_close(kept.tensors["head"].T, golden[f"out/weight{number}"], TOLERANCE, f"head {number}")
        scores = strategy.scores(Seen(x, x), kept)
        assert_close(scores, golden[f"out/logits{number}"], TOLERANCE, f"scores {number}")
    assert_close(kept.tensors["gram"], golden["out/G"], TOLERANCE, "Gram matrix")
    assert_close(kept.tensors["products"], golden["out/Q"], TOLERANCE, "products")
    right = (scores.argmax(1) == golden["in/test_labels"]).double().mean()
    assert right > 1 / classes, "labels and features belong together"


def nothing_but(projection: Tensor) -> Kept:
    """What is kept before the first task, if the projection is given."""
    dim = projection.shape[1]
    zeros = projection.new_zeros
    return Kept({"projection": projection, "gram": zeros(dim, dim), "products": zeros(dim, 0)}, NOTHING.memory)


def task_of(old: int, labels: Tensor) -> Coming:
    return coming(old, int(labels.max()) + 1 - old)
