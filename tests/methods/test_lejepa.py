"""LeJEPA's loss against plain loops, and its settings."""

from __future__ import annotations

from pathlib import Path

import naive_lejepa
import pytest
import torch
from collapsed import FEWER, shrunk, warnings
from torch import Tensor

from unlabeled.data.view.views import View
from unlabeled.pretrain.methods.lejepa import Config, SIGReg, agreement, invariance
from unlabeled.pretrain.rescale import Setting, rescale

SMALL = {"model": "vit_tiny_patch16_224", "patch_size": 8, "width": 8, "depth": 1, "heads": 1}


def drawn(views: int, pictures: int, width: int) -> Tensor:
    return torch.randn(views, pictures, width, generator=torch.Generator().manual_seed(pictures), dtype=torch.float64)


@pytest.mark.parametrize(("shape", "slices", "knots", "t_max"), [((3, 5, 4), 7, 9, 2.0), ((1, 2, 3), 1, 2, 5.0)])
def test_sigreg_view_by_view_and_direction_by_direction(
    shape: tuple[int, int, int], slices: int, knots: int, t_max: float
) -> None:
    z, regulariser = drawn(*shape), SIGReg(slices, knots, t_max)
    directions = regulariser.directions(shape[2], step=3).double()
    torch.testing.assert_close(directions.norm(dim=0), torch.ones(slices, dtype=torch.float64))
    found = regulariser.double()(z, directions)
    torch.testing.assert_close(found, naive_lejepa.statistics(z, directions, knots, t_max), rtol=1e-6, atol=0)


def test_directions_change_with_the_step_alone() -> None:
    regulariser = SIGReg(slices=5, knots=3, t_max=3.0)
    first, again, second = (regulariser.directions(4, step) for step in (7, 7, 8))
    assert torch.equal(first, again) and not torch.equal(first, second)


def test_sigreg_of_a_point_and_of_a_gaussian() -> None:
    regulariser = SIGReg(slices=16, knots=17, t_max=3.0)
    point = regulariser(torch.zeros(2, 50, 4), regulariser.directions(4, 0))
    torch.testing.assert_close(point, regulariser.of_point(50).expand(2, 16))
    assert regulariser(drawn(2, 4000, 4).float(), regulariser.directions(4, 0)).mean() < 2


def test_invariance_and_agreement_by_loops() -> None:
    z = drawn(4, 6, 3)
    for centres in (None, 2):
        assert invariance(z, centres).item() == pytest.approx(naive_lejepa.invariance(z, centres))
    pictures = drawn(1, 500, 3)
    assert agreement(pictures.expand(4, -1, -1)).item() == 1
    assert abs(agreement(drawn(4, 500, 3)).item()) < 0.05


@pytest.mark.parametrize("centres", [None, 2])
def test_the_gradient_goes_through_the_mean_of_views(centres: int | None) -> None:
    """Of global views alone it is another than with a fixed mean."""
    assert torch.autograd.gradcheck(lambda z: invariance(z, centres), drawn(3, 4, 2).requires_grad_())


def test_the_balance_of_both_terms_follows_the_batch() -> None:
    at_256, at_64 = (rescale(Config(), Setting(batch, 10, 1000))[0].weight for batch in (256, 64))
    assert at_256 == pytest.approx(0.05)
    assert at_64 / (1 - at_64) == pytest.approx(4 * 0.05 / 0.95)
    assert rescale(Config(weight=0.3), Setting(64, 10, 1000))[0].weight == 0.3


def test_one_view_is_refused() -> None:
    with pytest.raises(ValueError, match=r"compares views of a picture, found one: set global_view.count: 2"):
        Config(global_view=View(size=16), local=None, encoder=SMALL)
    Config(global_view=View(size=16), local=View(size=8), encoder=SMALL)


def test_a_network_of_one_size_takes_views_of_one_size() -> None:
    swin = {"model": "swin_tiny_patch4_window7_224"}
    Config(global_view=View(size=224, count=2), local=None, encoder=swin)
    with pytest.raises(ValueError, match="LeJEPA needs positions for crops of any size"):
        Config(encoder=swin)


def test_a_weight_too_small_lets_all_embeddings_fall_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    [line] = warnings(tmp_path, capsys, shrunk("lejepa", *FEWER, "method.weight=0.0005"))
    assert "one point" in line and "Raise method.weight from 0.0005 to 0.002" in line
