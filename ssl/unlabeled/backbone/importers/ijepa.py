"""I-JEPA (facebookresearch/ijepa): full checkpoints, or one network's weights alone.

Of the two networks of a full checkpoint the target encoder is taken by default. They have no class token: the timm
models are the `vit_*_gap_*`.
"""

from __future__ import annotations

from typing import Any

from unlabeled.backbone.importing import Family, Imported, Key, Rule, Tensors, checked, sort, unwrap, vit_arguments
from unlabeled.backbone.resuming import encoder_section, mlp_ratio
from unlabeled.errors import UserError

FAMILY = Family(
    "an I-JEPA",
    "facebookresearch/ijepa",
    {
        192: ("vit_base_patch16_gap_224", 3),
        384: ("vit_base_patch16_gap_224", 6),
        768: ("vit_base_patch16_gap_224", 12),
        1024: ("vit_base_patch16_gap_224", 16),
        1280: ("vit_huge_patch14_gap_224", 16),
        1408: ("vit_giant_patch16_gap_224", 16),
    },
    keys=("student", "teacher"),
    default_key="teacher",
    interpolation="bilinear",
    pool="mean",
)

NETWORKS = {"student": "encoder", "teacher": "target_encoder"}
ENCODER = (Rule("", "encoder"),)
PREDICTOR = (
    Rule("predictor_embed.", "heads", "predictor.embed."),
    Rule("predictor_blocks.", "heads", "predictor.blocks."),
    Rule("predictor_norm.", "heads", "predictor.norm."),
    Rule("predictor_proj.", "heads", "predictor.head."),
    Rule("predictor_pos_embed", "heads", "predictor.positions"),
    Rule("mask_token", "heads", "predictor.mask_token"),
)


def convert(checkpoint: dict[str, Any], heads: int | None, key: Key) -> Imported:
    """An I-JEPA; the student and the predictor come only with `key="teacher"`: resuming needs both encoders."""
    full = bool(set(NETWORKS.values()) & checkpoint.keys())
    if full and NETWORKS[key] not in checkpoint:
        raise UserError(f"the checkpoint holds no {NETWORKS[key]}. Choose another --key.")
    encoder, _ = sort(FAMILY, unwrap(FAMILY, checkpoint[NETWORKS[key]] if full else checkpoint), ENCODER)
    model, arguments = vit_arguments(FAMILY, encoder, heads)
    method: dict[str, Any] = {"name": "ijepa", "encoder": encoder_section(model, arguments)}
    rest: Tensors = {}
    if key == "teacher" and {"encoder", "predictor"} <= checkpoint.keys():
        _, rest = sort(FAMILY, unwrap(FAMILY, checkpoint["predictor"]), PREDICTOR)
        method["predictor"] = _section(rest)
        rest |= {f"encoder.vit.{name}": tensor for name, tensor in unwrap(FAMILY, checkpoint["encoder"]).items()}
    return checked(FAMILY, model, arguments, encoder, rest, method)


def _section(heads: Tensors) -> dict[str, Any]:
    """The recipe's `predictor:`; officially it has as many attention heads as the encoder."""
    width = len(heads["predictor.embed.weight"])
    depth = len({name.split(".")[2] for name in heads if name.startswith("predictor.blocks.")})
    ratio = mlp_ratio(len(heads["predictor.blocks.0.mlp.fc1.weight"]), width)
    return {"width": width, "depth": depth, "mlp_ratio": ratio}
