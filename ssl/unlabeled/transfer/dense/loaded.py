"""Networks on a backbone as they are loaded: with the preprocessing of their export."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from typing_extensions import Self

from unlabeled.backbone.folder import Preprocessing
from unlabeled.data.batch.loader import Normalize
from unlabeled.data.view.placed import Seen, whole

Network = TypeVar("Network", bound=nn.Module)


class Loaded(Generic[Network]):
    """A network with the preprocessing of its export.

    Attributes:
        network: on normalised images.
        classes: names, by number.
        size: (height, width) that images are fitted into, pixels.
        how: normalisation and interpolation.
    """

    def __init__(self, network: Network, classes: Sequence[str], size: Sequence[int], how: Preprocessing) -> None:
        self.network, self.classes, self.how = network.eval(), tuple(classes), how
        self.size = (size[0], size[1])

    def fitted(self, images: Sequence[Tensor]) -> tuple[Tensor, list[Seen]]:
        """Uint8 images [C, H, W] of any sizes as the network takes them, [B, C, height, width] on its device, and how
        each was fitted."""
        device = next(self.network.parameters()).device
        interpolation: Any = self.how.interpolation
        seen = [whole(image, self.size, interpolation) for image in images]
        pixels = torch.stack([one.pixels for one in seen]).to(device)
        return Normalize(self.how.mean, self.how.std, device)(pixels), seen

    def to(self, device: str | torch.device) -> Self:
        """Move the network to a device; returns this."""
        self.network.to(device)
        return self
