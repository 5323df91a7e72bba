"""DINOv2 (facebookresearch/dinov2): the hub's backbones, with or without registers, and `teacher_checkpoint.pth`."""

from __future__ import annotations

import re
from typing import Any

from unlabeled.backbone.importing import (
    Family,
    Imported,
    Key,
    Rule,
    checked,
    shape_of,
    sort,
    unwrap,
    vit_arguments,
)
from unlabeled.errors import UserError

FAMILY = Family(
    "a DINOv2",
    "facebookresearch/dinov2",
    {
        384: ("vit_small_patch14_dinov2", 6),
        768: ("vit_base_patch14_dinov2", 12),
        1024: ("vit_large_patch14_dinov2", 16),
        1536: ("vit_giant_patch14_dinov2", 24),
    },
    keys=("teacher",),
    default_key="teacher",
)

FLAT = (Rule("mask_token", "dropped"), Rule("register_tokens", "encoder", "reg_token"), Rule("", "encoder"))
TEACHER = (
    *(rule._replace(official=f"backbone.{rule.official}") for rule in FLAT),
    Rule("dino_head.", "dropped"),
    Rule("ibot_head.", "dropped"),
)


def convert(checkpoint: dict[str, Any], heads: int | None, key: Key) -> Imported:
    """A DINOv2; its heads are not resumed."""
    full = "teacher" in checkpoint
    weights = unwrap(FAMILY, checkpoint["teacher"] if full else checkpoint)
    encoder, _ = sort(FAMILY, weights, TEACHER if full else FLAT)
    encoder = {_timm_name(name): tensor for name, tensor in encoder.items()}
    architecture, arguments = vit_arguments(FAMILY, encoder, heads)
    if any(".mlp.w12." in name for name in weights):  # official `ffn_layer: swiglufused`, of any size
        architecture = "vit_giant_patch14_dinov2"
    if "blocks.0.ls1.gamma" not in encoder:
        arguments["init_values"] = 0.0
    if "reg_token" in encoder:
        registers = {"reg_tokens": shape_of(FAMILY, encoder, "reg_token", 3)[1], "no_embed_class": True}
        architecture, arguments = architecture.replace("_dinov2", "_reg4_dinov2"), {**arguments, **registers}
        # beside registers timm has positions of patches only: the class token's is added to the token
        table = encoder["pos_embed"]
        if shape_of(FAMILY, encoder, "cls_token", 3) != (1, 1, table.shape[2]):
            raise UserError(f"not {FAMILY.title}: cls_token {list(encoder['cls_token'].shape)}, expected one token")
        encoder |= {"cls_token": encoder["cls_token"] + table[:, :1], "pos_embed": table[:, 1:]}
    return checked(FAMILY, architecture, arguments, encoder, {})


def _timm_name(name: str) -> str:
    """Without the number of a block's chunk, as blocks are numbered across chunks; with timm's names of SwiGLU."""
    name = re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", name)
    name = re.sub(r"^(blocks\.\d+\.mlp)\.w12\.", r"\1.fc1.", name)
    return re.sub(r"^(blocks\.\d+\.mlp)\.w3\.", r"\1.fc2.", name)
