"""A timm backbone and a linear head on features of its last blocks: a sweep's choice where timm has no such head."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from unlabeled.backbone.encoder import Tokens
from unlabeled.backbone.folder import read_weights
from unlabeled.backbone.pooling import FeatureSpec, parts, read


class Headed(nn.Module):
    """Both as one network.

    Args:
        backbone: timm's, a ViT or a CNN.
        kind: features that the head reads.
        head: `weight` [classes, features] and `bias` [classes].
    """

    def __init__(self, backbone: Any, kind: FeatureSpec, head: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.backbone, self.blocks, self.pieces = backbone, kind.blocks, parts(kind)
        self.num_classes, width = head["weight"].shape
        self.head = nn.Linear(width, self.num_classes)
        self.head.load_state_dict(dict(head))

    @classmethod
    def of(cls, backbone: Any, config: Mapping[str, Any], export: Path) -> Headed:
        """With the head beside the backbone in an export, of which `config` is the `linear_head` section."""
        head = read_weights(export / "heads.safetensors")
        return cls(backbone, FeatureSpec(config["pool"], config["blocks"]), head).eval()

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, C, H, W] to logits [B, classes]."""
        return self.head(read(self._tokens(images), self.pieces))

    def _tokens(self, images: Tensor) -> list[Tokens]:
        """Of the last blocks, by timm's own reading; of a CNN the last map alone."""
        if not hasattr(self.backbone, "get_intermediate_layers"):
            maps = self.backbone.forward_features(images)
            patches = maps.flatten(2).mT
            return [Tokens(patches[:, :0], patches, tuple(maps.shape[-2:]))]
        found = self.backbone.get_intermediate_layers(
            images, n=self.blocks, reshape=True, return_prefix_tokens=True, norm=True
        )
        return [Tokens(prefix, maps.flatten(2).mT, tuple(maps.shape[-2:])) for maps, prefix in found]
