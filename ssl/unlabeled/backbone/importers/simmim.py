"""SimMIM (microsoft/SimMIM): `model` of a pretraining checkpoint, its ViT to a timm Beit, its Swin to timm's.

Positions of the ViT are relative (`USE_SHARED_RPB`, `USE_RPB`), absolute (`USE_APE`) or both. A relative table stays
shared by all blocks, as in pretraining: that resumes, and gives the same features. Fine-tuning here copies it into
every block, as officially. A Swin officially merges tokens at the end of a stage, in timm at the beginning of the next.
"""

from __future__ import annotations

import re
from math import isqrt
from typing import Any

from einops import rearrange
from torch import Tensor

from unlabeled.backbone.families.beit import EXTRA, SHARED, TABLE
from unlabeled.backbone.importing import (
    Family,
    Imported,
    Key,
    Rule,
    Tensors,
    block_arguments,
    checked,
    depth_of,
    known_model,
    named,
    patch_shape,
    shape_of,
    sort,
)
from unlabeled.backbone.resuming import encoder_section
from unlabeled.errors import UserError

MODEL = "beit_base_patch16_224"
FAMILY = Family("a SimMIM ViT or Swin", "microsoft/SimMIM", {768: (MODEL, 12)}, pool="mean")

SWINS = {96: "swin_tiny_patch4_window7_224", 192: "swin_large_patch4_window7_224"}
SWIN = "swin_base_patch4_window7_224"  # of all other widths

MERGING = re.compile(r"^layers\.(\d+)\.downsample\.")
INDEX, MASK = ".relative_position_index", ".attn_mask"
OWN = f"blocks.0.attn.{TABLE}"

RULES = (
    Rule("encoder.mask_token", "heads", "mask_token"),
    Rule("encoder.", "encoder"),
    Rule("decoder.0.", "heads", "decoder.head."),
)


def convert(checkpoint: dict[str, Any], heads: int | None, key: Key) -> Imported:
    """A SimMIM ViT as a timm Beit, or its Swin, with the head."""
    weights = named(FAMILY, checkpoint.get("model", checkpoint))
    encoder, rest = sort(FAMILY, {n: t for n, t in weights.items() if not n.endswith((INDEX, MASK))}, RULES)
    if any(name.startswith("layers.") for name in encoder):
        if heads is not None:
            raise UserError(f"the relative positions of a Swin show its heads, found --heads {heads}. Leave it out.")
        return _swin(encoder, rest, {name: t for name, t in weights.items() if name.endswith(MASK)})
    width, channels, patch = patch_shape(FAMILY, encoder)
    cells, number = _positions(encoder, width, heads)
    side = cells * patch
    arguments = {"img_size": [side, side], "patch_size": patch, "in_chans": channels, "embed_dim": width}
    arguments |= {"depth": depth_of(FAMILY, encoder), "num_heads": number, **block_arguments(encoder, width)}
    arguments |= {} if "blocks.0.gamma_1" in encoder else {"init_values": 0.0}
    arguments |= {"use_abs_pos_emb": True} if "pos_embed" in encoder else {}
    arguments |= {"use_rel_pos_bias": OWN in encoder, "use_shared_rel_pos_bias": SHARED in encoder}
    method = {"name": "simmim", "encoder": encoder_section(MODEL, arguments, **_fields(arguments))}
    return checked(FAMILY, MODEL, arguments, encoder, _resumed(rest, channels), method)


def _fields(arguments: dict[str, Any]) -> dict[str, str]:
    """Fields of a recipe for the positions."""
    own, shared = arguments["use_rel_pos_bias"], arguments["use_shared_rel_pos_bias"]
    if not (own or shared):
        return {"positions": "learned"}
    tables = {"relative_tables": "both" if own and shared else "blocks"} if own else {}
    return {"positions": "relative_learned" if "use_abs_pos_emb" in arguments else "relative", **tables}


def _positions(encoder: Tensors, width: int, heads: int | None) -> tuple[int, int]:
    """(patches in a row, attention heads); a table of relative positions shows both."""
    table = encoder.get(SHARED, encoder.get(OWN))
    if table is None:
        if "pos_embed" not in encoder:
            raise UserError(
                f"not {FAMILY.title}: missing {SHARED} or pos_embed. Name the pretraining checkpoint of the ViT."
            )
        tokens = shape_of(FAMILY, encoder, "pos_embed", 3)[1]
        return round((tokens - 1) ** 0.5), known_model(FAMILY, width, heads)[1]
    offsets, number = shape_of(FAMILY, encoder, SHARED if SHARED in encoder else OWN, 2)
    if heads not in (None, number):
        raise UserError(f"the relative positions are of {number} heads, found --heads {heads}. Leave it out.")
    return (round(max(0, offsets - EXTRA) ** 0.5) + 1) // 2, number


def _swin(encoder: Tensors, rest: Tensors, masks: Tensors) -> Imported:
    """A Swin, its size from the `masks` of shifted windows; without any, the last stage is one window."""
    width, channels, patch, _ = shape_of(FAMILY, encoder, "patch_embed.proj.weight", 4)
    stages = [_stage(encoder, i) for i in range(len({n.split(".")[1] for n in encoder if n.startswith("layers.")}))]
    tables = [shape_of(FAMILY, stage, f"blocks.0.attn.{TABLE}", 2) for stage in stages]
    depths, heads = [depth_of(FAMILY, stage) for stage in stages], [number for _, number in tables]
    windows, last = [(isqrt(offsets) + 1) // 2 for offsets, _ in tables], len(stages) - 1

    counted = [(i, masks[name]) for i in range(last + 1) if (name := f"encoder.layers.{i}.blocks.1{MASK}") in masks]
    sides = [(windows[i] * isqrt(len(mask))) << i for i, mask in counted]
    tokens = sides[0] if sides else windows[-1] << last
    # a window is no larger than its map
    cut = all(window == min(max(windows), tokens >> i) for i, window in enumerate(windows))
    told = {"window_size": max(windows) if cut else [[window, window] for window in windows]}
    arguments = {"img_size": [tokens * patch] * 2, "patch_size": patch, "in_chans": channels, "embed_dim": width}
    arguments |= {"depths": depths, "num_heads": heads, **told, **block_arguments(stages[0], width)}

    model, more = SWINS.get(width, SWIN), {"depth": depths, **({"window": max(windows)} if cut else {})}
    method = {"name": "simmim", "encoder": encoder_section(model, {**arguments, "patch_size": patch << last}, **more)}
    encoder = {MERGING.sub(lambda found: f"layers.{int(found[1]) + 1}.downsample.", n): t for n, t in encoder.items()}
    return checked(FAMILY, model, arguments, encoder, _resumed(rest, channels), method)


def _stage(encoder: Tensors, number: int) -> Tensors:
    """Weights of one stage, by names within it."""
    prefix = f"layers.{number}."
    return {name.removeprefix(prefix): tensor for name, tensor in encoder.items() if name.startswith(prefix)}


def _resumed(rest: Tensors, channels: int) -> Tensors:
    """The head's rows in our order, and the mask token."""
    return {name: _pixels(t, channels) if name.startswith("decoder.head.") else t for name, t in rest.items()}


def _pixels(head: Tensor, channels: int) -> Tensor:
    """Weight [C p p, D] or bias [C p p] of the 1x1 convolution [C p p, D, 1, 1]: rows from pixel shuffle's order
    (channel, row, column) to that of patches (row, column, channel)."""
    return rearrange(head.reshape(head.shape[:2]), "(c p) ... -> (p c) ...", c=channels)
