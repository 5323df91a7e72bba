"""CrossMAE (TonyLianLong/CrossMAE): `model`, with or without the decoder."""

from __future__ import annotations

import re
from typing import Any

import torch

from unlabeled.backbone.encoder import Tensors
from unlabeled.backbone.importing import Family, Imported, Key, Rule, checked, sort, vit_arguments
from unlabeled.backbone.resuming import encoder_section, mlp_ratio

FAMILY = Family(
    "a CrossMAE",
    "TonyLianLong/CrossMAE",
    {384: ("vit_small_patch16_224", 6), 768: ("vit_base_patch16_224", 12), 1024: ("vit_large_patch16_224", 16)},
    pool="mean",
)

RULES = (
    Rule("decoder_blocks.", "heads", "decoder.blocks."),
    Rule("dec_norms.", "heads", "decoder.blocks."),
    Rule("decoder_norm.", "heads", "decoder.norm."),
    Rule("decoder_pred.", "heads", "decoder.head."),
    Rule("decoder_pos_embed", "heads", "decoder.positions"),
    Rule("mask_token", "heads", "decoder.mask_token"),
    Rule("wfm.linear.", "heads", "decoder.maps."),
    Rule("", "encoder"),
)
# inside a block of the decoder
PARTS = {"cross_attn.q": "query", "cross_attn.kv": "key_value", "cross_attn.proj": "proj"}


def convert(checkpoint: dict[str, Any], heads: int | None, key: Key) -> Imported:
    """A CrossMAE, with its decoder where the file has one. It has no last norm: it gets one as norms begin."""
    encoder, rest = sort(FAMILY, checkpoint.get("model", checkpoint), RULES)
    model, arguments = vit_arguments(FAMILY, encoder, heads)
    width = arguments["embed_dim"]
    encoder = {"norm.weight": torch.ones(width), "norm.bias": torch.zeros(width), **encoder}
    decoder = {in_block(name): tensor for name, tensor in rest.items()}
    if (table := decoder.get("decoder.positions")) is not None:
        decoder["decoder.positions"] = table[:, 1:]  # no query is the class token's
    method: dict[str, Any] = {"name": "mae", "encoder": encoder_section(model, arguments)}
    if "decoder.maps.weight" in decoder:
        method["decoder"] = _section(decoder, arguments["depth"])
    return checked(FAMILY, model, arguments, encoder, decoder, method)


def in_block(name: str) -> str:
    """Our name of a part of the decoder: a block's own norm of what it reads, and its layers."""
    name = re.sub(r"^(decoder\.blocks\.\d+\.)(weight|bias)$", r"\1memory_norm.\2", name)
    return re.sub(r"cross_attn\.\w+", lambda part: PARTS.get(part[0], part[0]), name)


def _section(decoder: Tensors, blocks: int) -> dict[str, Any]:
    """The `decoder:` of the weights. They show neither attention heads, officially 32 wide, nor which of the encoder's
    blocks are read, where these are not all."""
    depth, read = decoder["decoder.maps.weight"].shape
    hidden, width = decoder["decoder.blocks.0.mlp.fc1.weight"].shape
    section = {"name": "cross", "width": width, "depth": depth, "heads": max(1, width // 32)}
    every = {"use_input": read == blocks + 1} if read in (blocks, blocks + 1) else {}
    return {**section, "mlp_ratio": mlp_ratio(hidden, width), **every}
