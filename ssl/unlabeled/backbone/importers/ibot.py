"""iBOT (bytedance/ibot): `checkpoint_teacher.pth` and full checkpoints, of which the teacher is taken by default."""

from __future__ import annotations

from typing import Any

import torch

from unlabeled.backbone.importers.dino import LEARNED, network, sorted_out, under
from unlabeled.backbone.importing import Family, Imported, Key, Tensors, checked, named, vit_arguments
from unlabeled.backbone.resuming import distill_section, encoder_section

FAMILY = Family(
    "an iBOT",
    "bytedance/ibot",
    {384: ("vit_small_patch16_224", 6), 768: ("vit_base_patch16_224", 12), 1024: ("vit_large_patch16_224", 16)},
    keys=("student", "teacher"),
    default_key="teacher",
)

MASK_TOKEN = "masked_embed"
FIRST, SECOND = "last_layer.", "last_layer2."  # without a bottleneck the second is `mlp2.`


def convert(checkpoint: dict[str, Any], heads: int | None, key: Key) -> Imported:
    """An iBOT; head weights come only with `key="teacher"`: resuming needs student and teacher."""
    encoder, rest = sorted_out(FAMILY, checkpoint, key, _resumed)
    encoder.pop(MASK_TOKEN, None)
    model, arguments = vit_arguments(FAMILY, encoder, heads)
    method = {"name": "ibot", "encoder": encoder_section(model, arguments, **LEARNED)}
    if rest:
        method |= {"head": distill_section(rest), **_patches(rest)}
    return checked(FAMILY, model, arguments, encoder, rest, method)


def _resumed(checkpoint: dict[str, Any]) -> Tensors:
    """Student with its mask token, both heads and both centres, under the names of `methods/ibot.py`."""
    student, head = network(FAMILY, checkpoint, "student")
    _, teacher_head = network(FAMILY, checkpoint, "teacher")
    loss = named(FAMILY, checkpoint.get("ibot_loss", {}))
    centres = {"centre.value": loss.get("center"), "patch_centre.value": loss.get("center2")}
    token = student.pop(MASK_TOKEN, None)
    return {
        **under("encoder.vit.", student),
        **({} if token is None else {"mask_token": token}),
        **under("head.", _patch_layer(head)),
        **under("teacher_head.", _patch_layer(teacher_head)),
        **{name: centre.flatten() for name, centre in centres.items() if centre is not None},
    }


def _patches(heads: Tensors) -> dict[str, Any]:
    """Fields of a recipe for the patches' own last layer, which the teacher may lack."""
    own = [name for name in heads if name.startswith("head.patch_layer.weight") and not name.endswith("_g")]
    if not own:
        return {}
    return {"patch_prototypes": len(heads[own[0]]), "teacher_shares": f"teacher_{own[0]}" not in heads}


def _patch_layer(head: Tensors) -> Tensors:
    """A last layer that class tokens and patches share, which is saved twice, once; otherwise the patches' under our
    name. By the official defaults only the teacher shares it."""
    head = {name.replace("mlp2.", SECOND, 1): tensor for name, tensor in head.items()}
    shared = all(torch.equal(t, head[n.replace(SECOND, FIRST)]) for n, t in head.items() if n.startswith(SECOND))
    kept = {name: tensor for name, tensor in head.items() if not (shared and name.startswith(SECOND))}
    return {name.replace(SECOND, "patch_layer."): tensor for name, tensor in kept.items()}
