"""Exports of segmentations: a backbone that timm reads, its pyramid and decoder beside it.

The folder is that of any encoder, and is one for every command; `config.json` has a section `segmenter`, and
`heads.safetensors` the rest of the network.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from unlabeled.backbone.encoder import Encoder, Tensors
from unlabeled.backbone.folder import Preprocessing, opened
from unlabeled.backbone.weights import load_encoder, preprocessing_of
from unlabeled.errors import UserError
from unlabeled.nn.modes import evaluating
from unlabeled.report.card import Made, segmenter_card
from unlabeled.transfer.dense.loaded import Loaded
from unlabeled.transfer.dense.sections import Section, fill_, section_of, write_section
from unlabeled.transfer.detection.backbone import Backbone
from unlabeled.transfer.segmentation.network import DecoderConfig, Segmenter
from unlabeled.transfer.segmentation.predicting import classified

ENCODER = "backbone.encoder."  # its parameters in the network


class SegmenterSection(Section, strict=True, frozen=True):
    """The section `segmenter` of a `config.json`."""

    settings: DecoderConfig


def write_segmenter(
    folder: Path,
    encoder: Encoder,
    weights: tuple[Tensors, Tensors],
    config: DecoderConfig,
    prepared: Preprocessing,
    made: Made,
) -> None:
    """Write an export, see the module.

    Args:
        folder: for it.
        encoder: the backbone.
        weights: of the plain timm model, and of the whole network.
        config: of the decoder.
        prepared: how images are normalised and resized.
        made: for the card.

    Raises:
        UserError: it cannot be written.
    """
    card = segmenter_card(made, encoder.loading(encoder.model, encoder.arguments))
    write_section(folder, encoder, weights, ("segmenter", config), ENCODER, prepared, made, card)


class LoadedSegmenter(Loaded[Segmenter]):
    """A segmentation with the preprocessing of its export; see `load_segmenter`."""

    @torch.no_grad()
    def __call__(self, images: Sequence[Tensor]) -> list[Tensor]:
        """The number of the class of every pixel, int64 [H, W] on the CPU, of uint8 images [C, H, W] of any sizes."""
        pixels, seen = self.fitted(images)
        with evaluating(self.network):
            scores = self.network(pixels)
        return [classified(own, view) for own, view in zip(scores, seen, strict=True)]


def load_segmenter(path: str | Path) -> LoadedSegmenter:
    """The segmentation of an export that `unlabeled finetune` wrote (task segment).

    Raises UserError when there is none, or weights and settings do not match.
    """
    folder, config = opened(path)
    if "segmenter" not in config:
        raise UserError(
            f"{folder} holds no segmentation. Take an export of task.name=segment, or load it with unlabeled.load."
        )
    section = section_of(folder, config, "segmenter", SegmenterSection)
    height, width = section.size
    settings, encoder = section.settings, load_encoder(path, (height, width))
    network = Segmenter(Backbone(encoder, settings.channels, settings.finest), settings, len(section.label_names))
    fill_(network, folder, "segmentation", ENCODER)
    return LoadedSegmenter(network, section.label_names, section.size, preprocessing_of(path))
