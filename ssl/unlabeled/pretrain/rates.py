"""Learning rates of an encoder's parameters in pretraining."""

from __future__ import annotations

from unlabeled.backbone.encoder import Encoder


def layered(encoder: Encoder, name: str, decay: float, patch_embed: float) -> float:
    """Factor on the rate of a parameter `encoder.vit.*` or of a mask token: `decay` per layer below the top, and
    `patch_embed` on the patch embedding; registers are the top (DINOv2, official `param_groups.py`)."""
    top = encoder.depth + 1
    own = name.removeprefix("encoder.vit.")  # registers and the first norm learn otherwise than in fine-tuning
    layer = {"reg_token": top, "norm_pre.weight": 0, "norm_pre.bias": 0}.get(own, encoder.layer_of(own))
    return (patch_embed if ".patch_embed." in name else 1.0) * decay ** (top - layer)
