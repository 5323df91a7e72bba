"""SwAV (facebookresearch/swav), ResNets: the encoder; projector and prototypes resume, the latter as unit vectors."""

from __future__ import annotations

from typing import Any

from torch.nn import functional as F

from unlabeled.backbone.importing import Family, Imported, Key, Rule, checked, resnet_arguments, sort, unwrap
from unlabeled.backbone.resuming import encoder_section

FAMILY = Family("a SwAV", "facebookresearch/swav", {}, interpolation="bilinear")

RULES = (
    Rule("projection_head.", "heads", "projector."),
    Rule("prototypes.", "heads", "prototypes."),
    Rule("", "encoder"),
)


def convert(checkpoint: dict[str, Any], heads: int | None, key: Key) -> Imported:
    encoder, rest = sort(FAMILY, unwrap(FAMILY, checkpoint.get("state_dict", checkpoint)), RULES)
    model, arguments = resnet_arguments(FAMILY, encoder, heads)
    method: dict[str, Any] = {"name": "swav", "encoder": encoder_section(model, arguments)}
    if "prototypes.weight" in rest:
        rest["prototypes.weight"] = F.normalize(rest["prototypes.weight"], dim=1)
        count, dim = rest["prototypes.weight"].shape
        method |= {"hidden": len(rest["projector.0.weight"]), "dim": dim, "prototypes": count}
    return checked(FAMILY, model, arguments, encoder, rest, method)
