"""SimCLR (Chen et al., ICML 2020) on vision transformers and CNNs.

Two augmentations of a picture attract each other and repel all other pictures of the global batch; no teacher, no
predictor. The official code is for ResNets in TensorFlow; the loss and the projector follow the paper (equation 1 and
section 4.2), a ViT's initialisation and its frozen patch projection follow MoCo v3, whose paper trains SimCLR on ViTs
the same way (Chen, Xie, He 2021, table 3). Both views go through a CNN in one batch, as in the official code. Not as
there: the projector's last norm learns no gain (MoCo v3's heads), and the blur is Pillow's.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

from pydantic import Field
from torch import nn

from unlabeled.backbone.config import EncoderConfig
from unlabeled.backbone.encoder import Encoder
from unlabeled.data.batch.batch import Batch
from unlabeled.data.view.views import View
from unlabeled.nn.collectives import world
from unlabeled.nn.heads import mlp
from unlabeled.nn.loss.contrast import nt_xent
from unlabeled.nn.measures import contrast, feature_std
from unlabeled.pretrain.method import Crops, MethodConfig, Output, PretrainMethod, Progress, Symptom
from unlabeled.pretrain.symptoms import chance, same_features

PAIR = View(
    count=2,
    scale=(0.08, 1.0),
    interpolation="bicubic",
    jitter=(0.8, 0.8, 0.8, 0.2),
    jitter_p=0.8,
    grayscale=0.2,
    blur=0.5,
)


class Config(MethodConfig, frozen=True):
    """SimCLR: defaults are the paper's augmentations and temperature, with a ViT-S/16."""

    name: Literal["simclr"] = "simclr"
    view: View = Field(PAIR, description="both views: two crops of the same settings")
    encoder: EncoderConfig = Field(
        EncoderConfig(model="vit_small_patch16_224"), description="the vision transformer or CNN that is kept"
    )
    freeze_patches: bool = Field(True, description="keep a ViT's patch projection at its random start, as MoCo v3 does")
    hidden: int = Field(2048, ge=1, description="width inside the projector")
    dim: int = Field(128, ge=2, description="width of what is contrasted")
    projector_layers: int = Field(2, ge=1, le=16, description="linear layers of the projector")
    temperature: float = Field(0.1, gt=0, description="of the similarities")

    title: ClassVar[str] = "SimCLR"
    crops: ClassVar[dict[str, Crops]] = {"view": Crops(count=2)}

    def build(self) -> SimCLR:
        encoder = self.encoder.build(self.view.shape)
        encoder.initialise_("mocov3", freeze_patches=self.freeze_patches)
        widths = encoder.feature_width, *[self.hidden] * (self.projector_layers - 1), self.dim
        return SimCLR(encoder, mlp(widths), self.temperature)


class SimCLR(PretrainMethod):
    """The symmetric contrastive loss between two crops."""

    def __init__(self, encoder: Encoder, projector: nn.Module, temperature: float) -> None:
        super().__init__()
        self.encoder, self.projector, self.temperature = encoder, projector, temperature

    def forward(self, batch: Batch, progress: Progress) -> Output:
        images, _ = batch.views[0].flat()
        features = self.encoder.feature(images)
        a, b = self.projector(features).chunk(2)
        loss = nt_xent(a, b, self.temperature)

        # what a network gets that cannot tell pictures apart
        blind = math.log(2 * len(a) * world() - 1)
        measures = {"of_chance": loss.detach() / blind, "feature_std": feature_std(features), **contrast(a, b)}
        return Output(loss, measures, features[: len(a)].detach())

    def exports(self) -> dict[str, Encoder]:
        return {"encoder": self.encoder}

    def batch_statistics(self) -> tuple[str, ...]:
        return "negatives of the batch", *super().batch_statistics()

    def symptoms(self) -> list[Symptom]:
        return [chance(), same_features("set optim.clip=1.0")]
