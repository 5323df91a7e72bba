"""ViTDet's pyramid against numbers of the official code (facebookresearch/detectron2). All settings come from the
set."""

from __future__ import annotations

from pathlib import Path

import torch
from parity.golden import Golden, assert_close

from unlabeled.transfer.detection.pyramid import SimplePyramid

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5}


def pyramid(golden: Golden) -> SimplePyramid:
    """Ours with the official weights, whose names it has."""
    c = golden.config
    factors, strides, width = c["scale_factors"], sorted(c["strides"].values()), golden.shape("in/map")[1]
    assert width == c["dim"]
    stride, top = round(strides[0] * factors[0]), len(strides) > len(factors)
    made = SimplePyramid(width, c["out"], factors, c["norm"], stride, top).to(golden["in/map"].dtype)
    made.load_state_dict(dict(golden.under("sd")))
    return made


def test_levels_and_gradients(folder: Path) -> None:
    golden = Golden(folder / "pyramid.safetensors")
    model, x, official = pyramid(golden), golden["in/map"].requires_grad_(), golden.under("out")
    maps, tolerance = model(x), TOLERANCE[x.dtype]
    last = model.strides[-1]
    strides = dict(zip(maps, [*model.strides, *([2 * last] if model.top else [])], strict=True))
    assert strides == golden.config["strides"] and set(maps) == set(official)
    for level, found in maps.items():
        assert_close(found, official[level], tolerance, level)
    loss = torch.stack([found.square().mean() for found in maps.values()]).sum()
    (grad,) = torch.autograd.grad(loss, x)
    assert_close(grad, golden["grad/map"], tolerance, "gradient of the map")
