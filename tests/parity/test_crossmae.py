"""CrossMAE against numbers of the official code (TonyLianLong/CrossMAE)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from parity.golden import Golden, assert_close
from parity.vit import (
    FORWARD,
    START,
    assert_gradients,
    depth_of,
    encoder_config,
    heads_in,
    mlp_ratio,
    shapes_under,
    use_eps,
)

from unlabeled.backbone.importers.crossmae import RULES, in_block
from unlabeled.data.batch.batch import Batch, ViewBatch
from unlabeled.data.masks.random import Config as RandomMask
from unlabeled.data.view.views import View
from unlabeled.nn.patches import PatchMask
from unlabeled.nn.positions import sincos_2d, with_prefix
from unlabeled.pretrain.decoders.cross import Config as CrossDecoder
from unlabeled.pretrain.methods.mae import MAE, Config


@pytest.fixture(scope="module")
def golden(folder: Path) -> Golden:
    return Golden(folder / "model_weighted.safetensors")


def ours(name: str) -> str:
    """Our name of an official parameter."""
    rule = next(rule for rule in RULES if name.startswith(rule.official))
    return f"encoder.vit.{name}" if rule.to == "encoder" else in_block(rule.ours + name.removeprefix(rule.official))


def mask_ratios(golden: Golden) -> tuple[float, float]:
    """The share of the patches that are hidden, and of those that are predicted."""
    return golden.config.get("mask_ratio", 0.75), golden.config.get("kept_mask_ratio", 0.25)


def build(golden: Golden) -> MAE:
    shapes, c = shapes_under(golden, "sd/"), golden.config
    hidden, width = shapes["decoder_blocks.0.mlp.fc1.weight"]
    depth, (ratio, predicted) = depth_of(shapes), mask_ratios(golden)
    maps = c.get("use_fm", list(range(depth)))
    decoder = CrossDecoder(
        width=width,
        depth=depth_of(shapes, "decoder_blocks."),
        heads=heads_in(c, 2 * width, "decoder_num_heads"),
        mlp_ratio=mlp_ratio(hidden, width),
        predicted=predicted,
        maps=None if maps in (None, [-1]) else tuple(maps),
        use_input=c.get("use_input", True),
    )
    config = Config(
        view=View(size=golden.shape("in/images")[-2:], mask=RandomMask(ratio=ratio)),
        encoder=encoder_config(shapes, c),
        decoder=decoder,
        normalize_targets=c.get("norm_pix_loss", True),
    )
    model = config.build()
    own = model.state_dict()
    weights = {ours(name): tensor for name, tensor in golden.under("sd").items()}
    weights["decoder.positions"] = weights["decoder.positions"][:, 1:]  # patches' alone
    assert own.keys() - weights.keys() == {"encoder.vit.norm.weight", "encoder.vit.norm.bias"}, "officially not there"
    model.load_state_dict({**own, **weights})
    use_eps(model, c)
    return model.to(golden["in/images"].dtype).train()


class Noise:
    """A generator whose next noise is given."""

    def __init__(self, noise: torch.Tensor) -> None:
        self.noise = noise.double().numpy()

    def random(self, n: int) -> Any:
        assert n == len(self.noise)
        return self.noise


def mask_of(golden: Golden) -> PatchMask:
    """The masks that our generator draws from the official noise."""
    patch = golden.shape("sd/patch_embed.proj.weight")[-1]
    grid = tuple(side // patch for side in golden.shape("in/images")[-2:])
    mask = RandomMask(ratio=mask_ratios(golden)[0])
    drawn: list[Any] = [Noise(noise) for noise in golden["in/noise"]]
    return PatchMask.stack([mask.draw(rng, grid, patch) for rng in drawn])  # type: ignore[arg-type]


def batch_of(golden: Golden) -> Batch:
    images, mask = golden["in/images"], mask_of(golden).map(lambda tensor: tensor.unsqueeze(0))
    return Batch([ViewBatch(images.unsqueeze(0), mask)], torch.full((len(images),), -1), torch.arange(len(images)))


def test_the_predicted_patches_are_the_last_that_were_drawn(golden: Golden) -> None:
    mask, official = mask_of(golden), golden["out/mask"].bool()
    order = torch.cat(mask.indices(), dim=1)
    assert torch.equal(order.argsort(dim=1), golden["out/ids_restore"])
    index = build(golden).decoder.predicts(mask)
    assert torch.equal(torch.zeros_like(official).scatter(1, index, True), official)
    assert torch.equal(index, index.sort(dim=1).values), "row-major"


def test_prediction(golden: Golden) -> None:
    model, mask = build(golden), mask_of(golden)
    with torch.no_grad():
        prediction = model.decoder(model.decoder.encode(model.encoder, golden["in/images"], mask), mask)
    assert_close(prediction, golden["out/prediction"], FORWARD, "prediction")


def test_loss_and_gradients(golden: Golden) -> None:
    model = build(golden)
    loss = model(batch_of(golden), START).loss
    assert_close(loss, golden["out/loss"], FORWARD, "loss")
    loss.backward()
    # the scale of a map alone is taken out by the norm after it
    alone = golden.shape("sd/wfm.linear.weight")[1] == 1
    assert_gradients(model, golden.some("grad"), ours, zero=["wfm.linear.weight"] if alone else [])


def test_positions(golden: Golden) -> None:
    patch = golden.shape("sd/patch_embed.proj.weight")[-1]
    rows, columns = (side // patch for side in golden.shape("in/images")[-2:])
    for key in ("sd/pos_embed", "sd/decoder_pos_embed"):
        table = golden[key]
        assert_close(with_prefix(sincos_2d(table.shape[-1], (rows, columns)), 1), table, FORWARD, key)


def test_a_third_of_the_hidden_patches_of_imagenet() -> None:
    """49 of 147 with the official settings, 0.75 and 0.25 of 196."""
    config = Config(decoder=CrossDecoder(width=32, depth=1, heads=2))
    mask = PatchMask(torch.ones(1, 196, dtype=torch.bool), torch.arange(49)[None], torch.arange(49, 196)[None])
    with torch.device("meta"):
        decoder = config.build().decoder
    assert torch.equal(decoder.predicts(mask), torch.arange(147, 196)[None])
