"""DINO (facebookresearch/dino), ViTs and ResNet-50: backbone files, and full checkpoints.

Of the two networks of a full checkpoint the teacher is taken by default.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from unlabeled.backbone.importing import (
    Family,
    Imported,
    Key,
    Rule,
    Tensors,
    any_arguments,
    checked,
    named,
    some,
    sort,
    unwrap,
)
from unlabeled.backbone.resuming import distill_section, encoder_section
from unlabeled.errors import UserError

FAMILY = Family(
    "a DINO",
    "facebookresearch/dino",
    {192: ("vit_tiny_patch16_224", 3), 384: ("vit_small_patch16_224", 6), 768: ("vit_base_patch16_224", 12)},
    keys=("student", "teacher"),
    default_key="teacher",
)

LEARNED = {"positions": "learned", "interpolation": "scale"}  # fields of a recipe's `encoder:`
NETWORK = (Rule("backbone.", "encoder"), Rule("head.", "heads"))


def convert(checkpoint: dict[str, Any], heads: int | None, key: Key) -> Imported:
    """A DINO; head weights come only with `key="teacher"`: resuming needs student and teacher."""
    encoder, rest = sorted_out(FAMILY, checkpoint, key, _resumed)
    model, arguments = any_arguments(FAMILY, encoder, heads)
    method = {
        "name": "dino",
        "encoder": encoder_section(model, arguments, **(LEARNED if "pos_embed" in encoder else {})),
        **({"head": distill_section(rest)} if rest else {}),
        "head_norm": any(name.endswith("running_mean") for name in rest if name.startswith("head.")),
    }
    return checked(FAMILY, model, arguments, encoder, rest, method)


def _resumed(checkpoint: dict[str, Any]) -> Tensors:
    """Student, both heads and the centre, under the names of `methods/dino.py`."""
    student, head = network(FAMILY, checkpoint, "student")
    _, teacher_head = network(FAMILY, checkpoint, "teacher")
    centre = named(FAMILY, checkpoint.get("dino_loss", {})).get("center")
    return {
        **under("encoder.vit.", student),
        **under("head.", head),
        **under("teacher_head.", teacher_head),
        **({} if centre is None else {"centre.value": centre.flatten()}),
    }


def sorted_out(
    family: Family, checkpoint: dict[str, Any], key: Key, resumed: Callable[[dict[str, Any]], Tensors]
) -> tuple[Tensors, Tensors]:
    """(encoder, the rest of the method as `resumed` reads it) of a backbone file or a full checkpoint."""
    if not {"student", "teacher"} & checkpoint.keys():
        return sort(family, checkpoint.get("state_dict", checkpoint), (Rule("", "encoder"),))[0], {}
    encoder, _ = network(family, checkpoint, key)
    return encoder, resumed(checkpoint) if key == "teacher" and "student" in checkpoint else {}


def network(family: Family, checkpoint: dict[str, Any], key: Key) -> tuple[Tensors, Tensors]:
    """(backbone, head) of one of the two networks; gain and direction of the last layer under torch's older names.

    Raises UserError when there is no such network.
    """
    if key not in checkpoint:
        raise UserError(f"the checkpoint holds {some(map(str, checkpoint))}, no {key}. Choose another --key.")
    backbone, head = sort(family, unwrap(family, checkpoint[key]), NETWORK)
    for new, old in (("original0", "weight_g"), ("original1", "weight_v")):
        head = {name.replace(f".parametrizations.weight.{new}", f".{old}"): tensor for name, tensor in head.items()}
    return backbone, head_names(head)


def head_names(head: Tensors) -> Tensors:
    """A head under our names: officially one linear layer alone is no sequence, and without a bottleneck the last layer
    is the MLP's."""
    if "mlp.weight" in head:
        head = {name.replace("mlp.", "mlp.0.", 1) if name.count(".") == 1 else name: t for name, t in head.items()}
    if any(name.startswith("last_layer.") for name in head):
        return head
    last = max((int(name.split(".")[1]) for name in head if name.startswith("mlp.")), default=0)
    return {name.replace(f"mlp.{last}.", "last_layer.", 1): tensor for name, tensor in head.items()}


def under(prefix: str, weights: Tensors) -> Tensors:
    """Weights with a prefix before every name."""
    return {f"{prefix}{name}": tensor for name, tensor in weights.items()}
