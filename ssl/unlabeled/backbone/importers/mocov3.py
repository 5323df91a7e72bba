"""MoCo v3 (facebookresearch/moco-v3), ViTs and ResNets: the base encoder, or with `--key teacher` the momentum encoder.

ViT-S has 12 heads, unlike timm's. Positions are taken as they are stored: their order is not MAE's.
"""

from __future__ import annotations

from typing import Any

from unlabeled.backbone.importing import Family, Imported, Key, Rule, any_arguments, checked, sort, unwrap
from unlabeled.backbone.resuming import encoder_section, mlp_section

FAMILY = Family(
    "a MoCo v3",
    "facebookresearch/moco-v3",
    {384: ("vit_small_patch16_224", 12), 768: ("vit_base_patch16_224", 12)},
    keys=("student", "teacher"),
    default_key="student",
    interpolation="bilinear",
)

STUDENT = (
    Rule("base_encoder.head.", "heads", "projector."),
    Rule("base_encoder.fc.", "heads", "projector."),
    Rule("base_encoder.", "encoder"),
    Rule("predictor.", "heads", "predictor."),
    Rule("momentum_encoder.head.", "heads", "teacher.projector."),
    Rule("momentum_encoder.fc.", "heads", "teacher.projector."),
    Rule("momentum_encoder.", "heads", "teacher.encoder.vit."),
)
TEACHER = (
    Rule("momentum_encoder.head.", "dropped"),
    Rule("momentum_encoder.fc.", "dropped"),
    Rule("momentum_encoder.", "encoder"),
    Rule("base_encoder.", "dropped"),
    Rule("predictor.", "dropped"),
)


def convert(checkpoint: dict[str, Any], heads: int | None, key: Key) -> Imported:
    """A MoCo v3; head weights come only with the base encoder, from which pretraining resumes."""
    weights = unwrap(FAMILY, checkpoint.get("state_dict", checkpoint))
    encoder, rest = sort(FAMILY, weights, STUDENT if key == "student" else TEACHER)
    model, arguments = any_arguments(FAMILY, encoder, heads)
    positions = {"positions": "sincos_rows"} if "pos_embed" in encoder else {}
    method = {"name": "mocov3", "encoder": encoder_section(model, arguments, **positions)}
    if any(name.startswith("projector.") for name in rest):
        method |= mlp_section(rest)
    return checked(FAMILY, model, arguments, encoder, rest, method)
