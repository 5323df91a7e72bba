"""Masked autoencoders (He et al., CVPR 2022; official code facebookresearch/mae at efb2a80).

Encode the visible quarter of the patches, predict the pixels of the hidden ones. Where paper and code differ this
follows the code: the fused qkv is initialised as one matrix, and class and mask tokens are decayed.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field, ValidationInfo, field_validator
from torch import Tensor

from unlabeled.backbone.config import EncoderConfig
from unlabeled.backbone.encoder import Encoder, Hiding
from unlabeled.data.batch.batch import Batch
from unlabeled.data.masks.random import Config as RandomMask
from unlabeled.data.view.views import View
from unlabeled.nn.measures import feature_std
from unlabeled.nn.patches import gather, normalize_patches, patchify, triptych
from unlabeled.pretrain.decoder import AnyDecoder, Decoder, DecoderConfig
from unlabeled.pretrain.decoders.self import Config as SelfDecoder
from unlabeled.pretrain.method import Crops, MethodConfig, Output, PretrainMethod, Progress, Symptom
from unlabeled.pretrain.symptoms import nothing_explained


class Config(MethodConfig, frozen=True):
    """MAE: defaults are the paper's ViT-B/16."""

    name: Literal["mae"] = "mae"
    view: View = Field(View(size=224, scale=(0.2, 1.0), mask=RandomMask()), description="the crop and its mask")
    encoder: EncoderConfig = Field(EncoderConfig(), description="the vision transformer that is kept")
    decoder: AnyDecoder = Field(
        SelfDecoder(), description="the decoder: self (the paper's), cross (CrossMAE's) or cross_light (the cheapest)"
    )
    normalize_targets: bool = Field(True, description="regress patches of zero mean and unit variance")

    title: ClassVar[str] = "MAE"
    crops: ClassVar[dict[str, Crops]] = {"view": Crops(masked=True, equal_counts=True)}
    hides: ClassVar[Hiding | None] = "drop"

    @field_validator("decoder")
    @classmethod
    def _suits(cls, decoder: DecoderConfig, info: ValidationInfo) -> DecoderConfig:
        encoder, view = info.data.get("encoder"), info.data.get("view")
        if encoder is not None and view is not None and view.mask is not None:
            decoder.check(encoder, view.mask)
        return decoder

    def build(self) -> MAE:
        encoder = self.encoder.build(self.view.shape, pooled=False)
        assert self.view.mask is not None
        values = self.encoder.patch_size**2 * self.encoder.channels
        decoder = self.decoder.build(encoder, values, self.view.mask.hidden_share)
        return MAE(encoder, decoder, self.normalize_targets)


class MAE(PretrainMethod):
    """An encoder that sees only visible patches and a light decoder that regresses the hidden ones."""

    def __init__(self, encoder: Encoder, decoder: Decoder, normalize_targets: bool = True) -> None:
        super().__init__()
        self.encoder, self.decoder, self.normalize_targets = encoder, decoder, normalize_targets
        encoder.initialise_("mae")

    def forward(self, batch: Batch, progress: Progress) -> Output:
        images, mask = batch.views[0].flat()
        assert mask is not None

        # encode what is visible, predict what the decoder chooses among the hidden
        tokens = self.decoder.encode(self.encoder, images, mask)
        prediction = self.decoder(tokens, mask).float()

        # mean squared error over the hidden patches of the whole batch
        target = gather(patchify(images, self.encoder.patch_size), self.decoder.predicts(mask))
        if self.normalize_targets:
            target = normalize_patches(target)
        loss = (prediction - target).square().mean()
        # predicting the mean explains nothing; normalised patches have a variance of (P - 1) / P over P values
        features = tokens.pool("mean").detach()
        measures = {"explained": 1 - loss.detach() / target.var(), "feature_std": feature_std(features)}
        return Output(loss, measures, features)

    def exports(self) -> dict[str, Encoder]:
        return {"encoder": self.encoder}

    def pooling(self) -> Literal["cls", "mean"]:
        """The mean of the patches, as in MAE's fine-tuning: no loss reads the class token."""
        return "mean"

    def symptoms(self) -> list[Symptom]:
        return [nothing_explained(clip=1.0)]

    @torch.no_grad()
    def pictures(self, batch: Batch) -> Tensor:
        """Originals, masked inputs and reconstructions: [B, 3, C, H, W], normalised like the input."""
        images, mask = batch.views[0].flat()
        assert mask is not None
        everything = torch.arange(mask.hidden.shape[-1], device=images.device).expand(len(images), -1)
        prediction = self.decoder(self.decoder.encode(self.encoder, images, mask), mask, index=everything).float()
        if self.normalize_targets:  # predictions get their patch's true mean and std back
            variance, mean = torch.var_mean(patchify(images, self.encoder.patch_size), dim=-1, keepdim=True)
            prediction = prediction * (variance + 1e-6).sqrt() + mean
        return triptych(images, prediction, mask, self.encoder.patch_size)
