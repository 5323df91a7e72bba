"""SimSiam (Chen & He, CVPR 2021; official code facebookresearch/simsiam at a7bc177).

A predictor turns one view of a picture into the other, whose projection gets no gradient: no negatives, no teacher, no
large batch. Where paper and code differ this follows the code: the hidden layers of the projector are as wide as the
encoder's features, its last linear layer has a bias that is never trained, and the predictor alone keeps its learning
rate (`--fix-pred-lr`, the paper's appendix B). The official code is for ResNets; a ViT begins as MoCo v3's and keeps
its patch projection.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from unlabeled.backbone.config import EncoderConfig
from unlabeled.backbone.encoder import Encoder
from unlabeled.data.batch.batch import Batch
from unlabeled.data.view.views import View
from unlabeled.nn.heads import mlp
from unlabeled.nn.loss.exact import wide
from unlabeled.nn.measures import contrast, feature_std
from unlabeled.nn.regions import region
from unlabeled.pretrain.method import Crops, MethodConfig, Output, PretrainMethod, Progress, Symptom
from unlabeled.pretrain.symptoms import blind, same_features

# MoCo v2's augmentations
PAIR = View(
    count=2,
    scale=(0.2, 1.0),
    interpolation="bilinear",
    jitter=(0.4, 0.4, 0.4, 0.1),
    jitter_p=0.8,
    grayscale=0.2,
    blur=0.5,
)


class Config(MethodConfig, frozen=True):
    """SimSiam: defaults are the paper's ResNet-50."""

    name: Literal["simsiam"] = "simsiam"
    view: View = Field(PAIR, description="both views: two crops of the same settings")
    encoder: EncoderConfig = Field(
        EncoderConfig(model="resnet50"), description="the CNN or vision transformer that is kept"
    )
    freeze_patches: bool = Field(True, description="keep a ViT's patch projection at its random start, as MoCo v3 does")
    hidden: int | None = Field(None, ge=1, description="width inside the projector; null = that of the features")
    dim: int = Field(2048, ge=2, description="width of projections and predictions")
    projector_layers: int = Field(3, ge=1, le=16, description="linear layers of the projector")
    predictor_hidden: int = Field(512, ge=1, description="width inside the predictor, a quarter of `dim`")
    keep_predictor_rate: bool = Field(
        True, description="leave the predictor at the peak learning rate while that of the others falls"
    )

    title: ClassVar[str] = "SimSiam"
    crops: ClassVar[dict[str, Crops]] = {"view": Crops(count=2)}

    def build(self) -> SimSiam:
        encoder = self.encoder.build(self.view.shape)
        encoder.initialise_("mocov3", freeze_patches=self.freeze_patches)
        return SimSiam(encoder, encoder.feature_width, self)


class SimSiam(PretrainMethod):
    """Each view predicts the projection of the other."""

    def __init__(self, encoder: Encoder, width: int, config: Config) -> None:
        super().__init__()
        self.encoder, self.keep_predictor_rate = encoder, config.keep_predictor_rate
        hidden = [config.hidden or width] * (config.projector_layers - 1)
        self.projector = mlp((width, *hidden, config.dim), last_bias=True)
        self.projector.get_parameter(f"{len(self.projector) - 2}.bias").requires_grad_(False)  # the norm takes it out
        self.predictor = mlp((config.dim, config.predictor_hidden, config.dim), last_norm=False, last_bias=True)

    def forward(self, batch: Batch, progress: Progress) -> Output:
        images, _ = batch.views[0].flat()
        features = self.encoder.feature(images, views=2)
        projections = self.projector(features, views=2)
        predicted_1, predicted_2 = self.predictor(projections, views=2).chunk(2)
        projected_1, projected_2 = projections.detach().chunk(2)

        loss = (unlikeness(predicted_1, projected_2) + unlikeness(predicted_2, projected_1)) / 2
        pairs = contrast(predicted_1, projected_2)
        spreads = {"feature_std": feature_std(features), "projection_std": feature_std(projected_1)}
        measures = {**spreads, "told_apart": pairs["positive"] - pairs["negative"], **pairs}
        return Output(loss, measures, features[: len(predicted_1)].detach())

    def exports(self) -> dict[str, Encoder]:
        return {"encoder": self.encoder}

    def keeps_rate(self, name: str) -> bool:
        return self.keep_predictor_rate and name.startswith("predictor.")

    def decays(self, name: str, parameter: nn.Parameter) -> bool:
        """Everything decays: biases and norms too (official `main_simsiam.py`)."""
        return True

    def symptoms(self) -> list[Symptom]:
        return [blind("set optim.clip=1.0"), same_features("set optim.clip=1.0")]


@region
def unlikeness(predictions: Tensor, targets: Tensor) -> Tensor:
    """-cosine of predictions and targets [B, D] that have no gradient, mean over the batch (equation 1)."""
    return -F.cosine_similarity(wide(predictions), wide(targets), dim=1).mean()
