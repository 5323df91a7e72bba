"""SimSiam (facebookresearch/simsiam), ResNets: the encoder; projector and predictor resume."""

from __future__ import annotations

from typing import Any

from unlabeled.backbone.importing import Family, Imported, Key, Rule, checked, resnet_arguments, sort, unwrap
from unlabeled.backbone.resuming import encoder_section, linears

FAMILY = Family("a SimSiam", "facebookresearch/simsiam", {}, interpolation="bilinear")

RULES = (
    Rule("encoder.fc.", "heads", "projector."),
    Rule("encoder.", "encoder"),
    Rule("predictor.", "heads", "predictor."),
)


def convert(checkpoint: dict[str, Any], heads: int | None, key: Key) -> Imported:
    encoder, rest = sort(FAMILY, unwrap(FAMILY, checkpoint.get("state_dict", checkpoint)), RULES)
    model, arguments = resnet_arguments(FAMILY, encoder, heads)
    projector, predictor = linears(rest, "projector."), linears(rest, "predictor.")
    method = {
        "name": "simsiam",
        "encoder": encoder_section(model, arguments),
        "hidden": len(projector[0]),
        "dim": len(projector[-1]),
        "projector_layers": len(projector),
        "predictor_hidden": len(predictor[0]),
    }
    return checked(FAMILY, model, arguments, encoder, rest, method)
