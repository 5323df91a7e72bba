"""Convolutional networks that end in the mean over their last feature map: its positions are the patches."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from unlabeled.backbone.encoder import TIMM_POOLS, Encoder, Fill, Hidden, InTimm, Pool, Tokens
from unlabeled.nn.batchnorm import synchronise_
from unlabeled.nn.positions import Grid, Interpolation

PROBE_SIDE = 256
FIELDS = ("model", "patch_size", "channels", "drop_path")  # of recipes


class Cnn(Encoder):
    """Wraps a timm CNN, which takes images of any size. A patch is its total stride, though a position sees more.

    Patches can be neither dropped nor replaced, and there is no class token. Batch normalisation sees the global batch;
    names and values of the state dict are timm's.
    """

    sized: ClassVar[bool] = False
    resnet_heads: ClassVar[bool] = True
    noun: ClassVar[str] = "the CNN "
    blocks_in_python: ClassVar[str] = "blocks = [(model.forward_features(images).flatten(2).mT, None)]"
    pools = ("mean", "mean_max")
    has_class_token = False
    readable = 1

    def __init__(
        self, vit: nn.Module, model: str, arguments: Mapping[str, Any], interpolation: Interpolation = "size"
    ) -> None:
        super().__init__(vit, model, arguments, interpolation)
        self.patch_size, self.num_prefix = stride_of(model), 0
        rows, columns = (math.ceil(side / self.patch_size) for side in self.image_size)
        self.native_grid = rows, columns

    @classmethod
    def claims(cls, model: str) -> int:
        return 1

    @classmethod
    def patch_size_of(cls, model: str) -> int:
        return stride_of(model)

    @classmethod
    def check_field(cls, name: str, value: Any, changed: bool, others: Mapping[str, Any]) -> None:
        words = cls.in_words(others["model"])
        if name == "patch_size" and value != (stride := stride_of(others["model"])):
            raise ValueError(f"the patches of {words} are its stride, {stride}: leave it out, found {value}")
        if name not in FIELDS and changed:
            raise ValueError(f"{words} has no {name}: leave it out, found {value}")

    @classmethod
    def can_read(cls, pool: Pool, blocks: int) -> bool:
        return not pool.startswith("cls") and blocks == 1

    @classmethod
    def arguments_of(cls, fields: Mapping[str, Any]) -> dict[str, Any]:
        return {}

    @classmethod
    def arguments_from(cls, vit: Any) -> dict[str, Any]:
        return {"img_size": list(vit.pretrained_cfg["input_size"][1:])}

    @classmethod
    def create(cls, model: str, arguments: Mapping[str, Any], drop_path: float = 0.0, classes: int = 0) -> Any:
        import timm

        paths = {"drop_path_rate": drop_path} if drop_path else {}
        try:
            cnn = timm.create_model(model, num_classes=classes, **paths, **_sizeless(arguments))
        except TypeError as error:
            raise ValueError(
                f"timm cannot build '{model}' with drop_path {drop_path}: {error}. Set drop_path=0."
            ) from error
        synchronise_(cnn)
        return cnn

    @classmethod
    def in_timm(cls, model: str, arguments: Mapping[str, Any], pool: Pool | None) -> InTimm:
        grid = [side // stride_of(model) for side in arguments["img_size"]]
        return InTimm(arguments.get("global_pool", "avg"), _sizeless(arguments), grid)

    @classmethod
    def last_blocks(cls, model: Any, images: Tensor, blocks: int) -> list[Tokens]:
        return [_tokens(model.forward_features(images))]

    @property
    def image_size(self) -> Grid:
        height, width = self.arguments["img_size"]
        return height, width

    @functools.cached_property
    def _stages(self) -> dict[str, int]:
        return stages(self.vit)

    @property
    def depth(self) -> int:
        return max(self._stages.values())

    def forward(self, images: Tensor, drop: Hidden = None, replace: Hidden = None, fill: Fill = None) -> Tokens:
        if drop is not None or replace is not None:
            raise ValueError(f"the CNN '{self.model}' cannot drop or replace patches. Use a vit_* model.")
        return _tokens(self.vit.forward_features(images))

    def intermediate(self, images: Tensor, blocks: Sequence[int]) -> list[Tokens]:
        if any(block not in (-1, self.depth - 1) for block in blocks):
            raise ValueError(
                f"of the CNN '{self.model}' there is the last stage's map only, found blocks {list(blocks)}"
            )
        return [self(images)] * len(blocks)

    def layer_of(self, name: str) -> int:
        return self._stages.get(name, self.depth + 1)

    def classifier_arguments(self, pool: str, size: Grid, frozen: bool) -> dict[str, Any]:
        # timm's default is not spelt out, so that the arguments stay those of the encoder
        told = {} if pool == "mean" else {"global_pool": TIMM_POOLS[pool]}
        return {**self.arguments, **told, "img_size": list(size)}


def _tokens(maps: Tensor) -> Tokens:
    """The last feature map [B, D, rows, columns] as tokens."""
    patches = maps.flatten(2).transpose(1, 2)
    return Tokens(patches[:, :0], patches, (maps.shape[-2], maps.shape[-1]))


def _sizeless(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The same without the image size, which timm's CNNs do not take."""
    return {key: value for key, value in arguments.items() if key != "img_size"}


def stages(cnn: Any) -> dict[str, int]:
    """The stage of every parameter by name: 0 for the stem, 1 and up for stages, as timm groups them."""
    from timm.models import group_parameters

    groups: dict[str, int] = group_parameters(cnn, cnn.group_matcher(coarse=True), reverse=True)
    return groups


@functools.cache
def stride_of(model: str) -> int:
    """Pixels per position of a timm CNN's last feature map, from a network on the meta device. Raises ValueError when
    it is no CNN, or ends in more than the mean over its last feature map."""
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
    except Exception as error:  # whatever it was, the model cannot be used
        raise ValueError(refusal) from error
    is_map = features.ndim == 4 and features.shape[1] == cnn.num_features and PROBE_SIDE % features.shape[2] == 0
    # methods would not see layers after the mean
    if not is_map or pooled.shape != (1, cnn.num_features) or pooled.requires_grad:
        raise ValueError(refusal)
    return PROBE_SIDE // features.shape[2]
