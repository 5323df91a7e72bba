"""Initialisation schemes of the papers, in place."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

# timm's names of the layers whose outputs blocks add to their inputs
OUTPUTS = ("proj", "fc2", "attn_out_proj", "mlp_out_proj")


def xavier_(module: nn.Module) -> None:
    """Linears Xavier uniform with zero bias, norms 1 and 0; a fused qkv is one [3D, D] matrix (MAE's code)."""
    _initialise_(module, nn.init.xavier_uniform_)


def truncated_normal_(module: nn.Module, std: float = 0.02) -> None:
    """Linears normal with standard deviation `std`, cut at +-2, and zero bias; norms 1 and 0 (DINO, iBOT)."""
    _initialise_(module, partial(nn.init.trunc_normal_, std=std))


def _initialise_(module: nn.Module, weight_: Callable[[Tensor], object], kinds: Any = nn.Linear) -> None:
    """Initialise the weights of linears, or other `kinds`, by `weight_`, their biases by 0, norms by 1 and 0."""
    for part in module.modules():
        if isinstance(part, kinds):
            weight_(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, nn.LayerNorm) and part.elementwise_affine:
            nn.init.ones_(part.weight)
            nn.init.zeros_(part.bias)


def xavier_patches_(convolution: nn.Conv2d) -> None:
    """Initialise a patch convolution as a linear map: Xavier uniform over [D, p * p * C]; bias by torch's default."""
    convolution.reset_parameters()
    nn.init.xavier_uniform_(convolution.weight.view(convolution.weight.shape[0], -1))


def mocov3_(vit: Any, freeze_patches: bool) -> None:
    """Initialise a ViT as MoCo v3 (official `vits.py`): separate Xavier matrices for queries, keys and values, a class
    token near zero, a uniform patch projection with zero bias, optionally frozen."""
    xavier_(vit)
    bound = math.sqrt(6 / (vit.embed_dim + vit.embed_dim))
    for name, part in vit.blocks.named_modules():
        if name.endswith(".qkv"):
            nn.init.uniform_(part.weight, -bound, bound)
    if vit.cls_token is not None:
        nn.init.normal_(vit.cls_token, std=1e-6)
    xavier_patches_(vit.patch_embed.proj)
    if vit.patch_embed.proj.bias is not None:
        nn.init.zeros_(vit.patch_embed.proj.bias)
    vit.patch_embed.proj.requires_grad_(not freeze_patches)


def distilled_vit_(vit: Any, class_token_std: float = 0.02) -> None:
    """Initialise a ViT as DINO: linears, positions and class token normal, patch convolution by torch's default.

    The class token's deviation is .02 in DINO and iBOT, 1e-6 in DINOv2, the registers' always 1e-6.
    """
    truncated_normal_(vit)
    vit.patch_embed.proj.reset_parameters()
    for token, std in ((vit.cls_token, class_token_std), (vit.reg_token, 1e-6)):
        if token is not None:
            nn.init.trunc_normal_(token, std=std)
    if vit.pos_embed is not None and vit.pos_embed.requires_grad:
        nn.init.trunc_normal_(vit.pos_embed, std=0.02)


def ijepa_(vit: Any) -> None:
    """Initialise a ViT as I-JEPA: linears and patch convolution normal with deviation .02, zero biases.

    Official `init_model`; it undoes the division by depth that the official class begins with.
    """
    _initialise_(vit, partial(nn.init.trunc_normal_, std=0.02), (nn.Linear, nn.Conv2d))


def mae_(vit: Any) -> None:
    """MAE's: Xavier everywhere, class token N(0, .02); learned positions N(0, .02)."""
    xavier_(vit)
    xavier_patches_(vit.patch_embed.proj)
    for token in (vit.cls_token, vit.reg_token, vit.pos_embed):
        if token is not None and token.requires_grad:
            nn.init.normal_(token, std=0.02)


def simmim_(vit: Any, mask_token: Tensor) -> None:
    """SimMIM's: linears, patches and tokens cut-normal; the outputs of block l / sqrt(2 l).

    Official `VisionTransformerForSimMIM`, whose cut reaches every module, and `fix_init_weight`. The relative table
    stays zero, fixed sine-cosine positions stay as they are.
    """
    _initialise_(vit, cut_normal_, (nn.Linear, nn.Conv2d))
    for name in ("cls_token", "reg_token", "pos_embed"):
        parameter = getattr(vit, name, None)
        if parameter is not None and parameter.requires_grad:
            cut_normal_(parameter)
    with torch.no_grad():
        for number, block in enumerate(vit.blocks, start=1):
            for name, part in block.named_modules():
                if name.rpartition(".")[2] in OUTPUTS:
                    part.weight.div_(math.sqrt(2 * number))
    cut_normal_(mask_token)


def cut_normal_(parameter: Tensor, std: float = 0.02) -> None:
    """Normal, cut at one standard deviation: the deviation becomes 0.54 std."""
    nn.init.trunc_normal_(parameter, std=std, a=-std, b=std)
