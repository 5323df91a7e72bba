"""What a racer is asked for, and what it must answer."""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from unlabeled.backbone.config import EncoderConfig
from unlabeled.backbone.folder import IMAGENET, export_encoder


@dataclass(frozen=True)
class Task:
    """The same for all.

    Attributes:
        pictures: a folder of pictures, in folders by class, which nobody looks at.
        count: how many there are.
        method: by our name.
        network: of timm and torchvision, by its name in both.
        size: of crops, pixels.
        batch: pictures in a step.
        epochs: passes over the pictures.
        seed: of weights and order.
        out: a folder for the run.
    """

    pictures: Path
    count: int
    method: str
    network: str
    size: int
    batch: int
    epochs: float
    seed: int
    out: Path


class Racer(ABC):
    """A program that pretrains, started as its users start it."""

    methods: ClassVar[tuple[str, ...]]  # by our names
    whole_epochs: ClassVar[bool] = True  # whether a run is a whole number of epochs

    @abstractmethod
    def command(self, python: Path, task: Task) -> list[str]:
        """The command line; `python` is the interpreter of its environment."""

    @abstractmethod
    def export(self, task: Task) -> Path:
        """The folder of an export, for one and the same evaluation."""


class Peer(Racer):
    """Another package. Its network begins as torchvision's, and sees pictures by ImageNet's statistics."""

    @abstractmethod
    def weights(self, task: Task) -> Mapping[str, Tensor]:
        """The weights of the network that it has learnt, by timm's names."""

    def export(self, task: Task) -> Path:
        folder = Path(f"{task.out}_export")
        encoder = EncoderConfig(model=task.network, zero_init=False).build((task.size, task.size))
        learnt, own = self.weights(task), encoder.vit.state_dict()
        encoder.vit.load_state_dict({name: learnt[name] for name in own})
        shutil.rmtree(folder, ignore_errors=True)
        export_encoder(folder, encoder, IMAGENET, "# what a peer has learnt\n", {})
        return folder


def load(file: Path) -> dict[str, Any]:
    """A checkpoint that is no program."""
    found: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    return found
