"""Principal components of patches against NumPy's SVD, their signs and order over time, and their drawing."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from unlabeled.backbone.build import build_encoder
from unlabeled.look import components, drawing
from unlabeled.look.writing import Examples, write_attention, write_components


def vectors(n: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(n)
    return torch.randn(n, width, dtype=torch.float64, generator=generator) * torch.arange(1, width + 1) + 3


@pytest.mark.parametrize(("n", "width"), [(50, 7), (9, 40), (12, 12)])
def test_components_are_those_of_the_svd_up_to_sign(n: int, width: int) -> None:
    x = vectors(n, width)
    centred = (x - x.mean(0)).numpy()
    left, values, directions = np.linalg.svd(centred, full_matrices=False)
    found = components.principal(x, 3).numpy()
    for i in range(3):
        sign = np.sign(directions[i][np.abs(directions[i]).argmax()])
        np.testing.assert_allclose(found[:, i], sign * left[:, i] * values[i], rtol=1e-8, atol=1e-8)


def test_components_beyond_the_rank_are_nothing() -> None:
    found = components.principal(torch.outer(torch.arange(5.0), torch.ones(2)), 3)
    assert found.shape == (5, 3)
    assert found[:, 1:].abs().max() < 1e-6
    assert torch.equal(components.principal(torch.ones(4, 3), 3), torch.zeros(4, 3, dtype=torch.float64))


def test_the_images_are_taken_together() -> None:
    encoder = build_encoder(
        "vit_tiny_patch16_224",
        {"embed_dim": 24, "num_heads": 3, "patch_size": 8, "img_size": (32, 24), "in_chans": 3, "depth": 1},
    )
    images = torch.randn(3, 3, 32, 24)
    found = components.of(encoder, images)
    patches = encoder.eval().vit.forward_features(images)[:, 1:].double().detach().reshape(-1, 24).numpy()
    left, values, _ = np.linalg.svd(patches - patches.mean(0), full_matrices=False)
    assert found.shape == (3, 4, 3, 3)
    np.testing.assert_allclose(found.reshape(-1, 3).abs(), np.abs(left[:, :3] * values[:3]), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_order_and_signs_follow_earlier_components(order: tuple[int, ...]) -> None:
    now = components.principal(vectors(60, 5), 3).unflatten(0, (3, 4, 5))
    before = now[..., list(order)] * torch.tensor([1.0, -1.0, -1.0]) * 7 + 2
    before = before + 0.05 * before.std() * torch.randn(before.shape, generator=torch.Generator().manual_seed(0))
    found = components.aligned(now, before)
    torch.testing.assert_close(found, now[..., list(order)] * torch.tensor([1.0, -1.0, -1.0]))


def test_colours_are_shares_between_quantiles() -> None:
    scores = torch.stack([torch.arange(101.0), -5 * torch.arange(101.0), torch.ones(101)], dim=1).double()
    found = components.colours(scores)
    assert found[:, 0].tolist() == [min(255, max(0, round(255 * (i - 2) / 96))) for i in range(101)]
    assert torch.equal(found[:, 1], found[:, 0].flip(0))
    assert set(found[:, 2].tolist()) == {128}


def test_colours_are_read_back_from_a_drawing(tmp_path: Path) -> None:
    colours = torch.randint(0, 256, (2, 1, 3, 5, 3), dtype=torch.uint8)
    tile = drawing.tile_of((30, 50))
    above = drawing.images(torch.randint(0, 256, (2, 1, 30, 50), dtype=torch.uint8), tile).unsqueeze(1)
    drawing.write(tmp_path / "a.png", torch.cat([above, drawing.cells(colours, tile)], dim=1))
    found = drawing.read_cells(tmp_path / "a.png", 1, (2, 3, 5), tile)
    assert found is not None
    assert torch.equal(found, colours[:, 0])
    assert drawing.read_cells(tmp_path / "a.png", 1, (3, 3, 5), tile) is None
    (tmp_path / "a.png").write_bytes(b"no image")
    assert drawing.read_cells(tmp_path / "a.png", 1, (2, 3, 5), tile) is None


def test_heat_goes_from_least_to_largest() -> None:
    maps = torch.tensor([[[[2.0, 4.0, 3.0]], [[1.0, 1.0, 1.0]]]])
    found = drawing.heat(maps, (1, 3))[0]
    assert found[0, :, 0].T.tolist() == [list(drawing.HEAT[0]), list(drawing.HEAT[-1]), list(drawing.HEAT[4])]
    assert found[1, :, 0].T.tolist() == [list(drawing.HEAT[0])] * 3


def test_drawings_of_a_run_keep_their_colours(tmp_path: Path) -> None:
    """A network whose components are mirrored and swapped between two steps gets the same drawing."""
    encoder = build_encoder(
        "vit_tiny_patch16_224",
        {"embed_dim": 24, "num_heads": 3, "patch_size": 8, "img_size": (32, 32), "in_chans": 3, "depth": 1},
    )
    torch.manual_seed(0)
    images = torch.randn(4, 3, 32, 32)
    seen = Examples(torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8), images)
    first = write_components(tmp_path, 10, encoder, seen)
    turned = torch.linalg.qr(torch.randn(24, 24)).Q
    encoder.vit.norm = torch.nn.Sequential(encoder.vit.norm, torch.nn.Linear(24, 24, bias=False))
    with torch.no_grad():
        encoder.vit.norm[1].weight.copy_(-turned)
    second = write_components(tmp_path, 20, encoder, seen)
    one, two = (
        drawing.read_cells(file, 1, (4, 4, 4), (96, 96)).double()  # type: ignore[union-attr]
        for file in (first, second)
    )
    assert (one - two).abs().max() <= 2
    assert not torch.equal(
        components.of(encoder, images).sign(), components.aligned(components.of(encoder, images), one).sign()
    )
    assert write_attention(tmp_path, 20, encoder, seen).name == "attention-step-00000020.png"
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "about.json",
        "attention-step-00000020.png",
        "pca-step-00000010.png",
        "pca-step-00000020.png",
    ]
