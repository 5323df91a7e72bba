"""SparK (Tian et al., ICLR 2023; official code keyu-tian/SparK at a63e386): masked modelling for CNNs.

The visible cells, squares of the network's total stride, are encoded by layers that see nothing of the others; a U-Net
rebuilds the pixels of the hidden ones from maps of four resolutions. With `decoder: {name: single}` it is FCMAE (Woo et
al., CVPR 2023), whose authors call masked dense layers equal to their sparse ones; their code takes the norms of GRN
over the whole batch, here they are an image's own, as in the network that is fine-tuned.

Where paper and code differ this follows the code: eps is inside the root of patch normalisation, no map of the stem
reaches the decoder. The official rate and decay end on the last step, ours one step after it.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from unlabeled.backbone.config import EncoderConfig
from unlabeled.backbone.encoder import Encoder, Hiding
from unlabeled.backbone.masked import Visible, mask_, probe
from unlabeled.data.batch.batch import Batch
from unlabeled.data.masks.random import Config as RandomMask
from unlabeled.data.view.views import View
from unlabeled.nn.batchnorm import BatchNorm
from unlabeled.nn.measures import feature_std
from unlabeled.nn.patches import gather, normalize_patches, patchify, triptych
from unlabeled.pretrain.map_decoder import AnyMapDecoder, MapDecoderConfig
from unlabeled.pretrain.map_decoders.unet import Config as UNetConfig
from unlabeled.pretrain.method import Crops, MethodConfig, Output, PretrainMethod, Progress, Symptom
from unlabeled.pretrain.symptoms import nothing_explained

VIEW = View(size=224, scale=(0.67, 1.0), mask=RandomMask(ratio=0.6, rounding="round_visible"))


class Config(MethodConfig, frozen=True):
    """SparK: defaults are the official ResNet-50."""

    name: Literal["spark"] = "spark"
    view: View = Field(VIEW, description="the crop and its mask, of squares as large as the total stride")
    encoder: EncoderConfig = Field(
        EncoderConfig(model="resnet50", drop_path=0.05), description="the CNN that is kept: resnet*, convnext* or other"
    )
    decoder: AnyMapDecoder = Field(UNetConfig(), description="the decoder: unet (SparK's) or single (FCMAE's)")
    normalize_targets: bool = Field(True, description="regress patches of zero mean and unit variance")

    title: ClassVar[str] = "SparK"
    crops: ClassVar[dict[str, Crops]] = {"view": Crops(masked=True, equal_counts=True, rounding="round_visible")}
    hides: ClassVar[Hiding | None] = "zero"

    def build(self) -> SparK:
        return SparK(self.encoder.build(self.view.shape, pooled=False), self.decoder, self.normalize_targets)


class SparK(PretrainMethod):
    """A CNN that sees only visible cells, and a decoder of its maps that regresses the pixels of the hidden ones."""

    def __init__(self, encoder: Encoder, decoder: MapDecoderConfig, normalize_targets: bool = True) -> None:
        super().__init__()
        self.encoder, self.normalize_targets = encoder, normalize_targets
        self.held = mask_(encoder.vit)
        self.levels, self.asked = probe(encoder, self.held)
        batch_norm = any(isinstance(part, BatchNorm) for part in encoder.modules())
        self.decoder = decoder.build(self.levels, encoder.channels, batch_norm)

    def forward(self, batch: Batch, progress: Progress) -> Output:
        images, mask = batch.views[0].flat()
        assert mask is not None

        # encode what is visible, rebuild everything
        visible = Visible.of(mask, images, self.asked)
        maps = self.encode(images, visible)
        rebuilt = patchify(self.decoder(maps, visible), self.encoder.patch_size).float()

        # mean squared error over the hidden cells of the whole batch
        _, hidden = mask.indices()
        target = gather(patchify(images, self.encoder.patch_size), hidden)
        if self.normalize_targets:
            target = normalize_patches(target)
        loss = (gather(rebuilt, hidden) - target).square().mean()
        # predicting the mean explains nothing; normalised patches have a variance of (P - 1) / P over P values
        features = visible.seen(maps[0].detach()).unflatten(0, (len(images), -1)).mean(1)
        measures = {"explained": 1 - loss.detach() / target.var(), "feature_std": feature_std(features)}
        return Output(loss, measures, features)

    def encode(self, images: Tensor, visible: Visible) -> list[Tensor]:
        """Feature maps of images [B, C, H, W], the deepest first [B, D, rows, columns]; of hidden cells nothing."""
        with self.held.holding(visible):
            maps = self.encoder.stages(images)
        return [maps[level.number] for level in self.levels]

    def exports(self) -> dict[str, Encoder]:
        return {"encoder": self.encoder}

    def symptoms(self) -> list[Symptom]:
        return [nothing_explained(clip=5.0)]

    @torch.no_grad()
    def pictures(self, batch: Batch) -> Tensor:
        """Originals, masked inputs and reconstructions: [B, 3, C, H, W], normalised like the input."""
        images, mask = batch.views[0].flat()
        assert mask is not None
        visible = Visible.of(mask, images, self.asked)
        rebuilt = patchify(self.decoder(self.encode(images, visible), visible), self.encoder.patch_size).float()
        if self.normalize_targets:  # predictions get their patch's true mean and std back
            variance, mean = torch.var_mean(patchify(images, self.encoder.patch_size), dim=-1, keepdim=True)
            rebuilt = rebuilt * (variance + 1e-6).sqrt() + mean
        return triptych(images, rebuilt, mask, self.encoder.patch_size)
