"""LeJEPA against numbers of the official code (rbalestr-lab/lejepa)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from parity.golden import Golden, Settings, assert_begins, assert_close, assert_gradient_at
from parity.vit import BACKWARD, FORWARD

from unlabeled.backbone.config import EncoderConfig
from unlabeled.data.view.views import View
from unlabeled.pretrain.methods.lejepa import Config, LeJEPA, SIGReg


@pytest.fixture(scope="module")
def golden(folder: Path) -> Golden:
    return Golden(folder / "loss.safetensors")


def sigreg_of(golden: Golden, part: str = "") -> SIGReg:
    """The regulariser of the set's settings, or of a part of them, in the set's precision."""
    c = Settings(golden.config.get(part, {})) if part else golden.config
    drawn = golden.shape(f"in/directions_{part or 'step0'}")[1]
    regulariser = SIGReg(c.get("slices", drawn), c.get("knots", 17), c.get("t_max", 3.0))
    assert regulariser.slices == drawn
    return regulariser.to(golden["in/projections"].dtype)


def test_directions_of_the_first_step(golden: Golden) -> None:
    official = golden["in/directions_step0"]
    assert_close(sigreg_of(golden).directions(len(official), step=0), official, FORWARD, "directions")


def test_quadrature(golden: Golden) -> None:
    regulariser = sigreg_of(golden)
    for name, values in (("t", regulariser.t), ("phi", regulariser.target), ("weights", regulariser.weights)):
        assert_close(values, golden[f"out/quadrature_{name}"], FORWARD, name)


def test_statistics(golden: Golden) -> None:
    regulariser, z, directions = sigreg_of(golden), golden["in/projections"], golden["in/directions_step0"]
    found = regulariser(z, directions)
    assert_begins(found, golden["out/per_view_and_slice"], FORWARD, "statistics")
    for name in ("sigreg", "statistic_step0"):
        assert_close(found.mean(), golden[f"out/{name}"], FORWARD, name)
    one_sample = regulariser(z.flatten(0, 1).unsqueeze(0), directions)
    assert_close(one_sample.mean(), golden["out/sigreg_flattened"], FORWARD, "all views as one sample")


def test_the_minimal_example(golden: Golden) -> None:
    found = sigreg_of(golden, "minimal")(golden["in/projections"], golden["in/directions_minimal"])
    assert_close(found.mean(), golden["out/sigreg_minimal"], FORWARD, "the example's")


def method_of(golden: Golden, centre: str = "all") -> LeJEPA:
    """A method with the set's loss; its network, that no number is of, is as small as can be."""
    c, (views, _, width) = golden.config, golden.shape("in/projections")
    view = View(count=views, size=8)
    encoder = EncoderConfig(model="vit_tiny_patch16_224", patch_size=8, width=8, depth=1, heads=1)
    config: dict[str, Any] = {"weight": c["lamb"], "knots": c.get("knots", 17), "t_max": c.get("t_max", 3.0)}
    slices = golden.shape("in/directions_step0")[1]
    sizes = {"hidden": 8, "dim": width, "slices": slices}
    model = Config(global_view=view, local=None, encoder=encoder, centre=centre, **sizes, **config).build()
    return model.to(golden["in/projections"].dtype)


def test_loss_and_gradient(golden: Golden) -> None:
    z = golden["in/projections"].requires_grad_()
    loss, terms = method_of(golden).objective(z, golden["in/directions_step0"])
    loss.backward()
    assert_close(terms["invariance"], golden["out/invariance"], FORWARD, "invariance")
    assert_close(loss, golden["out/loss"], FORWARD, "loss")
    assert_gradient_at(z.grad, golden, "grad/projections", BACKWARD)


def test_where_all_views_are_global_both_centres_are_the_same(golden: Golden) -> None:
    z, directions = golden["in/projections"], golden["in/directions_step0"]
    assert torch.equal(*(method_of(golden, centre).objective(z, directions)[0] for centre in ("all", "global")))
