"""The recipe fields that go on from an official checkpoint, as far as its weights show them."""

from __future__ import annotations

from collections.abc import Mapping
from math import gcd, inf, nextafter
from typing import Any

from torch import Tensor

from unlabeled.backbone.encoder import Tensors
from unlabeled.backbone.transformer import FIELDS, NAMES


def encoder_section(architecture: str, arguments: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """The recipe's `encoder:` of a timm model; `more` are fields that are no arguments of timm."""
    names = {field: NAMES.get(field, field) for field in FIELDS}
    told = {field: arguments[name] for field, name in names.items() if name in arguments}
    channels = {} if arguments["in_chans"] == 3 else {"channels": arguments["in_chans"]}
    return {"model": architecture, **told, **channels, **more}


def decoder_section(heads: Tensors) -> dict[str, Any]:
    """The `decoder:` of MAE's weights under our names. Weights do not show the attention heads: 16 officially."""
    width = len(heads["decoder.embed.weight"])
    depth = len({name.split(".")[2] for name in heads if name.startswith("decoder.blocks.")})
    ratio = mlp_ratio(len(heads["decoder.blocks.0.mlp.fc1.weight"]), width)
    return {"name": "self", "width": width, "depth": depth, "heads": gcd(16, width), "mlp_ratio": ratio}


def mlp_ratio(hidden: int, width: int) -> float:
    """The ratio whose product with the token width, rounded down as timm does, is the MLP's."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else nextafter(ratio, inf)


def mlp_section(heads: Tensors) -> dict[str, Any]:
    """MoCo v3's projector and predictor: widths, and numbers of linear layers."""
    projector, predictor = linears(heads, "projector."), linears(heads, "predictor.")
    hidden = [len(weight) for weight in (*projector[:-1], *predictor[:-1])]
    return {
        **({"hidden": hidden[0]} if hidden else {}),
        "dim": len(projector[-1]),
        "projector_layers": len(projector),
        "predictor_layers": len(predictor),
    }


def distill_section(heads: Tensors) -> dict[str, Any]:
    """The `head:` of a DINO's or iBOT's student. A gain of exactly 1 was kept there (official `norm_last_layer`)."""
    gains, layers = heads.get("head.last_layer.weight_g"), linears(heads, "head.mlp.")
    last = heads["head.last_layer.weight" if gains is None else "head.last_layer.weight_v"]
    return {
        "prototypes": len(last),
        **({"hidden": len(layers[0])} if len(layers) > int(gains is not None) else {}),
        "bottleneck": 0 if gains is None else last.shape[1],
        "layers": len(layers) + int(gains is None),
        "freeze_gain": gains is not None and bool((gains == 1).all()),
        "bias": "head.mlp.0.bias" in heads or not layers,
    }


def linears(heads: Tensors, prefix: str) -> list[Tensor]:
    """Weights of the linear layers whose names are a prefix and a number, in order."""
    found = {n.removeprefix(prefix).split(".")[0]: t for n, t in heads.items() if n.startswith(prefix) and t.ndim == 2}
    return [found[number] for number in sorted(found, key=int)]
