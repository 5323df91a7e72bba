"""Exports of detectors: a backbone that timm reads, its pyramid and heads beside it, and how they are put together.

The folder is that of any encoder, and is one for every command; `config.json` has a section `detector`, and
`heads.safetensors` the rest of the network.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, Field
from torch import Tensor

from unlabeled.backbone.encoder import Encoder, Tensors
from unlabeled.backbone.folder import Preprocessing, opened
from unlabeled.backbone.folder_config import Names, Side
from unlabeled.backbone.weights import load_encoder, preprocessing_of
from unlabeled.data.batch.loader import Normalize
from unlabeled.data.view.placed import whole
from unlabeled.errors import UserError
from unlabeled.nn.modes import evaluating
from unlabeled.report.card import Made, detector_card
from unlabeled.transfer.dense.sections import fill_, section_of, write_section
from unlabeled.transfer.detection.backbone import Backbone
from unlabeled.transfer.detector import DETECTORS, Detected, Detector, DetectorConfig

ENCODER = "net.backbone.encoder."  # its parameters in a detector


class Section(BaseModel, strict=True, frozen=True):
    """The section `detector` of a `config.json`."""

    settings: Annotated[DetectorConfig, DETECTORS]
    label_names: Names
    size: Annotated[list[Side], Field(min_length=2, max_length=2)]


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
    content = {
        "settings": config.model_dump(mode="json"),
        "label_names": list(made.classes),
        "size": list(encoder.image_size),
    }
    card = detector_card(made, encoder.loading(encoder.model, encoder.arguments))
    write_section(folder, encoder, weights, ("detector", content), ENCODER, prepared, card)


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


class LoadedDetector:
    """A detector with the preprocessing of its export; see `load_detector`.

    Attributes:
        network: from normalised images to boxes.
        classes: names, by number.
        size: (height, width) that images are fitted into, pixels.
        how: normalisation and interpolation.
    """

    def __init__(self, network: Detector, classes: Sequence[str], size: Sequence[int], how: Preprocessing) -> None:
        self.network, self.classes, self.how = network.eval(), tuple(classes), how
        self.size = (size[0], size[1])

    @torch.no_grad()
    def __call__(self, images: Sequence[Tensor], score: float = 0.0) -> list[Found]:
        """Find boxes in uint8 images [C, H, W] of any sizes, those of at least a score."""
        device = next(self.network.parameters()).device
        interpolation: Any = self.how.interpolation
        seen = [whole(image, self.size, interpolation) for image in images]
        pixels = Normalize(self.how.mean, self.how.std, device)(torch.stack([one.pixels for one in seen]).to(device))
        with evaluating(self.network):
            found = [Detected(*(part.cpu() for part in one)) for one in self.network.detect(pixels)]
        sure = [Detected(*(part[one.scores >= score] for part in one)) for one in found]
        return [
            Found(one._replace(boxes=view.back(one.boxes)), self.classes) for one, view in zip(sure, seen, strict=True)
        ]

    def to(self, device: str | torch.device) -> LoadedDetector:
        """Move the network to a device; returns the detector."""
        self.network.to(device)
        return self


def load_detector(path: str | Path) -> LoadedDetector:
    """The detector of an export that `unlabeled finetune` wrote (task detect).

    Raises UserError when there is none, or weights and settings do not match.
    """
    folder, config = opened(path)
    if "detector" not in config:
        raise UserError(
            f"{folder} holds no detector. Take an export of task.name=detect, or load it with unlabeled.load."
        )
    section = section_of(folder, config, "detector", Section)
    height, width = section.size
    encoder = load_encoder(path, (height, width))
    backbone = Backbone(encoder, section.settings.channels, section.settings.finest)
    network = section.settings.build(backbone, len(section.label_names), seed=0)
    fill_(network, folder, "detector", ENCODER)
    return LoadedDetector(network, section.label_names, section.size, preprocessing_of(path))
