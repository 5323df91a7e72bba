"""A user's module of networks, `nets`, and a module that must not be imported, `trap`."""

from __future__ import annotations

from pathlib import Path

NETS = '''
import torch
from torch import nn
from torchvision.models.resnet import BasicBlock, ResNet


class Cnn(nn.Module):
    def __init__(self, width=8, channels=3):
        super().__init__()
        self.stem = nn.Conv2d(channels, width, 3, 2, 1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        last = nn.Conv2d(width, 2 * width, 3, 2, 1, bias=False)
        self.body = nn.Sequential(last, nn.BatchNorm2d(2 * width), nn.ReLU())

    def forward(self, images):
        return self.body(self.norm(self.stem(images)).relu())


def cnn(**settings):
    return Cnn(**settings)


def other(width):
    return nn.Conv2d(3, width, 4, 4)


def resnet():
    network = ResNet(BasicBlock, [1, 1, 1, 1])
    network.layer4 = nn.Sequential(nn.Conv2d(256, 24, 3, 2, 1, bias=False), nn.BatchNorm2d(24), nn.ReLU())
    network.fc = nn.Linear(24, 5)
    return network


class Vit(nn.Module):
    """Positions for pictures of 32 pixels alone; its rates cannot be read without memory."""

    def __init__(self, width=16):
        super().__init__()
        depth = len([rate.item() for rate in torch.linspace(0, 0.1, 2)])
        self.cls = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(0.02 * torch.randn(1, 17, width))
        self.patches = nn.Conv2d(3, width, 8, 8)
        block = lambda: nn.TransformerEncoderLayer(width, 2, 2 * width, dropout=0.0, batch_first=True)
        self.blocks = nn.ModuleList(block() for _ in range(depth))

    def forward(self, images):
        x = self.patches(images).flatten(2).mT
        x = torch.cat([self.cls.expand(x.shape[0], -1, -1), x], 1) + self.positions
        for block in self.blocks:
            x = block(x)
        return {"tokens": x, "class": x[:, 0]}

    def group_matcher(self, coarse=False):
        return {"stem": r"^cls|positions|patches", "blocks": r"^blocks\\.(\\d+)"}


class Flat(nn.Sequential):
    """A vector of pictures of 32 pixels alone."""

    def __init__(self):
        last = nn.Linear(256, 6, bias=False)
        super().__init__(nn.Conv2d(3, 4, 4, 4), nn.Tanh(), nn.Flatten(), last, nn.BatchNorm1d(6))


class Odd(nn.Module):
    def __init__(self, kind="five"):
        super().__init__()
        self.kind, self.layer = kind, nn.Conv2d(3, 4, 4, 4)

    def forward(self, images):
        if self.kind == "stopped":
            with torch.no_grad():
                return self.layer(images)
        x = self.layer(images)
        if self.kind == "peeks" and x.mean().item() < 1e9:
            return x
        outputs = {"five": x[None], "list": [x, x.mean((2, 3))], "number": x.argmax(1)}
        return (outputs | {"moved": x.flatten(2).permute(2, 0, 1)})[self.kind]


NUMBER = 3


def nothing():
    return 3
'''


def write(folder: Path) -> None:
    """The two modules in a folder; `trap` leaves a file when it is imported."""
    (folder / "nets.py").write_text(NETS, encoding="utf-8")
    trap = f"import pathlib\npathlib.Path({str(folder / 'sprung')!r}).touch()\nfrom nets import cnn\n"
    (folder / "trap.py").write_text(trap, encoding="utf-8")
