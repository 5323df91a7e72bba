"""DINOv3 (facebookresearch/dinov3), ViTs and ConvNeXts: the released backbones, and `teacher_checkpoint.pth`.

Dropped are the mask token, the norm of local crops' class tokens, and the periods of the rotary positions, which follow
from the width of a head. No weight tells the eps of the norms: it is 1e-5, as in all released ViTs.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from unlabeled.backbone.importing import (
    OTHER,
    SIDE,
    Family,
    Imported,
    Key,
    Rule,
    Tensors,
    checked,
    depth_of,
    known_model,
    patch_shape,
    shape_of,
    sort,
    unwrap,
)
from unlabeled.backbone.resuming import mlp_ratio
from unlabeled.errors import UserError

FAMILY = Family(
    "a DINOv3",
    "facebookresearch/dinov3",
    {
        384: ("vit_small_patch16_dinov3", 6),
        768: ("vit_base_patch16_dinov3", 12),
        1024: ("vit_large_patch16_dinov3", 16),
        1280: ("vit_huge_plus_patch16_dinov3", 20),
        4096: ("vit_7b_patch16_dinov3", 32),
    },
    keys=("teacher",),
    default_key="teacher",
)

# of released widths, with a plain and with a gated MLP; others take ViT-B's or ViT-S+'s name
PLAIN = {384: "vit_small_patch16_dinov3", 768: "vit_base_patch16_dinov3", 1024: "vit_large_patch16_dinov3"}
GATED = {384: "vit_small_plus_patch16_dinov3", 1280: "vit_huge_plus_patch16_dinov3", 4096: "vit_7b_patch16_dinov3"}

# by the blocks of each stage, and the width of the first
CONVNEXTS: dict[tuple[tuple[int, ...], int], str] = {
    ((3, 3, 9, 3), 96): "convnext_tiny",
    ((3, 3, 27, 3), 96): "convnext_small",
    ((3, 3, 27, 3), 128): "convnext_base",
    ((3, 3, 27, 3), 192): "convnext_large",
}
STEM = "downsample_layers.0.0.weight"

FLAT = (
    Rule("mask_token", "dropped"),
    Rule("local_cls_norm.", "dropped"),
    Rule("storage_tokens", "encoder", "reg_token"),
    Rule("", "encoder"),
)
TEACHER = (
    *(rule._replace(official=f"backbone.{rule.official}") for rule in FLAT),
    Rule("dino_head.", "dropped"),
    Rule("ibot_head.", "dropped"),
)
NAMES = {"ls1.gamma": "gamma_1", "ls2.gamma": "gamma_2", "mlp.w1": "mlp.fc1_g", "mlp.w2": "mlp.fc1_x"}
NAMES |= {"mlp.w3": "mlp.fc2"}
PERIODS, BASE_PERIOD = "rope_embed.periods", 100.0
# of a ConvNeXt, in this order
RENAMED = (
    (r"^norm\.", "head.norm."),
    (r"^downsample_layers\.0\.", "stem."),
    (r"^downsample_layers\.(\d+)\.", r"stages.\1.downsample."),
    (r"^stages\.(\d+)\.(\d+)\.", r"stages.\1.blocks.\2."),
    (r"\.dwconv\.", ".conv_dw."),
    (r"\.pwconv(\d)\.", r".mlp.fc\1."),
)


def convert(checkpoint: dict[str, Any], heads: int | None, key: Key) -> Imported:
    """A DINOv3 as a timm Eva or ConvNeXt; its heads are not resumed."""
    full = "teacher" in checkpoint
    weights = unwrap(FAMILY, checkpoint["teacher"] if full else checkpoint)
    found, _ = sort(FAMILY, weights, TEACHER if full else FLAT)
    if STEM in found:
        return _convnext(found, heads)
    masks = {name for name in found if name.endswith(".bias_mask")}
    periods, encoder = found.pop(PERIODS, None), {_timm_name(n): t for n, t in found.items() if n not in masks}
    width, channels, patch = patch_shape(FAMILY, encoder)
    side = max(1, SIDE // patch) * patch
    _, number = known_model(FAMILY, width, _heads(periods, width, heads))
    depth, arguments = (
        depth_of(FAMILY, encoder),
        {"img_size": [side, side], "patch_size": patch, **_mlp(encoder, width)},
    )
    arguments |= {"in_chans": channels, "embed_dim": width, "depth": depth, "num_heads": number}
    arguments |= {"num_reg_tokens": shape_of(FAMILY, encoder, "reg_token", 3)[1] if "reg_token" in encoder else 0}
    arguments |= {} if (base := _base(periods)) == BASE_PERIOD else {"rope_temperature": base}
    encoder, biases = _biases(_filled(encoder, depth, width), bool(masks))
    model = _architecture(width, arguments["swiglu_mlp"], biases["qkv_bias"])
    return checked(FAMILY, model, {**arguments, **biases}, encoder, {})


def _convnext(found: Tensors, heads: int | None) -> Imported:
    """Its norm comes after pooling in both codes; officially it is there twice."""
    if heads is not None:
        raise UserError("a ConvNeXt has no attention heads. Leave out --heads.")
    width, channels, _, _ = shape_of(FAMILY, found, STEM, 4)
    blocks = tuple(len({n.split(".")[2] for n in found if n.startswith(f"stages.{i}.")}) for i in range(4))
    if (model := CONVNEXTS.get((blocks, width))) is None:
        known = ", ".join(CONVNEXTS.values())
        raise UserError(
            f"not {FAMILY.title}: a ConvNeXt of {width} channels with {blocks} blocks is none of {known}. {OTHER}"
        )
    encoder = {name: tensor for name, tensor in found.items() if not name.startswith("norms.3.")}
    for official, ours in RENAMED:
        encoder = {re.sub(official, ours, name): tensor for name, tensor in encoder.items()}
    return checked(FAMILY, model, {"img_size": [SIDE, SIDE], "in_chans": channels}, encoder, {})


def _architecture(width: int, gated: bool, biased: bool) -> str:
    """The timm model whose parts are the same, so that a recipe can name it."""
    import timm

    name = GATED.get(width, GATED[384]) if gated else PLAIN.get(width, PLAIN[768])
    return f"{name}_qkvb" if biased and timm.is_model(f"{name}_qkvb") else name


def _timm_name(name: str) -> str:
    block = re.fullmatch(r"(blocks\.\d+\.)(ls\d\.gamma|mlp\.w\d)(.*)", name)
    return name if block is None else f"{block[1]}{NAMES.get(block[2], block[2])}{block[3]}"


def _heads(periods: Tensor | None, width: int, told: int | None) -> int | None:
    """Attention heads; periods show their width, a quarter of it."""
    if periods is None:
        return told
    channels = 4 * shape_of(FAMILY, {PERIODS: periods}, PERIODS, 1)[0]
    if width % channels:
        raise UserError(
            f"not {FAMILY.title}: {PERIODS} are of heads of {channels} channels, the width is {width}. {OTHER}"
        )
    if told not in (None, width // channels):
        raise UserError(f"the rotary positions are of {width // channels} heads, found --heads {told}. Leave it out.")
    return width // channels


def _base(periods: Tensor | None) -> float:
    """The base of the periods base^(i / n), i from 0 to n - 1; they may have been rounded to half precision.

    Raises UserError when they are others: timm makes these alone.
    """
    if periods is None or len(periods) == 1:
        return BASE_PERIOD
    n, found = len(periods), periods.double()
    exact = float(found[-1]) ** (n / (n - 1))
    for base, tolerance in ((float(f"{exact:.6g}"), 1e-5), (float(f"{exact:.2g}"), 1e-2)):
        if torch.allclose(found, base ** (torch.arange(n) / n).double(), rtol=tolerance, atol=0.0):
            return base
    raise UserError(
        f"not {FAMILY.title} that timm has: {PERIODS} run from {found[0]:.4g} to {found[-1]:.4g}, expected "
        f"{BASE_PERIOD:g}^(i/n) or those of another base"
    )


def _mlp(encoder: Tensors, width: int) -> dict[str, Any]:
    """Arguments for the MLP: plain, or gated (SwiGLU), whose gate and value are two layers."""
    gated = "blocks.0.mlp.fc1_g.weight" in encoder
    hidden = shape_of(FAMILY, encoder, f"blocks.0.mlp.{'fc1_g' if gated else 'fc1'}.weight", 2)[0]
    align = {"swiglu_align_to": 1} if gated else {}
    return {"mlp_ratio": mlp_ratio(hidden, width), "swiglu_mlp": gated, **align}


def _filled(encoder: Tensors, depth: int, width: int) -> Tensors:
    """The same with the parts of blocks that official settings leave out and timm's network has, at values without
    effect: layer scales of 1, biases of 0."""
    added: Tensors = {}
    for block in (f"blocks.{number}." for number in range(depth)):
        added |= {f"{block}gamma_{i}": torch.ones(width) for i in (1, 2)}
        linears = [name for name in encoder if re.fullmatch(rf"{block}(attn\.proj|mlp\.\w+)\.weight", name)]
        added |= {f"{name.removesuffix('weight')}bias": torch.zeros(len(encoder[name])) for name in linears}
    return {**added, **encoder}


def _biases(encoder: Tensors, masked: bool) -> tuple[Tensors, dict[str, Any]]:
    """Weights with biases of queries and values as timm has them, and its arguments.

    Officially the bias of keys is masked to 0, and timm's block has none. Without a mask it counts, as angles depend on
    the place: then timm's other attention is taken, which has it.
    """
    biases = {name: tensor for name, tensor in encoder.items() if name.endswith(".attn.qkv.bias")}
    if not biases:
        return encoder, {"qkv_bias": False}
    if not masked and any(bias.chunk(3)[1].any() for bias in biases.values()):
        return encoder, {"qkv_bias": True, "attn_type": "rope"}
    split: Tensors = {}
    for name, bias in biases.items():
        query, _, value = bias.chunk(3)
        split |= {name.replace("qkv.bias", "q_bias"): query, name.replace("qkv.bias", "v_bias"): value}
    return {**{n: t for n, t in encoder.items() if n not in biases}, **split}, {"qkv_bias": True}
