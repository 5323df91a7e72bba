"""Attention maps of timm blocks, by plain products: the fused attention does not return them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def attention_map(attention: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
    """Attention weights [B, heads, N, N]; the rows of each query sum to 1.

    Args:
        attention: a timm `Attention` of a ViT, with its norms, or of a BEiT, with its biases.
        x: its input [B, N, D], after the norm in front of it.
        bias: added to the products before the softmax [heads, N, N], beside the block's own relative positions.
    """
    both = attention.qkv(x)
    if getattr(attention, "q_bias", None) is not None:
        both = both + torch.cat([attention.q_bias, attention.k_bias, attention.v_bias])
    query, key, _ = both.unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
    if hasattr(attention, "q_norm"):
        query, key = attention.q_norm(query), attention.k_norm(key)
    products = attention.scale * query @ key.transpose(-2, -1)
    if getattr(attention, "relative_position_bias_table", None) is not None:
        products = products + attention._get_rel_pos_bias()
    return (products if bias is None else products + bias).softmax(dim=-1)
