"""SimSiam against numbers of the official code (facebookresearch/simsiam)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from parity.given import batch_of
from parity.golden import Golden, assert_close
from parity.vit import START, assert_gradients
from torch import Tensor, nn

from unlabeled.backbone.encoder import Encoder
from unlabeled.pretrain.methods.simsiam import Config, SimSiam

# batch normalisation over few samples, and a loss near 0: rounding alone is 1.3e-5 and 3.4e-5 in sets of six pictures
FORWARD, BACKWARD = 2e-5, 5e-5


@pytest.fixture(scope="module")
def golden(folder: Path) -> Golden:
    return Golden(folder / "model.safetensors")


class StandIn(nn.Module):
    """The set's narrow backbone: a convolution of stride 2, batch normalisation, ReLU, the mean over pixels."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        width, channels, kernel, _ = shape
        self.conv = nn.Conv2d(channels, width, kernel, stride=2, padding=kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(width)

    def feature(self, images: Tensor, views: int = 1) -> Tensor:
        return torch.cat([self.bn(self.conv(view)).relu().mean((2, 3)) for view in images.chunk(views)])


def ours(name: str) -> str:
    return name.replace("encoder.fc.", "projector.", 1)


def build(golden: Golden) -> SimSiam:
    shapes = {name.removeprefix("sd/"): golden.shape(name) for name in golden.names() if name.startswith("sd/")}
    linears = [shape for name, shape in shapes.items() if name.startswith("encoder.fc.") and len(shape) == 2]
    config = Config(
        hidden=shapes["encoder.fc.0.weight"][0],
        dim=golden.shape("out/z1")[1],
        projector_layers=len(linears),
        predictor_hidden=shapes["predictor.0.weight"][0],
    )
    encoder: Any = StandIn(shapes["encoder.conv.weight"])
    model = SimSiam(cast(Encoder, encoder), shapes["encoder.fc.0.weight"][1], config)
    model.load_state_dict({ours(name): tensor for name, tensor in golden.under("sd").items()})
    return model.train()


def images(golden: Golden) -> Tensor:
    return torch.stack([golden["in/view1"], golden["in/view2"]])


def test_projections_and_predictions(golden: Golden) -> None:
    model = build(golden)
    projections = model.projector(model.encoder.feature(images(golden).flatten(0, 1), views=2), views=2)
    predictions = model.predictor(projections, views=2)
    for kind, found in (("z", projections), ("p", predictions)):
        for i, mine in enumerate(found.chunk(2), 1):
            assert_close(mine, golden[f"out/{kind}{i}"], FORWARD, f"{kind}{i}")


def test_loss_and_gradients(golden: Golden) -> None:
    model = build(golden)
    loss = model(batch_of(images(golden)), START).loss
    assert_close(loss, golden["out/loss"], FORWARD, "loss")
    loss.backward()
    assert_gradients(model, golden.some("grad"), ours, tolerance=BACKWARD)


def test_the_last_bias_of_the_projector_is_frozen(golden: Golden) -> None:
    frozen = {name for name, parameter in build(golden).named_parameters() if not parameter.requires_grad}
    assert frozen == {ours(name) for name in golden.config.get("frozen", ["encoder.fc.6.bias"])}
