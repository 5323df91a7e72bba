"""Exports of detectors: a backbone that timm reads, its pyramid and heads beside it, and how they are put together.

The folder is that of any encoder, and is one for every command; `config.json` has a section `detector`, and
`heads.safetensors` the rest of the network.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import torch
from torch import Tensor

from unlabeled.backbone.encoder import Encoder, Tensors
from unlabeled.backbone.folder import Preprocessing, opened
from unlabeled.backbone.weights import load_encoder, preprocessing_of
from unlabeled.errors import UserError
from unlabeled.nn.modes import evaluating
from unlabeled.report.card import Made, detector_card
from unlabeled.transfer.dense.loaded import Loaded
from unlabeled.transfer.dense.sections import Section, fill_, section_of, write_section
from unlabeled.transfer.detection.backbone import Backbone
from unlabeled.transfer.detector import DETECTORS, Detected, Detector, DetectorConfig

ENCODER = "net.backbone.encoder."  # its parameters in a detector


class DetectorSection(Section, strict=True, frozen=True):
    """The section `detector` of a `config.json`."""

    settings: Annotated[DetectorConfig, DETECTORS]


def write_detector(
    folder: Path,
    encoder: Encoder,
    weights: tuple[Tensors, Tensors],
    config: DetectorConfig,
    prepared: Preprocessing,
    made: Made,
) -> None:
    """Write an export, see the module.

    Args:
        folder: for it.
        encoder: the backbone.
        weights: of the plain timm model, and of the whole detector.
        config: of the detector.
        prepared: how images are normalised and resized.
        made: for the card.

    Raises:
        UserError: it cannot be written.
    """
    card = detector_card(made, encoder.loading(encoder.model, encoder.arguments))
    write_section(folder, encoder, weights, ("detector", config), ENCODER, prepared, made, card)


class Found:
    """What a detector finds in one image.

    Attributes:
        boxes: [n, 4] left, top, right, bottom in pixels of the image, the surest first.
        scores: [n], 0 to 1.
        classes: [n], numbers of `names`.
        names: of the classes.
    """

    def __init__(self, found: Detected, names: Sequence[str]) -> None:
        self.boxes, self.scores, self.classes = found
        self.names = tuple(names)

    @property
    def labels(self) -> list[str]:
        """The name of the class of every box."""
        return [self.names[number] for number in self.classes.tolist()]

    def __len__(self) -> int:
        return len(self.scores)


class LoadedDetector(Loaded[Detector]):
    """A detector with the preprocessing of its export; see `load_detector`."""

    @torch.no_grad()
    def __call__(self, images: Sequence[Tensor], score: float = 0.0) -> list[Found]:
        """Find boxes in uint8 images [C, H, W] of any sizes, those of at least a score."""
        pixels, seen = self.fitted(images)
        with evaluating(self.network):
            found = [Detected(*(part.cpu() for part in one)) for one in self.network.detect(pixels)]
        sure = [Detected(*(part[one.scores >= score] for part in one)) for one in found]
        return [
            Found(one._replace(boxes=view.back(one.boxes)), self.classes) for one, view in zip(sure, seen, strict=True)
        ]


def load_detector(path: str | Path) -> LoadedDetector:
    """The detector of an export that `unlabeled finetune` wrote (task detect).

    Raises UserError when there is none, or weights and settings do not match.
    """
    folder, config = opened(path)
    if "detector" not in config:
        raise UserError(
            f"{folder} holds no detector. Take an export of task.name=detect, or load it with unlabeled.load."
        )
    section = section_of(folder, config, "detector", DetectorSection)
    height, width = section.size
    encoder = load_encoder(path, (height, width))
    backbone = Backbone(encoder, section.settings.channels, section.settings.finest)
    network = section.settings.build(backbone, len(section.label_names), seed=0)
    fill_(network, folder, "detector", ENCODER)
    return LoadedDetector(network, section.label_names, section.size, preprocessing_of(path))
