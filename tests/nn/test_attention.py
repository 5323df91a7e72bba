"""Attention maps against what timm's fused attention makes of them, and against the formula spelt out."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from unlabeled.backbone.build import build_encoder
from unlabeled.backbone.config import EncoderConfig
from unlabeled.backbone.encoder import Encoder

SMALL: dict[str, Any] = {"embed_dim": 24, "num_heads": 2, "patch_size": 8, "img_size": (32, 24), "in_chans": 3}
RELATIVE = {"use_rel_pos_bias": True, "use_shared_rel_pos_bias": True, "use_abs_pos_emb": True}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("vit_tiny_patch16_224", {"depth": 3}),
    "one block": ("vit_tiny_patch16_224", {"depth": 1, "qkv_bias": False}),
    "norms": ("vit_tiny_patch16_224", {"depth": 2, "qk_norm": True}),
    "registers": ("vit_small_patch14_reg4_dinov2", {"depth": 2}),
    "shared table": ("beit_base_patch16_224", {"depth": 2, "use_rel_pos_bias": False, "use_shared_rel_pos_bias": True}),
    "all tables": ("beit_base_patch16_224", {"depth": 2, **RELATIVE}),
    "beit without biases": ("beit_base_patch16_224", {"depth": 2, "qkv_bias": False}),
}


def make(name: str) -> Encoder:
    model, changed = CASES[name]
    encoder = build_encoder(model, {**SMALL, **changed})
    torch.manual_seed(0)
    for parameter in encoder.parameters():
        nn.init.normal_(parameter, std=0.3)
    return encoder.eval()


def last_inputs(encoder: Encoder, images: Tensor) -> tuple[Tensor, Tensor]:
    """What timm feeds the last block's attention, and what that returns."""
    seen: list[tuple[Tensor, Tensor]] = []
    attention = encoder.vit.blocks[-1].attn
    attention.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0], output)))
    encoder.vit.forward_features(images)
    return seen[0]


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_values_weighted_by_the_map_are_what_fused_attention_returns(name: str) -> None:
    encoder, images = make(name), torch.randn(2, 3, 32, 24)
    x, output = last_inputs(encoder, images)
    attention, found = encoder.vit.blocks[-1].attn, encoder.attention(images)
    tokens = encoder.num_prefix + 12
    assert found.shape == (2, 2, tokens, tokens)
    torch.testing.assert_close(found.sum(-1), torch.ones(2, 2, tokens))

    # rows of the last third of qkv are the values; their biases
    weight = attention.qkv.weight[48:]
    separate = getattr(attention, "v_bias", None)
    bias = separate if attention.qkv.bias is None else attention.qkv.bias[48:]
    value = nn.functional.linear(x, weight, bias).unflatten(-1, (2, 12)).transpose(1, 2)
    torch.testing.assert_close(attention.proj((found @ value).transpose(1, 2).flatten(2)), output)


@torch.no_grad()
def test_a_row_by_hand() -> None:
    """Where the class token of the second head looks: a plain loop."""
    encoder, images = make("one block"), torch.randn(1, 3, 32, 24)
    x = last_inputs(encoder, images)[0][0]
    weight = encoder.vit.blocks[0].attn.qkv.weight
    query, keys = weight[12:24] @ x[0], x @ weight[36:48].T
    logits = torch.stack([query @ key / 12**0.5 for key in keys])
    torch.testing.assert_close(encoder.attention(images)[0, 1, 0], logits.exp() / logits.exp().sum())


def test_networks_without_known_maps_are_refused() -> None:
    with pytest.raises(ValueError, match="the network 'resnet18' has no attention"):
        EncoderConfig(model="resnet18").build((32, 32)).attention(torch.randn(1, 3, 32, 32))
    model = "vit_base_patch16_xp_224"
    assert type(timm.create_model(model, depth=1).blocks[0]).__name__ == "ParallelScalingBlock"
    with pytest.raises(ValueError, match="cannot be shown: its blocks are ParallelScalingBlock"):
        build_encoder(model, {**SMALL, "depth": 1}).attention(torch.randn(1, 3, 32, 24))
