"""The narrow network of SwAV's official numbers."""

from __future__ import annotations

from torch import Tensor, nn


class Narrow(nn.Module):
    """A 3x3 convolution of stride 2, batch normalisation, ReLU; the mean over pixels is the encoder's feature."""

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, width, 3, 2, 1, bias=False)
        self.bn = nn.BatchNorm2d(width)

    def forward(self, images: Tensor) -> Tensor:
        x: Tensor = self.bn(self.conv(images)).relu()
        return x


def narrow(width: int, channels: int = 3) -> Narrow:
    return Narrow(width, channels)
