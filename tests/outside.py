"""A researcher's package: a method, a mask, a source, a protocol and a strategy, each one file; and kinds that lie."""

from __future__ import annotations

from pathlib import Path

COLOUR = '''
"""Predict the mean colour of hidden patches."""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from unlabeled.backbone.config import EncoderConfig
from unlabeled.backbone.encoder import Hiding
from unlabeled.data.view.views import View
from unlabeled.nn.patches import patchify
from unlabeled.pretrain.method import Crops, MethodConfig, Output, PretrainMethod


class Config(MethodConfig, frozen=True):
    name: Literal["lab.colour"] = "lab.colour"
    view: View = Field(description="the crop and its mask")
    encoder: EncoderConfig = Field(EncoderConfig(), description="the network that is kept")

    crops: ClassVar[dict[str, Crops]] = {"view": Crops(masked=True)}
    hides: ClassVar[Hiding | None] = "replace"

    def build(self):
        return Colour(self.encoder.build(self.view.shape))


class Colour(PretrainMethod):
    def __init__(self, encoder):
        super().__init__()
        self.encoder, self.head = encoder, nn.Linear(encoder.width, encoder.channels)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, encoder.width))

    def forward(self, batch, progress):
        images, mask = batch.views[0].flat()
        tokens = self.encoder(images, replace=mask, fill=self.mask_token)
        colours = patchify(images, self.encoder.patch_size).unflatten(-1, (-1, self.encoder.channels)).mean(-2)
        error = (self.head(tokens.patches).float() - colours).square().mean(-1)
        loss = (error * mask.hidden).sum() / mask.hidden.sum()
        return Output(loss, {"error": loss.detach()}, tokens.pool("mean").detach())

    def exports(self):
        return {"encoder": self.encoder}
'''

STRIPES = '''
"""Hide every n-th column of patches."""

from typing import ClassVar, Literal

import torch

from unlabeled.data.mask import Mask
from unlabeled.nn.patches import PatchMask


class Config(Mask, frozen=True):
    equal_counts: ClassVar[bool] = True
    name: Literal["lab.stripes"] = "lab.stripes"
    every: int = 2

    def check(self, size, patch):
        if size[1] // patch % self.every:
            raise ValueError(f"expected a number of columns that {self.every} divides, found {size[1] // patch}")

    def draw(self, rng, grid, patch, place=None):
        column = torch.arange(grid[0] * grid[1]) % grid[1]
        hidden = column % self.every == int(rng.integers(self.every))
        return PatchMask(hidden, (~hidden).nonzero()[:, 0], hidden.nonzero()[:, 0])
'''

DOTS = '''
"""A dot on dark ground, in one of four corners."""

from typing import Literal

import numpy as np
import torch

from unlabeled.data.source import Source, SourceConfig


class Config(SourceConfig, frozen=True):
    name: Literal["lab.dots"] = "lab.dots"
    val: int = 20
    train: int = 42

    def source(self, split, index):
        return Dots(split, getattr(self, split))


class Dots(Source):
    def __init__(self, split, count):
        self.split, self.count = split, count
        self.labels, self.classes = np.arange(count, dtype=np.int64) % 4, ("a", "b", "c", "d")

    def __len__(self):
        return self.count

    def image(self, i):
        generator = torch.Generator().manual_seed(2 * i + (self.split == "val"))
        image = torch.randint(0, 60, (3, 16, 16), generator=generator, dtype=torch.uint8)
        row, column = divmod(i % 4, 2)
        image[:, 8 * row + 2 : 8 * row + 6, 8 * column + 2 : 8 * column + 6] += 150
        return image

    def key(self, i):
        return f"dots/{self.split}/{i}"

    def fingerprint(self):
        return f"{self.count:08x}{self.split == 'val':08x}"
'''

SPREAD = '''
"""The standard deviation of features."""

from typing import ClassVar, Literal

from unlabeled.evaluate.protocol import Pooled


class Config(Pooled, frozen=True):
    version: ClassVar[str] = "spread/1"
    unit: ClassVar[str] = "standard deviation"
    labels: ClassVar[bool] = False
    name: Literal["lab.spread"] = "lab.spread"

    def scores(self, bench):
        yield "", float(bench.features(self.pool, self.blocks)[1].x.std())
'''

SLOW = '''
"""Train the head alone, slowly."""

from typing import Literal

from unlabeled.transfer.strategy import Strategy


class Config(Strategy, frozen=True):
    name: Literal["lab.slow"] = "lab.slow"
    factor: float = 0.5

    def rate(self, below):
        return self.factor
'''

COUNTS = """
from typing import ClassVar, Literal

import torch

from unlabeled.data.mask import Mask
from unlabeled.nn.patches import PatchMask


class Config(Mask, frozen=True):
    equal_counts: ClassVar[bool] = True
    name: Literal["lies.counts"] = "lies.counts"

    def check(self, size, patch):
        pass

    def draw(self, rng, grid, patch, place=None):
        hidden = torch.arange(grid[0] * grid[1]) < int(rng.integers(1, grid[0] * grid[1]))
        return PatchMask(hidden, (~hidden).nonzero()[:, 0], hidden.nonzero()[:, 0])
"""

NOISE = """
from typing import Literal

import torch

from lab.dots import Config as Dots
from lab.dots import Dots as Images


class Config(Dots, frozen=True):
    name: Literal["lies.noise"] = "lies.noise"

    def source(self, split, index):
        return Noise(split, getattr(self, split))


class Noise(Images):
    def image(self, i):
        return torch.randint(0, 255, (3, 16, 16), dtype=torch.uint8)
"""

DRAWS = """
from typing import Literal

import torch

from lab.spread import Config as Spread


class Config(Spread, frozen=True):
    name: Literal["lies.draws"] = "lies.draws"
    version = "draws/1"

    def scores(self, bench):
        yield "", float(torch.rand(()))
"""

UNUSED = '''
"""Leave a layer out of the loss."""

from typing import Literal

from torch import nn

from lab.colour import Colour
from lab.colour import Config as Mean


class Config(Mean, frozen=True):
    name: Literal["lies.unused"] = "lies.unused"

    def build(self):
        method = super().build()
        method.unused = nn.Linear(2, 2)
        return method
'''

FILES = {"colour": COLOUR, "stripes": STRIPES, "dots": DOTS, "spread": SPREAD, "slow": SLOW}
LIES = {"counts": COUNTS, "noise": NOISE, "draws": DRAWS, "unused": UNUSED}

PRETRAIN = """
name: outside
data: {name: lab.dots}
method:
  name: lab.colour
  view: {size: 16, mask: {name: lab.stripes, every: 4}}
  encoder: {model: vit_tiny_patch16_224, patch_size: 4, width: 16, depth: 2, heads: 2}
optim: {name: adamw, base_lr: 0.03}
train: {epochs: 2, batch_size: 8}
evaluate: {knn: null, linear: null, mine: {name: lab.spread}, pool: mean, crop_pct: 1.0}
run: {device: cpu, workers: 0, log_every: 1, checkpoint_every: 3, keep_last: 100}
"""

DEMO = """
name: NAME
data: {name: shapes, size: 16}
method:
  name: PACKAGE.NAME
  view: {size: 16, mask: {name: random, ratio: 0.5}}
  encoder: {model: vit_tiny_patch16_224, patch_size: 4, width: 16, depth: 2, heads: 2}
optim: {name: adamw, base_lr: 0.03}
train: {epochs: 2, batch_size: 8}
"""

FINETUNE = """
name: outside_classifier
encoder: UNSET
data: {name: lab.dots}
task: {strategy: {name: lab.slow, factor: 0.25}, view: {size: 16}, crop_pct: 1.0}
optim: {name: adamw, base_lr: 0.03}
train: {epochs: 1, batch_size: 8}
run: {device: cpu, workers: 0, log_every: 1}
"""


def write(folder: Path) -> None:
    """The packages `lab` and `lies` in a folder, a file for each kind, and demo recipes beside the methods."""
    for package, files, method in (("lab", FILES, "colour"), ("lies", LIES, "unused")):
        (folder / package).mkdir(parents=True)
        for name, text in files.items():
            (folder / package / f"{name}.py").write_text(text, encoding="utf-8")
        demo = DEMO.replace("PACKAGE", package).replace("NAME", method)
        (folder / package / f"{method}_shapes.yaml").write_text(demo, encoding="utf-8")
