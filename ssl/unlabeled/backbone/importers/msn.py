"""MSN (facebookresearch/msn), ViTs: the target network, or with `--key student` the encoder; heads are left out."""

from __future__ import annotations

from typing import Any

from unlabeled.backbone.importing import Family, Imported, Key, Rule, checked, some, sort, unwrap, vit_arguments
from unlabeled.errors import UserError

FAMILY = Family(
    "an MSN",
    "facebookresearch/msn",
    {384: ("vit_small_patch16_224", 6), 768: ("vit_base_patch16_224", 12), 1024: ("vit_large_patch16_224", 16)},
    keys=("student", "teacher"),
    default_key="teacher",
)

NAMES = {"teacher": "target_encoder", "student": "encoder"}
RULES = (Rule("fc.", "dropped"), Rule("pred.", "dropped"), Rule("", "encoder"))


def convert(checkpoint: dict[str, Any], heads: int | None, key: Key) -> Imported:
    if NAMES[key] not in checkpoint:
        raise UserError(f"the checkpoint holds {some(map(str, checkpoint))}, no {NAMES[key]}. Choose another --key.")
    encoder, _ = sort(FAMILY, unwrap(FAMILY, checkpoint[NAMES[key]]), RULES)
    model, arguments = vit_arguments(FAMILY, encoder, heads)
    return checked(FAMILY, model, arguments, encoder, {}, {})
