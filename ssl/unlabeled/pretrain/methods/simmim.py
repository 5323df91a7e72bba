"""SimMIM (Xie et al., CVPR 2022; official code microsoft/SimMIM at d3e29bc).

The encoder sees all patches, hidden ones replaced by a mask token; one linear layer regresses their raw pixels with an
L1 loss. Where paper and code differ this follows the code: its ViT has BEiT's relative positions in one table that all
blocks share, mask token and table are decayed, and initial weights are cut at one standard deviation. A plain ViT with
absolute positions does as well.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from unlabeled.backbone.config import EncoderConfig
from unlabeled.backbone.encoder import Encoder, Hiding, Tokens
from unlabeled.data.batch.batch import Batch
from unlabeled.data.masks.random import Config as RandomMask
from unlabeled.data.view.views import View
from unlabeled.nn.measures import feature_std
from unlabeled.nn.patches import PatchMask, gather, patchify, triptych, unpatchify
from unlabeled.pretrain.decoder import Decoder
from unlabeled.pretrain.method import Crops, MethodConfig, Output, PretrainMethod, Progress, Symptom
from unlabeled.pretrain.symptoms import nothing_explained

VIEW = View(
    size=224, scale=(0.67, 1.0), interpolation="bilinear", mask=RandomMask(ratio=0.6, unit=32, rounding="ceil_hidden")
)
ENCODER = EncoderConfig(model="beit_base_patch16_224", positions="relative", drop_path=0.1)


class Config(MethodConfig, frozen=True):
    """SimMIM: defaults are the official ViT-B/16."""

    name: Literal["simmim"] = "simmim"
    view: View = Field(VIEW, description="the crop and its mask")
    encoder: EncoderConfig = Field(
        ENCODER, description="the transformer that is kept: beit_* or swin_* (official), or vit_*"
    )

    title: ClassVar[str] = "SimMIM"
    crops: ClassVar[dict[str, Crops]] = {"view": Crops(masked=True, equal_counts=True, rounding="ceil_hidden")}
    hides: ClassVar[Hiding | None] = "replace"

    @classmethod
    def mask_patch_of(cls, view: View, encoder: EncoderConfig) -> int:
        """Its loss reads pixels: units may be as fine as the patches that are embedded."""
        return encoder.patch_size if view.mask is None else view.mask.patch(encoder.patch_size, encoder.embedding_patch)

    def build(self) -> SimMIM:
        return SimMIM(self.encoder.build(self.view.shape, pooled=False))


class LinearDecoder(Decoder):
    """One linear layer on the encoder's full-length sequence (section 3.3): the pixels of each position."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.patch = encoder.patch_size
        self.head = nn.Linear(encoder.width, encoder.patch_size**2 * encoder.channels)

    def forward(self, tokens: Tokens, mask: PatchMask, index: Tensor | None = None) -> Tensor:
        index = self.predicts(mask) if index is None else index
        if mask.hidden.shape[-1] == tokens.patches.shape[1]:
            return self.head(gather(tokens.patches, index))
        # a mask finer than the encoder's output cuts the pixels of a position
        images = unpatchify(self.head(tokens.patches), self.patch, tokens.grid)
        return gather(patchify(images, mask.side(images)), index)


class SimMIM(PretrainMethod):
    """An encoder with mask tokens and a linear layer that regresses pixels of hidden patches."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.mask_token = nn.Parameter(torch.zeros(1, 1, encoder.embedding_width))
        self.decoder = LinearDecoder(encoder)
        encoder.initialise_("simmim", mask_token=self.mask_token)

    def forward(self, batch: Batch, progress: Progress) -> Output:
        images, mask = batch.views[0].flat()
        assert mask is not None

        # encode everything with hidden patches replaced, predict the pixels behind them
        tokens = self.encode(images, mask)
        prediction = self.decoder(tokens, mask).float()

        # absolute error per hidden pixel and channel, over the whole batch
        target = gather(patchify(images, mask.side(images)), self.decoder.predicts(mask)).float()
        error = (prediction - target).abs().sum()
        pixels = target.numel() / self.encoder.channels
        loss = error / (pixels + 1e-5) / self.encoder.channels
        explained = 1 - loss.detach() / (target - target.mean()).abs().mean()
        features = tokens.pool("mean").detach()
        return Output(loss, {"explained": explained, "feature_std": feature_std(features)}, features)

    def encode(self, images: Tensor, mask: PatchMask) -> Tokens:
        """Tokens of images [B, C, H, W] whose hidden patches are not seen."""
        return self.encoder(images, replace=mask, fill=self.mask_token)

    def exports(self) -> dict[str, Encoder]:
        return {"encoder": self.encoder}

    def decays(self, name: str, parameter: nn.Parameter) -> bool:
        """Not 1-D tensors, class token and positions; mask token (but a Swin's) and relative tables decay (official
        optimizer)."""
        return super().decays(name, parameter) and not name.endswith(self.encoder.undecayed)

    def pooling(self) -> Literal["cls", "mean"]:
        """The mean of the patches, as in SimMIM's fine-tuning: no loss reads the class token."""
        return "mean"

    def symptoms(self) -> list[Symptom]:
        return [nothing_explained(clip=5.0)]

    @torch.no_grad()
    def pictures(self, batch: Batch) -> Tensor:
        """Originals, masked inputs and reconstructions: [B, 3, C, H, W], normalised like the input."""
        images, mask = batch.views[0].flat()
        assert mask is not None
        everything = torch.arange(mask.hidden.shape[-1], device=images.device).expand(len(images), -1)
        prediction = self.decoder(self.encode(images, mask), mask, index=everything).float()
        return triptych(images, prediction, mask, mask.side(images))
