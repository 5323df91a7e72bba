"""What tells learning from collapse, against loops and the values that collapses are known by."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from unlabeled.nn import measures
from unlabeled.nn.measures import (
    RANK_EPSILON,
    alignment,
    contrast,
    effective_rank,
    feature_std,
    lidar,
    linear_cka,
    spectral_rank,
    teaching,
    uniformity,
)


def test_effective_rank_is_the_entropy_of_singular_values() -> None:
    features = torch.randn(12, 5, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(features.double())
    shares = [(value / values.sum()).item() for value in values]
    assert effective_rank(features) == pytest.approx(math.exp(-sum(p * math.log(p) for p in shares)), rel=1e-4)


@pytest.mark.parametrize(
    ("features", "expected"), [(torch.ones(300, 7), 1.0), (3 * torch.eye(6), 6.0), (torch.eye(4)[:, :3], 3.0)]
)
def test_effective_rank_of_one_direction_and_of_all(features: torch.Tensor, expected: float) -> None:
    assert effective_rank(features) == pytest.approx(expected, rel=1e-3)


def test_effective_rank_of_what_is_not_finite_is_nan() -> None:
    assert math.isnan(effective_rank(torch.full((3, 2), torch.nan)))


def test_feature_std_is_one_when_uniform_and_zero_when_collapsed() -> None:
    uniform = torch.randn(4000, 16, generator=torch.Generator().manual_seed(0))
    assert feature_std(uniform).item() == pytest.approx(1, abs=0.02)
    assert feature_std(torch.ones(8, 16)).item() == pytest.approx(0, abs=1e-6)


def test_contrast_by_pairs() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.nn.functional.normalize(torch.randn(5, 3, generator=generator), dim=1) for _ in range(2))
    strangers = [(i, j) for i in range(5) for j in range(5) if i != j]
    found = {key: value.item() for key, value in contrast(2 * a, 3 * b).items()}
    assert found == pytest.approx(
        {
            "positive": sum(a[i].dot(b[i]).item() for i in range(5)) / 5,
            "negative": sum(a[i].dot(b[j]).item() for i, j in strangers) / 20,
            "alignment": sum((a[i] - b[i]).square().sum().item() for i in range(5)) / 5,
            "uniformity": math.log(sum(math.exp(-2 * (a[i] - b[j]).square().sum().item()) for i, j in strangers) / 20),
        },
        abs=1e-5,
    )


def test_teaching_tells_both_collapses_from_a_teacher_that_teaches() -> None:
    uniform, one, each = torch.full((2, 3, 8), 1 / 8), torch.eye(8)[[0] * 6], torch.eye(8)[:6]
    expected = {"uniform": (math.log(8), math.log(8), 1 / 6), "one": (0.0, 0.0, 1 / 6), "each": (0.0, math.log(6), 1.0)}
    for name, targets in {"uniform": uniform, "one": one, "each": each}.items():
        found = teaching(torch.tensor(3.0), targets)
        entropy, mean_entropy, prototypes = expected[name]
        assert found["teacher_entropy"].item() == pytest.approx(entropy, abs=1e-5)
        assert found["mean_entropy"].item() == pytest.approx(mean_entropy, abs=1e-5)
        assert found["prototypes"].item() == pytest.approx(prototypes)
        assert found["kl"].item() == pytest.approx(3 - entropy, abs=1e-5)


@pytest.mark.parametrize("shape", [(400, 24), (24, 400)])
def test_spectral_rank_takes_every_row_whichever_side_is_longer(shape: tuple[int, int]) -> None:
    features = torch.randn(*shape, generator=torch.Generator().manual_seed(0)) * torch.arange(1, shape[1] + 1)
    shares = torch.linalg.svdvals(features.double())
    shares = shares / shares.sum()
    assert spectral_rank(features) == pytest.approx(math.exp(-sum(p * math.log(p) for p in shares.tolist())), rel=1e-6)


def random(*shape: int, seed: int = 0) -> NDArray[np.float64]:
    return np.random.Generator(np.random.PCG64(seed)).normal(size=shape)


def test_rank_me_adds_its_epsilon_to_the_shares_of_singular_values() -> None:
    features = np.concatenate([random(20, 3), np.zeros((20, 5))], axis=1)
    shares = np.linalg.svd(features, compute_uv=False)
    for epsilon in (RANK_EPSILON, 1e-3):  # the larger one shows
        p = shares / shares.sum() + epsilon
        expected = math.exp(-sum(value * math.log(value) for value in p))
        assert spectral_rank(torch.from_numpy(features), epsilon) == pytest.approx(expected, rel=1e-6)


def naive_lidar(views: NDArray[np.float64], delta: float, epsilon: float) -> float:
    n, q, width = views.shape
    means = [views[i].mean(0) for i in range(n)]
    mean = sum(means) / n
    between, within = np.zeros((width, width)), np.zeros((width, width))
    for i in range(n):
        between += np.outer(means[i] - mean, means[i] - mean) / n
        for j in range(q):
            within += np.outer(views[i, j] - means[i], views[i, j] - means[i]) / (n * q)
    values, vectors = np.linalg.eigh(within + delta * np.eye(width))
    root = vectors @ np.diag(values**-0.5) @ vectors.T
    eigenvalues = np.clip(np.linalg.eigvalsh(root @ between @ root), 0, None)
    p = eigenvalues / eigenvalues.sum() + epsilon
    return math.exp(-sum(value * math.log(value) for value in p))


@pytest.mark.parametrize("shape", [(9, 4, 6), (4, 3, 10)])
@pytest.mark.parametrize(("delta", "epsilon"), [(1e-4, 1e-7), (0.5, 1e-3)])
def test_lidar_is_the_rank_of_the_discriminants(shape: tuple[int, int, int], delta: float, epsilon: float) -> None:
    views = (3 * random(shape[0], 1, shape[2]) + random(*shape, seed=1)) * np.arange(1, shape[2] + 1)
    expected = naive_lidar(views, delta, epsilon)
    assert lidar(torch.from_numpy(views), delta, epsilon) == pytest.approx(expected, rel=1e-6)


def test_lidar_counts_directions_that_tell_pictures_apart() -> None:
    # eight directions: pictures differ in the first three, views in all of them
    views = 0.01 * random(4000, 2, 8)
    views[..., :3] += random(4000, 1, 3, seed=1)
    assert lidar(torch.from_numpy(views)) == pytest.approx(3, abs=0.05)
    assert math.isnan(lidar(torch.full((3, 2, 4), torch.nan)))
    assert math.isnan(lidar(torch.ones(3, 2, 4)))


def unit(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def test_alignment_over_all_pairs_of_views() -> None:
    views = random(5, 4, 3)
    distances = [((unit(a)[i] - unit(a)[j]) ** 2).sum() for a in views for i in range(4) for j in range(4) if i != j]
    assert alignment(torch.from_numpy(views)) == pytest.approx(np.mean(distances))
    assert alignment(torch.ones(3, 2, 4)) == pytest.approx(0, abs=1e-12)
    assert alignment(torch.eye(2).expand(3, 2, 2)) == pytest.approx(2)


def test_uniformity_over_all_pairs_of_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measures, "CHUNK_ELEMENTS", 3 * 8)  # three rows at a time, the last chunk short
    features = random(8, 3)
    pairs = [(a, b) for i, a in enumerate(unit(features)) for j, b in enumerate(unit(features)) if i != j]
    expected = math.log(np.mean([math.exp(-2 * ((a - b) ** 2).sum()) for a, b in pairs]))
    assert uniformity(torch.from_numpy(features)) == pytest.approx(expected)
    assert uniformity(torch.ones(5, 3)) == pytest.approx(0, abs=1e-12)
    assert uniformity(torch.eye(6)) == pytest.approx(-4)  # distances of sqrt(2)


def naive_cka(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    n = len(x)
    centre = np.eye(n) - 1 / n
    k, m = x @ x.T, y @ y.T

    def hsic(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
        return float(np.trace(a @ centre @ b @ centre)) / (n - 1) ** 2

    return hsic(k, m) / math.sqrt(hsic(k, k) * hsic(m, m))


def naive_unbiased_cka(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    n, ones = len(x), np.ones(len(x))
    k, m = x @ x.T, y @ y.T
    np.fill_diagonal(k, 0)
    np.fill_diagonal(m, 0)

    def hsic(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
        sums = (ones @ a @ ones) * (ones @ b @ ones) / ((n - 1) * (n - 2))
        return float(np.trace(a @ b) + sums - 2 / (n - 2) * (ones @ a @ b @ ones)) / (n * (n - 3))

    return hsic(k, m) / math.sqrt(hsic(k, k) * hsic(m, m))


def test_cka_against_kernels() -> None:
    x, y = 5 + random(12, 4), random(12, 7, seed=1)
    y[:, :4] += x
    found = [linear_cka(torch.from_numpy(x), torch.from_numpy(y), unbiased) for unbiased in (False, True)]
    assert found == pytest.approx([naive_cka(x, y), naive_unbiased_cka(x, y)])


@pytest.mark.parametrize("unbiased", [False, True])
def test_cka_is_blind_to_rotation_scale_and_shift_and_sees_nothing_in_noise(unbiased: bool) -> None:
    x = torch.from_numpy(random(400, 6) * np.arange(1, 7))
    rotation = torch.from_numpy(np.linalg.qr(random(6, 6, seed=1))[0])
    assert linear_cka(x, 3 - 0.1 * x @ rotation, unbiased) == pytest.approx(1)
    assert linear_cka(x, x @ torch.from_numpy(random(6, 6, seed=1)), unbiased) < 0.99
    assert linear_cka(x, torch.from_numpy(random(400, 6, seed=2)), unbiased) == pytest.approx(0, abs=0.03)
    assert math.isnan(linear_cka(x, torch.ones(400, 2), unbiased))


def test_only_the_unbiased_cka_of_wide_noise_is_about_zero() -> None:
    x, y = (torch.from_numpy(random(50, 500, seed=seed)) for seed in (1, 2))
    assert linear_cka(x, y) > 0.8
    assert abs(linear_cka(x, y, unbiased=True)) < 0.1
