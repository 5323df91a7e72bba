"""SparK (keyu-tian/SparK): ResNets and ConvNeXts, backbone files under timm's or the official names, and checkpoints of
pretraining with the decoder."""

from __future__ import annotations

import re
from typing import Any

import torch

from unlabeled.backbone.importing import (
    LAYOUTS,
    OTHER,
    SIDE,
    Family,
    Imported,
    Key,
    Rule,
    Tensors,
    any_arguments,
    checked,
    shape_of,
    sort,
    unwrap,
)
from unlabeled.backbone.resuming import encoder_section
from unlabeled.errors import UserError
from unlabeled.nn.modes import without_values

FAMILY = Family("a SparK", "keyu-tian/SparK", {}, pool="mean")

# ConvNeXts by (channels of the first stage, blocks of each stage)
CONVNEXTS = {
    (96, (3, 3, 9, 3)): "convnext_tiny",
    (96, (3, 3, 27, 3)): "convnext_small",
    (128, (3, 3, 27, 3)): "convnext_base",
    (192, (3, 3, 27, 3)): "convnext_large",
}
OFFICIAL = "downsample_layers."  # how names of an official ConvNeXt begin

RULES = (
    Rule("sparse_encoder.sp_cnn.", "encoder"),
    Rule("dense_decoder.dec.", "heads", "decoder.blocks."),
    Rule("dense_decoder.proj.", "heads", "decoder.head."),
    Rule("densify_", "heads", "densify_"),
    Rule("mask_tokens.", "heads", "mask_tokens."),
    *(Rule(name, "dropped") for name in ("imn_m", "imn_s", "norm_black")),
    Rule("", "encoder"),
)
# our names of the decoder's parts
PARTS = (
    (r"\.up_sample\.", ".up."),
    (r"^(decoder\.blocks\.\d+)\.conv\.", r"\1.convolutions."),
    (r"^densify_norms\.(\d+)", r"decoder.densify.\1.norm"),
    (r"^densify_projs\.(\d+)", r"decoder.densify.\1.project"),
    (r"^mask_tokens\.(\d+)", r"decoder.densify.\1.token"),
)


def convert(checkpoint: dict[str, Any], heads: int | None, key: Key) -> Imported:
    """A SparK, with its decoder where the file has one."""
    encoder, decoder = sorted_out(checkpoint.get("module", checkpoint))
    if "layer1.0.conv1.weight" in encoder:
        model, arguments = any_arguments(FAMILY, encoder, heads)
    else:
        model, arguments, encoder = convnext(encoder, heads)
    method: dict[str, Any] = {"name": "spark", "encoder": encoder_section(model, arguments)}
    if decoder:
        width = shape_of(FAMILY, decoder, "decoder.blocks.0.up.weight", 4)[0]
        method["decoder"] = {"name": "unet", "width": width}
    return checked(FAMILY, model, arguments, encoder, decoder, method)


def sorted_out(weights: Any) -> tuple[Tensors, Tensors]:
    """(encoder under official names, decoder under ours)."""
    encoder, rest = sort(FAMILY, unwrap(FAMILY, weights), RULES)
    decoder = {our_name(name): tensor.flatten() if "mask_tokens" in name else tensor for name, tensor in rest.items()}
    return encoder, decoder


def our_name(name: str) -> str:
    """The name of a part of the decoder, after the rules."""
    for official, ours in PARTS:
        name = re.sub(official, ours, name)
    return name


def convnext(encoder: Tensors, heads: int | None) -> tuple[str, dict[str, Any], Tensors]:
    """(timm model, arguments, weights under timm's names) of a ConvNeXt.

    Raises UserError when it is none of the official ones, or is given attention heads.
    """
    if heads is not None:
        raise UserError("a ConvNeXt has no attention heads. Leave out --heads.")
    first = f"{OFFICIAL}0.0.weight" if f"{OFFICIAL}0.0.weight" in encoder else "stem.0.weight"
    width, channels, *_ = shape_of(FAMILY, encoder, first, 4)
    blocks = {tuple(re.findall(r"\d+", name)[:2]) for name in encoder if name.startswith("stages.") and "gamma" in name}
    depths = tuple(sum(stage == str(number) for stage, _ in blocks) for number in range(4))
    model = CONVNEXTS.get((width, depths))
    if model is None:
        known = ", ".join([*LAYOUTS.values(), *CONVNEXTS.values()])
        raise UserError(f"not a SparK: stages of {depths} blocks, {width} wide at first, are none of {known}. {OTHER}")
    arguments = {"img_size": [SIDE, SIDE], "in_chans": channels}
    return model, arguments, timm_names(encoder, model, {"in_chans": channels})


def timm_names(encoder: Tensors, model: str, arguments: dict[str, Any]) -> Tensors:
    """A ConvNeXt under timm's names, by timm's own rule; its last norm, which pretraining lacks, as timm begins it."""
    import timm
    from timm.models.convnext import checkpoint_filter_fn

    with without_values():
        network = timm.create_model(model, num_classes=0, **arguments)
    if any(name.startswith(OFFICIAL) for name in encoder):
        encoder = checkpoint_filter_fn(encoder, network)
    width = network.num_features
    return {"head.norm.weight": torch.ones(width), "head.norm.bias": torch.zeros(width), **encoder}
