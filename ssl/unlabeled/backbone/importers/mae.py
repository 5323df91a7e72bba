"""MAE (facebookresearch/mae): `model`, with or without the decoder."""

from __future__ import annotations

from typing import Any

from unlabeled.backbone.importing import Family, Imported, Key, Rule, checked, sort, vit_arguments

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
    return checked(FAMILY, *vit_arguments(FAMILY, encoder, heads), encoder, decoder)
