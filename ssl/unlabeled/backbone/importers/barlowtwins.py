"""Barlow Twins (facebookresearch/barlowtwins), ResNets: backbone files, full checkpoints whose projector resumes."""

from __future__ import annotations

from typing import Any

from unlabeled.backbone.importing import Family, Imported, Key, Rule, checked, resnet_arguments, sort, unwrap
from unlabeled.backbone.resuming import encoder_section, linears

FAMILY = Family("a Barlow Twins", "facebookresearch/barlowtwins", {}, interpolation="bilinear")

RULES = (
    Rule("backbone.", "encoder"),
    Rule("projector.", "heads", "projector."),
    Rule("bn.", "heads", "norm."),
)
BACKBONE = (Rule("", "encoder"),)


def convert(checkpoint: dict[str, Any], heads: int | None, key: Key) -> Imported:
    weights = unwrap(FAMILY, checkpoint.get("model", checkpoint))
    whole = any(name.startswith("backbone.") for name in weights)
    encoder, rest = sort(FAMILY, weights, RULES if whole else BACKBONE)
    model, arguments = resnet_arguments(FAMILY, encoder, heads)
    projector = linears(rest, "projector.")
    method: dict[str, Any] = {"name": "barlowtwins", "encoder": encoder_section(model, arguments)}
    if projector:
        method |= {"hidden": len(projector[0]), "dim": len(projector[-1]), "projector_layers": len(projector)}
    return checked(FAMILY, model, arguments, encoder, rest, method)
