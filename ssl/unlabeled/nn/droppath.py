"""Drop path that computes nothing for the images that it drops (DINOv2, section 5 "Efficient stochastic depth").

Usual drop path (Huang et al. 2016) computes a branch for every image and sets it to zero for some, each by its own
draw. Here a fixed share of the batch goes through the branch, drawn anew for each branch, and its result is added to
these images alone, scaled so that the mean over draws is the same.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor, nn

LEAST = 0.1  # rates up to here are dropped in the usual way, as officially: a copy of the rows costs more than it saves


def add_branch(x: Tensor, branch: Callable[[Tensor], Tensor], rate: float) -> Tensor:
    """x [B, N, D] with a branch added to a share 1 - rate of its images (official `layers/block.py`,
    `drop_add_residual_stochastic_depth`)."""
    count = max(1, int(len(x) * (1 - rate)))
    rows = torch.randperm(len(x), device=x.device)[:count]
    return x.index_add(0, rows, branch(x.index_select(0, rows)).to(x.dtype), alpha=len(x) / count)


def skip_dropped_(blocks: nn.Module) -> None:
    """Let timm's plain blocks with a rate above LEAST leave out the images that they drop; weights and names stay."""
    for block in blocks.children():
        if getattr(block.drop_path1, "drop_prob", 0.0) > LEAST:
            kind: Any = type(block)
            block.__class__ = _skipping(kind)


@cache
def _skipping(block: Any) -> type[nn.Module]:
    """A class of blocks with another forward, and the same name, by which FSDP wraps them."""
    return type(block.__name__, (block,), {"forward": _forward, "__module__": __name__})


def _forward(block: Any, x: Tensor) -> Tensor:
    if not block.training:
        return cast("Tensor", super(type(block), block).forward(x))
    x = add_branch(x, lambda kept: block.ls1(block.attn(block.norm1(kept))), block.drop_path1.drop_prob)
    return add_branch(x, lambda kept: block.ls2(block.mlp(block.norm2(kept))), block.drop_path2.drop_prob)
