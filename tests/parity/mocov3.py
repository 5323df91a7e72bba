"""What the parity tests of MoCo v3 share."""

from __future__ import annotations

# official name -> ours; anchored at the front, the first that fits
RENAMES = {
    "base_encoder.head.": "projector.",
    "base_encoder.": "encoder.vit.",
    "momentum_encoder.head.": "teacher.projector.",
    "momentum_encoder.": "teacher.encoder.vit.",
}


def ours(name: str) -> str:
    for old, new in RENAMES.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name
