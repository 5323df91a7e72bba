"""MAE (facebookresearch/mae): `model`, with or without the decoder."""

from __future__ import annotations

from typing import Any

from unlabeled.backbone.importing import Family, Imported, Key, Rule, checked, sort, vit_arguments
from unlabeled.backbone.resuming import decoder_section, encoder_section

FAMILY = Family(
    "an MAE",
    "facebookresearch/mae",
    {768: ("vit_base_patch16_224", 12), 1024: ("vit_large_patch16_224", 16), 1280: ("vit_huge_patch14_224", 16)},
    pool="mean",
)

RULES = (
    Rule("decoder_embed.", "heads", "decoder.embed."),
    Rule("decoder_blocks.", "heads", "decoder.blocks."),
    Rule("decoder_norm.", "heads", "decoder.norm."),
    Rule("decoder_pred.", "heads", "decoder.head."),
    Rule("decoder_pos_embed", "heads", "decoder.positions"),
    Rule("mask_token", "heads", "decoder.mask_token"),
    Rule("", "encoder"),
)


def convert(checkpoint: dict[str, Any], heads: int | None, key: Key) -> Imported:
    """An MAE, with its decoder where the file has one."""
    encoder, decoder = sort(FAMILY, checkpoint.get("model", checkpoint), RULES)
    model, arguments = vit_arguments(FAMILY, encoder, heads)
    method = {"name": "mae", "encoder": encoder_section(model, arguments)}
    if "decoder.embed.weight" in decoder:
        method["decoder"] = decoder_section(decoder)
    return checked(FAMILY, model, arguments, encoder, decoder, method)
