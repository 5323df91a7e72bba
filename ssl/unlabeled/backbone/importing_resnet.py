"""The architecture of ResNets under torchvision's names, which are timm's too, from their weights."""

from __future__ import annotations

from typing import Any

from unlabeled.backbone.importing import Family, Tensors, shape_of, vit_arguments
from unlabeled.errors import UserError

# (blocks of each stage, whether they have three convolutions)
LAYOUTS: dict[tuple[tuple[int, ...], bool], str] = {
    ((2, 2, 2, 2), False): "resnet18",
    ((3, 4, 6, 3), False): "resnet34",
    ((3, 4, 6, 3), True): "resnet50",
    ((3, 4, 23, 3), True): "resnet101",
    ((3, 8, 36, 3), True): "resnet152",
}
SIDE = 224


def any_arguments(family: Family, encoder: Tensors, heads: int | None) -> tuple[str, dict[str, Any]]:
    """(timm model, arguments) of the weights of a ViT or a ResNet.

    Raises:
        UserError: see `vit_arguments`; a ResNet's blocks are of no known model, or it is given attention heads.
    """
    if "layer1.0.conv1.weight" not in encoder:
        return vit_arguments(family, encoder, heads)
    if heads is not None:
        raise UserError("a ResNet has no attention heads. Leave out --heads.")
    stages = [{name.split(".")[1] for name in encoder if name.startswith(f"layer{i}.")} for i in range(1, 5)]
    blocks = tuple(map(len, stages))
    model = LAYOUTS.get((blocks, "layer1.0.conv3.weight" in encoder))
    if model is None or "conv1.weight" not in encoder:
        known = ", ".join(LAYOUTS.values())
        raise UserError(f"not {family.title}: a ResNet with stages of {blocks} blocks is none of {known}")
    return model, {"img_size": [SIDE, SIDE], "in_chans": shape_of(family, encoder, "conv1.weight", 4)[1]}
