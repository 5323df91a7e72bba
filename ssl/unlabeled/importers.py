"""Official weights into our export format. A `.pth` is read with `weights_only=True`: a pickle in it never runs."""

from __future__ import annotations

import argparse
import pickle
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from unlabeled.errors import UserError
from unlabeled.export import IMAGENET, timm_config, write_export

Tensors = dict[str, Tensor]

# MAE's three encoders: width -> (timm model, heads). The number of heads cannot be seen in the weights.
MAE_ENCODERS = {
    768: ("vit_base_patch16_224", 12),
    1024: ("vit_large_patch16_224", 16),
    1280: ("vit_huge_patch14_224", 16),
}

# official name of a decoder part -> ours; anchored at the front
MAE_DECODER = {
    "decoder_embed.": "decoder.embed.",
    "decoder_blocks.": "decoder.blocks.",
    "decoder_norm.": "decoder.norm.",
    "decoder_pred.": "decoder.head.",
    "decoder_pos_embed": "decoder.positions",
    "mask_token": "decoder.mask_token",
}


class Imported(NamedTuple):
    """Official weights under our names."""

    architecture: str
    arguments: dict[str, Any]
    encoder: Tensors
    heads: Tensors


def import_mae(file: Path, out: Path, heads: int | None = None) -> None:
    """Turn an official MAE checkpoint into an export folder, its decoder, if any, into `heads.safetensors`."""
    imported = read_mae(file, heads)
    width = imported.encoder["norm.weight"].shape[0]
    config = timm_config(imported.architecture, imported.arguments, width, IMAGENET)
    card = f"# MAE\n\nImported from the official checkpoint `{file.name}` (facebookresearch/mae). License: see there.\n"
    write_export(out, imported.encoder, config, card, imported.heads)


def read_mae(file: Path, heads: int | None = None) -> Imported:
    """Read a checkpoint of facebookresearch/mae: pretraining weights, with or without the decoder.

    Args:
        file: a `.pth` whose dict has `model`, or is the state dict itself.
        heads: attention heads of the encoder; None = the official number for its width.

    Raises:
        UserError: it cannot be read safely, or holds something else than an MAE.
    """
    weights = _read_pth(file)
    return convert_mae(weights.get("model", weights), heads)


def convert_mae(weights: Tensors, heads: int | None = None) -> Imported:
    """An official MAE state dict under our names."""
    named = {name: _decoder_name(name) for name in weights}
    encoder = {name: tensor for name, tensor in weights.items() if named[name] is None}
    decoder = {new: weights[name] for name, new in named.items() if new is not None}
    expected = {
        "cls_token",
        "pos_embed",
        "patch_embed.proj.weight",
        "patch_embed.proj.bias",
        "norm.weight",
        "norm.bias",
    }
    stray = {name for name in encoder if name not in expected and not name.startswith("blocks.")}
    if stray or expected - encoder.keys():
        raise UserError(f"not an MAE: missing {sorted(expected - encoder.keys())}, unexpected {sorted(stray)}")
    architecture, arguments = _architecture(encoder, heads)
    return Imported(architecture, arguments, encoder, decoder)


def _architecture(encoder: Tensors, heads: int | None) -> tuple[str, dict[str, Any]]:
    width, channels, patch, _ = encoder["patch_embed.proj.weight"].shape
    depth = 1 + max(int(name.split(".")[1]) for name in encoder if name.startswith("blocks."))
    side = round((encoder["pos_embed"].shape[1] - 1) ** 0.5) * patch
    model, official = MAE_ENCODERS.get(width, ("vit_base_patch16_224", None))
    number = heads or official
    if number is None:
        raise UserError(f"no official MAE is {width} wide, so its number of heads is unknown. Pass --heads.")
    arguments = {"img_size": [side, side], "patch_size": patch, "in_chans": channels}
    return model, {**arguments, "embed_dim": width, "depth": depth, "num_heads": number}


def _decoder_name(name: str) -> str | None:
    for old, new in MAE_DECODER.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    return None


def _read_pth(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise UserError(f"no file {file}")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # training checkpoints hold their arguments
            loaded = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise UserError(f"{file} is refused: it cannot be read as plain weights ({first})") from error
    if not isinstance(loaded, dict):
        raise UserError(f"{file} holds a {type(loaded).__name__}, expected a dict of weights")
    return loaded
