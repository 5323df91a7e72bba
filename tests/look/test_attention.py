"""Maps of where encoders look, against loops over single queries and keys in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from unlabeled.backbone.build import build_encoder
from unlabeled.backbone.encoder import Encoder
from unlabeled.errors import UserError
from unlabeled.look import attention

CLASS_TOKEN = "attention of the class token in the last block"
POOL = "attention of the pooling, which reads the last block"
PATCHES = "attention in the last block that a patch gets from all patches on average (there is no class token)"
SMALL: dict[str, Any] = {"embed_dim": 24, "num_heads": 3, "patch_size": 8, "img_size": (32, 24), "depth": 2}


def make(model: str, arguments: dict[str, Any]) -> Encoder:
    encoder = build_encoder(model, {**arguments, "in_chans": 3})
    torch.manual_seed(0)
    for parameter in encoder.parameters():
        nn.init.normal_(parameter, std=0.3)
    return encoder.double().train()


def images() -> Tensor:
    return torch.randn(2, 3, 32, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def weights(query: Tensor, key: Tensor) -> list[list[float]]:
    """Softmax of the scaled products of every query and key [N, D], by loops."""
    rows = []
    for q in query.tolist():
        products = [sum(a * b for a, b in zip(q, k, strict=True)) / math.sqrt(len(q)) for k in key.tolist()]
        powers = [math.exp(product - max(products)) for product in products]
        rows.append([power / sum(powers) for power in powers])
    return rows


def block_input(encoder: Encoder) -> Tensor:
    """What timm's own forward gives the last block's attention."""
    seen: list[Tensor] = []
    handle = encoder.vit.blocks[-1].attn.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        encoder.eval().vit.forward_features(images())
    handle.remove()
    return seen[0]


@pytest.mark.parametrize(
    ("model", "changed", "how"),
    [
        ("vit_tiny_patch16_224", {}, CLASS_TOKEN),
        ("vit_small_patch14_reg4_dinov2", {}, CLASS_TOKEN),
        ("vit_base_patch16_gap_224", {}, PATCHES),
    ],
)
def test_attention_is_that_of_the_loops(model: str, changed: dict[str, Any], how: str) -> None:
    encoder = make(model, {**SMALL, **changed})
    found = attention.of(encoder, images())
    assert encoder.training
    assert (found.how, found.names) == (how, ("mean", "head 1", "head 2", "head 3"))
    assert found.maps.shape == (2, 4, 4, 3)
    assert found.maps.dtype == torch.float32
    x, prefix = block_input(encoder), encoder.num_prefix
    for image in range(2):
        maps = []
        for head in range(3):
            query, key, _ = encoder.vit.blocks[-1].attn.qkv(x[image]).unflatten(1, (3, 3, 8))[:, :, head].unbind(1)
            rows = weights(query, key)
            if how == CLASS_TOKEN:
                maps.append(rows[0][prefix:])
            else:
                count = len(rows) - prefix
                maps.append([sum(row[prefix + patch] for row in rows[prefix:]) / count for patch in range(count)])
        mean = [sum(values) / 3 for values in zip(*maps, strict=True)]
        for shown, expected in zip(found.maps[image], [mean, *maps], strict=True):
            torch.testing.assert_close(shown.flatten().double(), torch.tensor(expected).double(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("model", "changed"),
    [("vit_base_patch16_siglip_224", {}), ("vit_base_patch16_siglip_gap_224", {"global_pool": "map"})],
)
def test_a_pooling_by_attention_shows_its_own_weights(model: str, changed: dict[str, Any]) -> None:
    encoder = make(model, {**SMALL, **changed})
    found = attention.of(encoder, images())
    assert found.how == POOL
    pool, tokens = encoder.vit.attn_pool, encoder.eval()(images())
    for image in range(2):
        query = pool.q(pool.latent)[0].unflatten(1, (3, 8))
        key = pool.kv(tokens.patches[image]).unflatten(1, (2, 3, 8))[:, 0]
        for head in range(3):
            expected = torch.tensor(weights(query[:, head], key[:, head])[0]).double()
            torch.testing.assert_close(found.maps[image, 1 + head].flatten().double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("size", "stage"), [((96, 128), -1), ((64, 96), -2), ((32, 32), -3)])
def test_a_cnn_shows_the_norms_of_its_last_map_with_enough_positions(size: tuple[int, int], stage: int) -> None:
    encoder = make("resnet10t", {"img_size": size})
    pictures = torch.randn(2, 3, *size, dtype=torch.float64)
    found = attention.of(encoder, pictures)
    assert found.names == ("norm",)
    assert ("the last map" in found.how) == (stage == -1)
    maps = encoder.eval().vit.forward_intermediates(pictures, intermediates_only=True)[stage]
    assert found.maps.shape == (2, 1, *maps.shape[2:]) and found.maps[0, 0].numel() >= attention.FEWEST
    for image, row, column in ((0, 0, 0), (1, 1, 2), (0, 1, 1)):
        expected = math.sqrt(sum(value * value for value in maps[image, :, row, column].tolist()))
        assert found.maps[image, 0, row, column].item() == pytest.approx(expected, rel=1e-5)


def test_a_vector_has_nothing_to_show() -> None:
    encoder = make("resnet10t", {"img_size": (4, 4)})
    with pytest.raises(UserError, match="no positions"):
        attention.of(encoder, torch.randn(1, 3, 4, 4, dtype=torch.float64))


def test_the_pool_map_is_what_timm_sums_values_with() -> None:
    pool = timm.layers.AttentionPoolLatent(
        24, num_heads=3, qk_norm=True, norm_layer=nn.LayerNorm, latent_len=1
    ).double()
    x = torch.randn(2, 5, 24, dtype=torch.float64)
    seen: list[Tensor] = []
    pool.proj.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    pool(x)
    from unlabeled.nn.attention import pool_map

    values = pool.kv(x).unflatten(2, (2, 3, 8))[:, :, 1].transpose(1, 2)  # [B, heads, N, D / heads]
    summed = (pool_map(pool, x).unsqueeze(2) @ values).transpose(1, 2).flatten(2)
    torch.testing.assert_close(summed, seen[0])
