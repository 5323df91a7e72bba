"""Attention maps of timm blocks, by plain products: the fused attention does not return them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def attention_map(attention: Any, x: Tensor, bias: Tensor | None = None, rotation: Tensor | None = None) -> Tensor:
    """Attention weights [B, heads, N, N]; the rows of each query sum to 1.

    Args:
        attention: a timm `Attention` of a ViT, with its norms, of a BEiT, with its biases, or of an Eva.
        x: its input [B, N, D], after the norm in front of it.
        bias: added to the products before the softmax [heads, N, N], beside the block's own relative positions.
        rotation: rotary positions of the patches, sines and cosines [patches, 2 D / heads], or of each head.
    """
    query, key = _queries_and_keys(attention, x)
    if rotation is not None:
        query, key = (_rotated(attention, tensor, rotation) for tensor in (query, key))
    if key.shape[1] < query.shape[1]:  # heads share keys
        key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    products = attention.scale * query @ key.transpose(-2, -1)
    if getattr(attention, "relative_position_bias_table", None) is not None:
        products = products + attention._get_rel_pos_bias()
    return (products if bias is None else products + bias).softmax(dim=-1)


def pool_map(pool: Any, x: Tensor) -> Tensor:
    """Weights [B, heads, N] that a timm `AttentionPoolLatent` gives tokens [B, N, D], the mean of its queries'; each
    head's sum to 1."""
    if pool.pos_embed is not None:
        x = x + pool.pos_embed
    query = pool.q(pool.latent).unflatten(-1, (pool.num_heads, -1)).transpose(1, 2)
    key, _ = pool.kv(x).unflatten(-1, (2, pool.num_heads, -1)).permute(2, 0, 3, 1, 4)
    products = pool.scale * pool.q_norm(query) @ pool.k_norm(key).transpose(-2, -1)
    return products.softmax(dim=-1).mean(2)


def _queries_and_keys(attention: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """Queries and keys [B, heads, N, D / heads], after their norms."""
    if getattr(attention, "q_proj", None) is not None:
        both = [linear(x).unflatten(-1, (-1, attention.head_dim)) for linear in (attention.q_proj, attention.k_proj)]
        query, key = (tensor.transpose(1, 2) for tensor in both)
    else:
        fused = attention.qkv(x)
        if getattr(attention, "q_bias", None) is not None:
            fused = fused + torch.cat([attention.q_bias, attention.k_bias, attention.v_bias])
        query, key, _ = fused.unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
    if hasattr(attention, "q_norm"):
        query, key = attention.q_norm(query), attention.k_norm(key)
    return query, key


def _rotated(attention: Any, x: Tensor, rotation: Tensor) -> Tensor:
    """Queries or keys with those of patches turned."""
    from timm.layers import apply_rot_embed_cat

    prefix = attention.num_prefix_tokens
    turned = apply_rot_embed_cat(x[:, :, prefix:], rotation, half=attention.rotate_half)
    return torch.cat([x[:, :, :prefix], turned], dim=2)
