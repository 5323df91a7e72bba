"""What tells learning from collapse, against loops and the values that collapses are known by."""

from __future__ import annotations

import math

import pytest
import torch

from unlabeled.nn.measures import contrast, effective_rank, feature_std, spectral_rank, teaching


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
