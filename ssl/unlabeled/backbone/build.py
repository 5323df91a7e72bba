"""Which timm models can be encoders, and the wrapper that fits each."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch

from unlabeled.nn.positions import Interpolation

if TYPE_CHECKING:
    from unlabeled.backbone.encoder import Encoder

PATCH_SIZE = 16
PROBE_SIDE = 256


@functools.cache
def stride_of(model: str) -> int:
    """Pixels per position of a timm CNN's last feature map, from a network without memory.

    Raises:
        ValueError: it is no CNN, or ends in more than the mean over its last feature map.
    """
    import timm

    refusal = (
        f"expected a timm vision transformer (vit_*, beit_*), or a CNN that ends in the mean over its last feature "
        f"map such as resnet50 or efficientnet_b0; found '{model}'"
    )
    try:
        with torch.device("meta"):
            cnn = timm.create_model(model, num_classes=0).eval()
            features = cnn.forward_features(torch.empty(1, 3, PROBE_SIDE, PROBE_SIDE)).detach()
            pooled = cnn.forward_head(features)
    except Exception as error:  # models of all kinds: whatever it is, this one cannot be used
        raise ValueError(refusal) from error
    is_map = features.ndim == 4 and features.shape[1] == cnn.num_features and PROBE_SIDE % features.shape[2] == 0
    # layers after the mean would not be seen by a method
    if not is_map or pooled.shape != (1, cnn.num_features) or pooled.requires_grad:
        raise ValueError(refusal)
    return PROBE_SIDE // features.shape[2]


def is_cnn(model: str) -> bool:
    """Whether a timm model, by name, is taken for a CNN: what is of no transformer family that we wrap."""
    return bool(model) and not model.startswith(("vit_", "deit", "beit"))


def is_beit(model: str) -> bool:
    """Whether a timm model, by name, is a BEiT: it may have relative positions, and cannot drop patches."""
    return model.startswith("beit")


def patch_size_of(model: str) -> int:
    """The patch size of a timm model where none is set. Raises ValueError when it cannot be wrapped."""
    return stride_of(model) if is_cnn(model) else PATCH_SIZE


def for_timm(model: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Those of an encoder's arguments that timm takes: a CNN is not told the image size."""
    return {key: value for key, value in arguments.items() if key != "img_size" or not is_cnn(model)}


def build_encoder(
    model: str, arguments: dict[str, Any], interpolation: Interpolation = "size", drop_path: float = 0.0
) -> Encoder:
    """A timm model, by name and arguments, in the wrapper that fits it.

    Args:
        model: its timm name.
        arguments: of `timm.create_model`, and the image size of a CNN too.
        interpolation: how positions reach other image sizes, see `resample`.
        drop_path: rate of the last block.

    Raises:
        ValueError: no wrapper does.
    """
    import timm

    from unlabeled.backbone.encoder import Encoder
    from unlabeled.backbone.families.beit import BeitEncoder
    from unlabeled.backbone.families.cnn import ConvEncoder

    if is_cnn(model):
        return ConvEncoder(timm_cnn(model, arguments, drop_path), model, arguments)
    if is_beit(model):
        # timm's default pools before the norm
        vit = timm.create_model(model, num_classes=0, global_pool="token", drop_path_rate=drop_path, **arguments)
        return BeitEncoder(vit, model, arguments, interpolation)
    vit = timm.create_model(model, num_classes=0, drop_path_rate=drop_path, **arguments)
    return Encoder(vit, model, arguments, interpolation)


def timm_cnn(model: str, arguments: dict[str, Any], drop_path: float, num_classes: int = 0) -> Any:
    """A timm CNN. Raises ValueError when it cannot drop paths and should."""
    import timm

    paths = {"drop_path_rate": drop_path} if drop_path else {}
    try:
        return timm.create_model(model, num_classes=num_classes, **paths, **for_timm(model, arguments))
    except TypeError as error:
        raise ValueError(
            f"timm cannot build '{model}' with drop_path {drop_path}: {error}. Set drop_path=0."
        ) from error
