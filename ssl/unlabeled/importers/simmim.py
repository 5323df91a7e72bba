"""SimMIM's ViT (microsoft/SimMIM): `model` of a pretraining checkpoint, to a timm Beit.

The relative table stays shared by all blocks, as in pretraining: that resumes, and gives the same features. Fine-tuning
here copies it into every block, as officially. Swin is not imported.
"""

from __future__ import annotations

from typing import Any

from einops import rearrange
from torch import Tensor

from unlabeled.errors import UserError
from unlabeled.importers.reading import (
    Family,
    Imported,
    Key,
    Rule,
    block_arguments,
    checked,
    depth_of,
    patch_shape,
    sort,
)
from unlabeled.nn.beit import EXTRA, SHARED

FAMILY = Family("simmim", "a SimMIM ViT", "microsoft/SimMIM", {768: ("beit_base_patch16_224", 12)})

RULES = (
    Rule("encoder.rel_pos_bias.relative_position_index", "dropped"),
    Rule("encoder.mask_token", "heads", "mask_token"),
    Rule("encoder.", "encoder"),
    Rule("decoder.0.", "heads", "decoder.head."),
)


def convert(checkpoint: dict[str, Any], heads: int | None, key: Key) -> Imported:
    """An official SimMIM under our names."""
    encoder, rest = sort(FAMILY, checkpoint.get("model", checkpoint), RULES)
    width, channels, patch = patch_shape(FAMILY, encoder)
    if SHARED not in encoder:
        raise UserError(f"not {FAMILY.title}: missing {SHARED}. Only pretraining checkpoints of the ViT are imported.")
    offsets, number = encoder[SHARED].shape
    if heads not in (None, number):
        raise UserError(f"the relative positions are of {number} heads, found --heads {heads}. Leave it out.")
    side = (round((offsets - EXTRA) ** 0.5) + 1) // 2 * patch
    arguments = {
        "img_size": [side, side],
        "patch_size": patch,
        "in_chans": channels,
        "embed_dim": width,
        "depth": depth_of(encoder),
        "num_heads": number,
        **block_arguments(encoder, width),
        "use_rel_pos_bias": False,
        "use_shared_rel_pos_bias": True,
    }
    resumed = {name: _pixels(t, channels) if name.startswith("decoder.head.") else t for name, t in rest.items()}
    return checked(FAMILY, "beit_base_patch16_224", arguments, encoder, resumed)


def _pixels(head: Tensor, channels: int) -> Tensor:
    """Weight [C p p, D] or bias [C p p] of the 1x1 convolution [C p p, D, 1, 1]: rows from pixel shuffle's order
    (channel, row, column) to that of patches (row, column, channel)."""
    return rearrange(head.reshape(head.shape[:2]), "(c p) ... -> (p c) ...", c=channels)
