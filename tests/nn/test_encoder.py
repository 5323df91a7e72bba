"""The encoder against timm's own forward, and against timm's parts run by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unlabeled.backbone.config import EncoderConfig
from unlabeled.backbone.encoder import Encoder, Tokens
from unlabeled.backbone.families.vit import Vit
from unlabeled.backbone.folder import IMAGENET, export_encoder
from unlabeled.backbone.weights import load_encoder
from unlabeled.data.masks.random import Config as RandomMask
from unlabeled.nn.patches import PatchMask

PATCH = 8
SMALL = {"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": PATCH}
CLASS_TOKEN, REGISTERS, NO_PREFIX, PRE_NORM = (
    "vit_tiny_patch16_224",
    "vit_small_patch14_reg4_dinov2",  # class token, registers, no positions for them, layer scale
    "vit_base_patch16_gap_224",
    "vit_base_patch16_clip_224",
)
MODELS = [CLASS_TOKEN, REGISTERS, NO_PREFIX, PRE_NORM]


def make(model: str, size: tuple[int, int] = (32, 32), channels: int = 3) -> Encoder:
    """An encoder with nothing at zero or one, so that a part left out shows."""
    torch.manual_seed(0)
    arguments: dict[str, Any] = {**SMALL, "img_size": size, "in_chans": channels}
    vit = timm.create_model(model, num_classes=0, **arguments).eval()
    for parameter in vit.parameters():
        nn.init.normal_(parameter, std=0.2)
    return Vit(vit, model, arguments)


def pictures(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def masks(batch: int, grid: tuple[int, int]) -> PatchMask:
    rng = np.random.default_rng(0)
    drawn = [RandomMask(ratio=0.6).draw(rng, grid, PATCH) for _ in range(batch)]
    return PatchMask.stack(drawn)


def joined(tokens: Tokens) -> Tensor:
    return torch.cat([tokens.prefix, tokens.patches], dim=1)


def embedded(encoder: Encoder, images: Tensor) -> tuple[Tensor, Tensor]:
    """timm's own tokens in front of the blocks, prefix and patches apart."""
    vit = encoder.vit
    x = vit._pos_embed(vit.patch_embed(images))
    return x[:, : encoder.num_prefix], x[:, encoder.num_prefix :]


def finished(encoder: Encoder, prefix: Tensor, patches: Tensor) -> Tensor:
    x = encoder.vit.norm_pre(torch.cat([prefix, patches], dim=1))
    for block in encoder.vit.blocks:
        x = block(x)
    return encoder.vit.norm(x)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(("size", "channels"), [((32, 32), 3), ((24, 40), 3), ((32, 32), 1), ((16, 32), 4)])
@torch.no_grad()
def test_whole_pictures_are_encoded_as_timm_does(model: str, size: tuple[int, int], channels: int) -> None:
    encoder, images = make(model, size, channels), pictures(2, channels, *size)
    tokens = encoder(images)
    torch.testing.assert_close(joined(tokens), encoder.vit.forward_features(images))
    assert tokens.prefix.shape[1] == {CLASS_TOKEN: 1, REGISTERS: 5, NO_PREFIX: 0, PRE_NORM: 1}[model]
    assert tokens.grid == encoder.native_grid == (size[0] // PATCH, size[1] // PATCH)
    assert encoder.image_size == size and encoder.channels == channels


@pytest.mark.parametrize("model", MODELS)
@torch.no_grad()
def test_drop_encodes_the_visible_patches_alone(model: str) -> None:
    encoder, images, mask = make(model, (24, 40)), pictures(3, 3, 24, 40), masks(3, (3, 5))
    tokens = encoder(images, drop=mask)
    prefix, patches = embedded(encoder, images)
    visible = torch.stack([row[keep] for row, keep in zip(patches, mask.indices()[0], strict=True)])
    torch.testing.assert_close(joined(tokens), finished(encoder, prefix, visible))
    assert tokens.patches.shape == (3, 6, 32) and tokens.grid == (3, 5)


@torch.no_grad()
def test_what_is_dropped_does_not_matter() -> None:
    encoder, images, mask = make(CLASS_TOKEN), pictures(2, 3, 32, 32), masks(2, (4, 4))
    hidden = mask.hidden.view(2, 1, 4, 4).repeat_interleave(PATCH, 2).repeat_interleave(PATCH, 3)
    spoilt = torch.where(hidden, torch.nan, images)
    assert torch.equal(joined(encoder(spoilt, drop=mask)), joined(encoder(images, drop=mask)))


@pytest.mark.parametrize("model", MODELS)
@torch.no_grad()
def test_replace_puts_the_token_where_patches_are_hidden(model: str) -> None:
    encoder, images, mask = make(model, (24, 40)), pictures(3, 3, 24, 40), masks(3, (3, 5))
    fill = torch.randn(1, 1, 32)
    tokens = encoder(images, replace=mask, fill=fill)
    prefix, patches = embedded(encoder, images)
    positions = patches - encoder.vit.patch_embed(images)
    for row in range(3):
        for patch in range(15):
            if mask.hidden[row, patch]:
                patches[row, patch] = fill[0, 0] + positions[row, patch]
    torch.testing.assert_close(joined(tokens), finished(encoder, prefix, patches))


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("size", [(48, 48), (16, 16), (24, 56), (32, 40)])
@torch.no_grad()
def test_other_sizes_resample_the_positions(model: str, size: tuple[int, int]) -> None:
    """As a timm model built for that size, whose table is ours stretched: bicubic, without antialiasing."""
    encoder, other = make(model), make(model, size)
    weights = dict(encoder.vit.state_dict())
    table = weights["pos_embed"]
    prefix, patches = table[:, : table.shape[1] - 16], table[:, -16:]
    image = patches.reshape(1, 4, 4, 32).permute(0, 3, 1, 2)
    image = F.interpolate(image, size=other.native_grid, mode="bicubic", align_corners=False, antialias=False)
    weights["pos_embed"] = torch.cat([prefix, image.permute(0, 2, 3, 1).reshape(1, -1, 32)], dim=1)
    other.vit.load_state_dict(weights)
    images = pictures(2, 3, *size)
    tokens = encoder(images)
    torch.testing.assert_close(joined(tokens), other.vit.forward_features(images))
    assert tokens.grid == other.native_grid


def test_gradients_reach_every_parameter() -> None:
    encoder = make(REGISTERS)
    joined(encoder(pictures(2, 3, 32, 32), drop=masks(2, (4, 4)))).square().sum().backward()
    missing = [name for name, p in encoder.named_parameters() if p.grad is None or not p.grad.any()]
    assert missing == []


@pytest.mark.parametrize(("model", "positions"), [(CLASS_TOKEN, "sincos"), ("beit_base_patch16_224", "relative")])
def test_the_mlps_width_and_biases_go_into_the_export(model: str, positions: Any, tmp_path: Path) -> None:
    """Plain timm builds the same network from it."""
    config = EncoderConfig(
        model=model, patch_size=8, width=32, depth=1, heads=2, positions=positions, mlp_ratio=3, qkv_bias=False
    )
    encoder = config.build((32, 32)).eval()
    assert encoder.vit.blocks[0].mlp.fc1.weight.shape == (96, 32)
    assert not any(name.endswith(("qkv.bias", "q_bias")) for name in encoder.state_dict())
    export_encoder(tmp_path / "out", encoder, IMAGENET, "", {})
    alone = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    images = pictures(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(joined(encoder(images)), alone.forward_features(images))
        torch.testing.assert_close(joined(load_encoder(tmp_path / "out")(images)), joined(encoder(images)))


def test_a_cnn_has_no_mlp() -> None:
    with pytest.raises(ValueError, match="the network 'resnet18' has no mlp_ratio"):
        EncoderConfig(model="resnet18", mlp_ratio=3)


def test_pooling() -> None:
    tokens = Tokens(torch.randn(2, 5, 8), torch.randn(2, 9, 8), (3, 3))
    assert torch.equal(tokens.pool("cls"), tokens.prefix[:, 0])
    assert torch.equal(tokens.pool("mean"), tokens.patches.mean(1))


@pytest.mark.parametrize("size", [(33, 32), (32, 36)])
def test_sizes_that_the_patch_does_not_divide_are_refused(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=f"patch size 8 does not divide images of {size[0]}x{size[1]} pixels"):
        make(CLASS_TOKEN)(pictures(1, 3, *size))
    with pytest.raises(ValueError, match="patch_size 8 does not divide an image of"):
        EncoderConfig(model=CLASS_TOKEN, patch_size=8).build(size)


@pytest.mark.parametrize(
    "model",
    [
        "vit_tiny_r_s16_p8_224",  # a ResNet stem
        "vit_base_mci_224",  # a convolutional stem
        "vit_relpos_small_patch16_224",  # no position table
    ],
)
def test_models_that_would_be_encoded_wrongly_are_refused(model: str) -> None:
    with torch.device("meta"):
        vit = timm.create_model(model, num_classes=0)
    with pytest.raises(
        ValueError, match=f"expected a timm VisionTransformer with patches and positions, found '{model}'"
    ):
        Vit(vit, model, {})


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        (
            {"model": "vit_bse_patch16_224"},
            "no model 'vit_bse_patch16_224'. Did you mean 'vit_base_patch16_224'",
        ),
        (
            {"model": "beit_base_patch16_224", "positions": "sincos"},
            "'beit_base_patch16_224' has no sincos positions: expected relative",
        ),
        (
            {"positions": "relative"},
            "'vit_base_patch16_224' has no relative positions: expected sincos, sincos_rows or learned",
        ),
        ({"width": 32, "heads": 5}, "5 heads do not divide a width of 32"),
        ({"drop_path": 1.0}, "less than 1"),
    ],
)
def test_impossible_encoders_are_refused(fields: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        EncoderConfig(**fields)


def test_a_config_builds_what_it_says() -> None:
    config = EncoderConfig(model=CLASS_TOKEN, patch_size=4, width=24, depth=3, heads=3, channels=1, drop_path=0.1)
    encoder = config.build((16, 24))
    assert (encoder.width, encoder.depth, encoder.patch_size, encoder.channels) == (24, 3, 4, 1)
    assert encoder.native_grid == (4, 6) and encoder.vit.blocks[0].attn.num_heads == 3
    assert not encoder.vit.pos_embed.requires_grad
    assert [block.drop_path1.drop_prob for block in encoder.vit.blocks[1:]] == pytest.approx([0.05, 0.1])
    alike = config.model_copy(update={"drop_path_uniform": True}).build((16, 24))
    rates = [(block.drop_path1.drop_prob, block.drop_path2.drop_prob) for block in alike.vit.blocks]
    assert rates == [(0.1, 0.1)] * 3 and alike.vit.state_dict().keys() == encoder.vit.state_dict().keys()
    learned = EncoderConfig(model=CLASS_TOKEN, positions="learned", width=24, depth=1, heads=3).build((32, 32))
    assert learned.vit.pos_embed.requires_grad
    dinov2 = EncoderConfig(model=CLASS_TOKEN, width=24, depth=1, heads=3, init_values=1e-5, registers=4).build((32, 32))
    assert dinov2.num_prefix == 5 and dinov2.vit.pos_embed.shape == (1, 4, 24)
    assert dinov2.vit.blocks[0].ls1.gamma.eq(1e-5).all()
