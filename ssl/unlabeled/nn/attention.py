"""Attention maps of timm blocks, by plain products: the fused attention does not return them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def attention_map(attention: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
    """Attention weights [B, heads, N, N]; the rows of each query sum to 1.

    Args:
        attention: a timm `Attention` of a ViT or a BEiT.
        x: its input [B, N, D], after the norm in front of it.
        bias: added to the products before the softmax [heads, N, N], beside the block's own relative positions.
    """
    query, key = _queries_and_keys(attention, x)
    products = attention.scale * query @ key.transpose(-2, -1)
    if getattr(attention, "relative_position_bias_table", None) is not None:
        products = products + attention._get_rel_pos_bias()
    return (products if bias is None else products + bias).softmax(dim=-1)


def _queries_and_keys(attention: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """Queries and keys, each [B, heads, N, D / heads], with the biases of a BEiT and the norms of a ViT."""
    both = attention.qkv(x)
    if getattr(attention, "q_bias", None) is not None:
        both = both + torch.cat([attention.q_bias, attention.k_bias, attention.v_bias])
    query, key, _ = both.unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
    if hasattr(attention, "q_norm"):
        query, key = attention.q_norm(query), attention.k_norm(key)
    return query, key
