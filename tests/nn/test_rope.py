"""Rotary positions: timm's features, patches dropped and replaced with the angles of their places, any image size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from naive_dinov3 import encode, weights
from timm.layers import AttentionRope
from torch import Tensor, nn

from unlabeled.backbone.config import EncoderConfig
from unlabeled.backbone.encoder import Encoder, Tokens
from unlabeled.backbone.families.rope import Rope
from unlabeled.backbone.folder import IMAGENET, export_encoder
from unlabeled.backbone.importing import read
from unlabeled.backbone.weights import fitted, load_encoder
from unlabeled.data.masks.random import Config as RandomMask
from unlabeled.errors import UserError
from unlabeled.nn.attention import attention_map
from unlabeled.nn.patches import PatchMask

PATCH, PE = 8, "vit_pe_core_tiny_patch16_384"
# what is special about each
MODELS = {
    "vit_small_patch16_dinov3": "no table, registers, halves turned",
    "vit_small_plus_patch16_dinov3_qkvb": "gated MLP, biases",
    "eva02_tiny_patch14_224": "table with a class token, norm after the mean",
    "eva02_base_patch14_224": "queries, keys and values apart",
    "vit_small_patch16_rope_mixed_ape_224": "angles of every block and head that are learnt, table without class token",
    "vit_medium_patch16_rope_reg1_gap_256": "no class token",
    PE: "norm in front, attention pool, columns first",
    "eva_giant_patch14_224": "a table alone",
}


def config(model: str, **more: Any) -> EncoderConfig:
    return EncoderConfig(**{"model": model, "patch_size": PATCH, "width": 32, "heads": 2, "depth": 2, **more})


def make(model: str, size: tuple[int, int] = (24, 40), pooled: bool = True, **more: Any) -> Encoder:
    """With nothing at zero or one, so that a part left out shows."""
    torch.manual_seed(0)
    encoder = config(model, **more).build(size, pooled=pooled).eval()
    for parameter in encoder.parameters():
        nn.init.normal_(parameter, std=0.2)
    return encoder


def timms(encoder: Encoder, size: tuple[int, int] | None = None, **more: Any) -> Any:
    """timm's network of the same weights, built as timm's users do."""
    size = size or encoder.image_size
    arguments = {name: value for name, value in encoder.arguments.items() if name != "img_size"}
    model = timm.create_model(encoder.model, num_classes=0, img_size=size, **arguments, **more).eval()
    model.load_state_dict(encoder.vit.state_dict())
    return model


def pictures(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def masks(batch: int, grid: tuple[int, int]) -> PatchMask:
    rng = np.random.default_rng(0)
    drawn = [RandomMask(ratio=0.6).draw(rng, grid, PATCH) for _ in range(batch)]
    return PatchMask.stack(drawn)


def joined(tokens: Tokens) -> Tensor:
    return torch.cat([tokens.prefix, tokens.patches], dim=1)


@pytest.mark.parametrize("model", MODELS)
@torch.no_grad()
def test_whole_pictures_are_encoded_and_pooled_as_timm_does(model: str) -> None:
    encoder, images = make(model, channels=1), pictures(2, 1, 24, 40)
    tokens, own = encoder(images), timms(encoder)
    expected = own.forward_features(images)
    torch.testing.assert_close(joined(tokens), expected, rtol=1e-5, atol=1e-5)
    pooled = own.forward_head(expected, pre_logits=True)
    torch.testing.assert_close(encoder.own(tokens), pooled, rtol=1e-5, atol=1e-5)
    if encoder.default_pool == "own":
        torch.testing.assert_close(encoder.feature(images), pooled, rtol=1e-5, atol=1e-5)
    assert (tokens.grid, encoder.native_grid, encoder.image_size) == ((3, 5), (3, 5), (24, 40))
    assert encoder.feature(images).shape == (2, encoder.feature_width)


def test_own_pooling_is_the_default_where_it_learns_or_takes_no_single_token() -> None:
    assert {
        model: make(model).default_pool for model in MODELS if "eva02_base" not in model and "qkvb" not in model
    } == {
        "vit_small_patch16_dinov3": "cls",
        "eva02_tiny_patch14_224": "own",
        "vit_small_patch16_rope_mixed_ape_224": "cls",
        "vit_medium_patch16_rope_reg1_gap_256": "own",
        "vit_pe_core_tiny_patch16_384": "own",
        "eva_giant_patch14_224": "own",
    }


# ---------------------------------------------------------------- hidden patches


@pytest.mark.parametrize("model", MODELS)
@torch.no_grad()
def test_drop_is_timms_patch_dropout(model: str) -> None:
    encoder, images, mask = make(model), pictures(3, 3, 24, 40), masks(3, (3, 5))
    keep, _ = mask.indices()

    class Keep(nn.Module):
        """timm's patch dropout with our choice."""

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            rows = keep.unsqueeze(-1).expand(-1, -1, x.shape[-1]) + encoder.num_prefix
            return torch.cat([x[:, : encoder.num_prefix], x.gather(1, rows)], dim=1), keep

    own = timms(encoder)
    own.patch_drop = Keep()
    tokens = encoder(images, drop=mask)
    torch.testing.assert_close(joined(tokens), own.forward_features(images), rtol=1e-5, atol=1e-5)
    assert tokens.patches.shape == (3, 6, 32) and tokens.grid == (3, 5)


@pytest.mark.parametrize("model", ["vit_small_patch16_dinov3", "vit_small_patch16_rope_mixed_ape_224"])
@torch.no_grad()
def test_what_is_dropped_does_not_matter(model: str) -> None:
    encoder, images, mask = make(model), pictures(2, 3, 24, 40), masks(2, (3, 5))
    hidden = mask.hidden.view(2, 1, 3, 5).repeat_interleave(PATCH, 2).repeat_interleave(PATCH, 3)
    spoilt = torch.where(hidden, torch.nan, images)
    assert torch.equal(joined(encoder(spoilt, drop=mask)), joined(encoder(images, drop=mask)))


@pytest.mark.parametrize("gated", [False, True])
@torch.no_grad()
def test_hidden_patches_against_a_plain_reference(gated: bool, tmp_path: Path) -> None:
    """MAE's and iBOT's ways, one picture at a time with the angles of its own patches, in double precision."""
    official = weights(gated=gated)
    torch.save(official, tmp_path / "official.pth")
    imported = read("dinov3", tmp_path / "official.pth")
    encoder = Rope.build(imported.architecture, {**imported.arguments, "img_size": [24, 40]})
    encoder.vit.load_state_dict(imported.encoder)
    images, mask, token = pictures(3, 3, 24, 40).double(), masks(3, (3, 5)), torch.randn(32).double()
    keep, _ = mask.indices()
    kept = joined(encoder.double().eval()(images, drop=mask))
    replaced = joined(encoder(images, replace=mask, fill=token.view(1, 1, -1)))
    for row, image in enumerate(images):
        expected = encode(official, image, 2, keep=keep[row].tolist())
        torch.testing.assert_close(kept[row], expected, rtol=1e-6, atol=1e-6)
        hidden = mask.hidden[row].nonzero().flatten().tolist()
        expected = encode(official, image, 2, hidden=hidden, token=token)
        torch.testing.assert_close(replaced[row], expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("model", MODELS)
@torch.no_grad()
def test_replace_puts_the_token_where_patches_are_hidden(model: str) -> None:
    encoder, images, mask = make(model), pictures(3, 3, 24, 40), masks(3, (3, 5))
    fill, own = torch.randn(1, 1, 32), timms(encoder)

    def replaced(_module: nn.Module, _inputs: Any, embedded: Tensor) -> Tensor:
        flat = embedded.reshape(3, 15, 32).clone()
        for row, patch in mask.hidden.nonzero().tolist():
            flat[row, patch] = fill[0, 0]
        return flat.view_as(embedded)

    own.patch_embed.register_forward_hook(replaced)
    expected = own.forward_features(images)
    torch.testing.assert_close(joined(encoder(images, replace=mask, fill=fill)), expected, rtol=1e-5, atol=1e-5)


# ---------------------------------------------------------------- sizes, blocks, attention


@pytest.mark.parametrize("model", MODELS)
@torch.no_grad()
def test_angles_follow_the_grid(model: str) -> None:
    """As timm's network of that size, whose table is ours stretched: bicubic, without antialiasing."""
    encoder, images = make(model), pictures(2, 3, 32, 16)
    weights = dict(encoder.vit.state_dict())
    if (table := weights.get("pos_embed")) is not None:
        prefix, patches = table[:, :-15], table[:, -15:]
        image = patches.reshape(1, 3, 5, 32).permute(0, 3, 1, 2)
        image = F.interpolate(image, size=(4, 2), mode="bicubic", align_corners=False, antialias=False)
        weights["pos_embed"] = torch.cat([prefix, image.permute(0, 2, 3, 1).reshape(1, -1, 32)], dim=1)
    arguments = {**encoder.arguments, "img_size": (32, 16)}
    own = timm.create_model(model, num_classes=0, **arguments).eval()
    own.load_state_dict(weights)
    torch.testing.assert_close(joined(encoder(images)), own.forward_features(images), rtol=1e-5, atol=1e-5)
    other = fitted(encoder, (32, 16), 3).eval()
    assert other.native_grid == (4, 2)
    torch.testing.assert_close(joined(other(images)), joined(encoder(images)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("model", MODELS)
@torch.no_grad()
def test_blocks_are_timms(model: str) -> None:
    encoder, images = make(model), pictures(2, 3, 24, 40)
    ours = encoder.intermediate(images, (0, -1))
    theirs = Rope.last_blocks(timms(encoder), images, 2)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(joined(one), joined(other), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(one.raw, other.raw, rtol=1e-5, atol=1e-5)
        assert one.grid == other.grid
    assert torch.equal(ours[-1].patches, encoder(images).patches)
    with pytest.raises(ValueError, match="has blocks 0 to 1, found 2"):
        encoder.intermediate(images, [2])


@pytest.mark.parametrize("model", MODELS)
@torch.no_grad()
def test_attention_maps_are_those_that_timm_multiplies_by(model: str) -> None:
    encoder, images = make(model), pictures(1, 3, 24, 40)
    block, inputs = timms(encoder).blocks[-1].attn, []
    encoder.vit.blocks[-1].attn.register_forward_hook(lambda _module, args, output: inputs.append((args[0], output)))
    joined(encoder(images))
    x, expected = inputs[0]
    maps = encoder.attention(images)
    torch.testing.assert_close(maps.sum(-1), torch.ones(maps.shape[:-1]))
    # the block's own output from our maps and its values
    qkv = block.qkv(x).chunk(3, dim=-1)[2] if block.qkv is not None else block.v_proj(x)
    if getattr(block, "v_bias", None) is not None:
        qkv = qkv + block.v_bias
    values = qkv.unflatten(-1, (-1, block.head_dim)).transpose(1, 2)
    mixed = (maps @ values).transpose(1, 2).flatten(2)
    torch.testing.assert_close(block.proj(block.norm(mixed)), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_attention_maps_of_heads_that_share_keys() -> None:
    attention, x = (
        AttentionRope(16, num_heads=4, num_kv_heads=2, qkv_fused=False, norm_layer=nn.LayerNorm),
        torch.randn(2, 5, 16),
    )
    values = attention.v_proj(x).unflatten(-1, (2, 4)).transpose(1, 2)[:, [0, 0, 1, 1]]
    mixed = (attention_map(attention, x) @ values).transpose(1, 2).flatten(2)
    torch.testing.assert_close(attention.proj(mixed), attention(x))


def test_attention_of_other_blocks_is_not_shown() -> None:
    with pytest.raises(ValueError, match="cannot be shown: its blocks are EvaBlockPostNorm"):
        make("eva02_enormous_patch14_clip_224").attention(pictures(1, 3, 24, 40))


@pytest.mark.parametrize("model", MODELS)
def test_depths_of_parameters_rise_from_the_patches_to_the_head(model: str) -> None:
    encoder = make(model)
    depths = {name: encoder.layer_of(name) for name, _ in encoder.vit.named_parameters()}
    first = ("cls_token", "reg_token", "pos_embed", "patch_embed.", "norm_pre.", "rope.")
    for name, depth in depths.items():
        block = int(name.split(".")[1]) + 1 if name.startswith("blocks.") else None
        assert depth == (block or (0 if name.startswith(first) else 3)), name
    # timm counts the stem, blocks and the rest in the same order
    grouped = timm.models.group_parameters(encoder.vit, encoder.vit.group_matcher(), reverse=True)
    both = [(grouped[name], depth) for name, depth in depths.items() if not name.startswith(("attn_pool", "rope."))]
    assert all((a < b) <= (x <= y) for a, x in both for b, y in both)


# ---------------------------------------------------------------- recipes and exports


@pytest.mark.parametrize("pooled", [True, False])
@pytest.mark.parametrize("model", MODELS)
@torch.no_grad()
def test_timm_loads_the_export(model: str, pooled: bool, tmp_path: Path) -> None:
    encoder, images = make(model, pooled=pooled), pictures(2, 3, 24, 40)
    assert encoder.pools_itself <= pooled, "what nobody reads is left out"
    export_encoder(tmp_path, encoder, IMAGENET, "", {})
    alone = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    torch.testing.assert_close(alone.forward_features(images), joined(encoder(images)), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(alone(images), encoder.feature(images), rtol=1e-5, atol=1e-5)
    again = load_encoder(tmp_path).eval()
    assert torch.equal(joined(again(images)), joined(encoder(images))) and again.image_size == (24, 40)
    if not Rope.sized(model):  # timm takes any size too
        other = pictures(1, 3, 16, 64)
        torch.testing.assert_close(alone.forward_features(other), joined(encoder(other)), rtol=1e-5, atol=1e-5)


def test_a_recipe_says_the_sizes() -> None:
    settings = {"mlp_ratio": 3, "registers": 2, "init_values": 0.1, "qkv_bias": False, "drop_path": 0.2}
    encoder = make("vit_small_plus_patch16_dinov3_qkvb", **settings)
    block = encoder.vit.blocks[-1]
    assert (
        block.mlp.fc2.in_features == 96
        and block.attn.q_bias is None
        and block.drop_path1.drop_prob == pytest.approx(0.2)
    )
    assert (encoder.num_prefix, encoder.depth, encoder.width) == (3, 2, 32)
    assert make("vit_small_patch16_dinov3").vit.pos_embed is None
    plain = make("eva02_tiny_patch14_224", positions="rope").vit
    assert plain.pos_embed is None and plain.rope is not None
    table = make("eva02_tiny_patch14_224", positions="learned").vit
    assert table.pos_embed is not None and table.rope is None
    assert EncoderConfig(model="eva02_tiny_patch14_224").patch_size == 14, "timm's own"


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"positions": "learned"}, "'vit_small_patch16_dinov3' has no learned positions: expected rope"),
        ({"width": 30, "heads": 3}, "rotary positions need heads of a multiple of 4 channels, found a width of 30"),
        ({"width": 32, "heads": 5}, "5 heads do not divide a width of 32"),
        ({"init_values": 0}, "always has a layer scale: set a positive value"),
        ({"model": "vit_base_patch16_sapiens2", "depth": 2}, "timm cannot build 'vit_base_patch16_sapiens2'"),
    ],
)
def test_impossible_encoders_are_refused(fields: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        EncoderConfig(**{"model": "vit_small_patch16_dinov3", "patch_size": PATCH, **fields}).build((24, 40))


@pytest.mark.parametrize("size", [(33, 32), (32, 36)])
def test_sizes_that_the_patch_does_not_divide_are_refused(size: tuple[int, int]) -> None:
    encoder = make("vit_small_patch16_dinov3")
    with pytest.raises(ValueError, match=f"patch size 8 does not divide images of {size[0]}x{size[1]} pixels"):
        encoder(pictures(1, 3, *size))
    with pytest.raises(ValueError, match="patch_size 8 does not divide an image of"):
        config("vit_small_patch16_dinov3").build(size)


def test_channels(tmp_path: Path) -> None:
    encoder, images = make("eva02_tiny_patch14_224"), pictures(1, 1, 24, 40)
    export_encoder(tmp_path, encoder, IMAGENET, "", {})
    grey = load_encoder(tmp_path, channels=1).eval()
    with torch.no_grad():
        expected = joined(encoder(images.expand(-1, 3, -1, -1)))
        torch.testing.assert_close(joined(grey(images)), expected, rtol=1e-4, atol=1e-5)
    four = make("eva02_tiny_patch14_224", channels=4)
    with pytest.raises(UserError, match="sees 4 channels, pictures have 3"):
        fitted(four, (24, 40), 3)


@pytest.mark.parametrize("scheme", ["mae", "mocov3", "dino", "simmim", "scratch"])
@pytest.mark.parametrize("model", ["vit_small_plus_patch16_dinov3_qkvb", "eva02_base_patch14_224", PE])
def test_every_scheme_reaches_every_matrix(model: str, scheme: Any) -> None:
    needed: dict[str, dict[str, Any]] = {
        "mocov3": {"freeze_patches": False},
        "simmim": {"mask_token": nn.Parameter(torch.zeros(1, 1, 32))},
    }
    settings = needed.get(scheme, {})
    torch.manual_seed(0)
    encoder = config(model).build((24, 40))
    before = {name: tensor.clone() for name, tensor in encoder.vit.state_dict().items()}
    encoder.initialise_(scheme, **settings)
    for name, tensor in encoder.vit.named_parameters():
        left = name.startswith(("rope.", "attn_pool.latent")) or (name == "reg_token" and scheme == "mocov3")
        if tensor.ndim > 1 and not left and not (name == "pos_embed" and scheme == "mocov3"):
            assert not torch.equal(tensor, before[name]), name
        elif name.endswith("bias") and not name.startswith("patch_embed"):
            assert not tensor.any(), name
    qkv = encoder.vit.blocks[0].attn
    weight = (qkv.qkv if qkv.qkv is not None else qkv.q_proj).weight
    if scheme in ("mae", "scratch"):
        assert weight.abs().max() <= (6 / sum(weight.shape)) ** 0.5
    if scheme == "mocov3":
        assert weight.abs().max() <= (6 / (32 + 32)) ** 0.5 and encoder.vit.norm_pre is not None
    if scheme == "simmim":
        deviations = [block.attn.proj.weight.std().item() for block in encoder.vit.blocks]
        assert deviations[0] / deviations[1] == pytest.approx(2**0.5, rel=0.1)
