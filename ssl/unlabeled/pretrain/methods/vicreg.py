"""VICReg, Variance-Invariance-Covariance Regularization (Bardes, Ponce, LeCun, ICLR 2022; official code
facebookresearch/vicreg at 4e12602).

Embeddings of two views shall be near each other (invariance), each of their features shall vary over the batch
(variance), and no two shall vary alike (covariance): no negatives, no teacher, no predictor, nothing normalised. Where
paper and code differ this follows the code: the variance term is the mean of both views, the covariance term their sum;
the last layer has no bias. Variance and covariance are over the rows of all processes, with gradients of all. The
official code is for ResNets; a ViT begins as MoCo v3's and keeps its patch projection.
"""

from __future__ import annotations

from typing import ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from unlabeled.backbone.config import EncoderConfig
from unlabeled.backbone.encoder import Encoder
from unlabeled.data.batch.batch import Batch
from unlabeled.data.view.views import View
from unlabeled.nn.collectives import gather_with_gradient
from unlabeled.nn.heads import mlp
from unlabeled.nn.loss.exact import exact, wide
from unlabeled.nn.measures import feature_std
from unlabeled.nn.regions import region
from unlabeled.pretrain.method import Crops, MethodConfig, Output, PretrainMethod, Progress, Symptom
from unlabeled.pretrain.symptoms import same_features

FIRST = View(
    scale=(0.08, 1.0), interpolation="bicubic", jitter=(0.4, 0.4, 0.2, 0.1), jitter_p=0.8, grayscale=0.2, blur=1.0
)
SECOND = FIRST.model_copy(update={"blur": 0.1, "solarize": 0.2})


class Config(MethodConfig, frozen=True):
    """VICReg: defaults are the paper's ResNet-50."""

    name: Literal["vicreg"] = "vicreg"
    first: View = Field(FIRST, description="the first view: always blurred")
    second: View = Field(SECOND, description="the second view: rarely blurred, sometimes solarised")
    encoder: EncoderConfig = Field(
        EncoderConfig(model="resnet50"), description="the CNN or vision transformer that is kept"
    )
    freeze_patches: bool = Field(True, description="keep a ViT's patch projection at its random start, as MoCo v3 does")
    hidden: int = Field(8192, ge=1, description="width inside the expander")
    dim: int = Field(8192, ge=2, description="width of the embeddings: the wider, the better the features")
    expander_layers: int = Field(3, ge=1, le=16, description="linear layers of the expander")
    invariance: float = Field(25.0, ge=0, description="weight of the distance of two views")
    variance: float = Field(25.0, ge=0, description="weight of features that vary too little")
    covariance: float = Field(1.0, ge=0, description="weight of features that vary alike")

    title: ClassVar[str] = "VICReg"
    crops: ClassVar[dict[str, Crops]] = {"first": Crops(), "second": Crops(like="first")}

    def build(self) -> VICReg:
        encoder = self.encoder.build(self.first.shape)
        encoder.initialise_("mocov3", freeze_patches=self.freeze_patches)
        return VICReg(encoder, encoder.feature_width, self)


class Spread(NamedTuple):
    """How embeddings of one view are spread over the batch."""

    variance: Tensor  # [], mean over features of max(0, 1 - standard deviation)
    covariance: Tensor  # [], sum of squared covariances of different features, over their number


class VICReg(PretrainMethod):
    """Embeddings of two views are alike, and spread by themselves."""

    def __init__(self, encoder: Encoder, width: int, config: Config) -> None:
        super().__init__()
        self.encoder = encoder
        self.weights = config.invariance, config.variance, config.covariance
        hidden = [config.hidden] * (config.expander_layers - 1)
        self.projector = mlp((width, *hidden, config.dim), last_norm=False, hidden_bias=True)

    def forward(self, batch: Batch, progress: Progress) -> Output:
        features = self.encoder.feature(torch.cat([view.flat()[0] for view in batch.views]), views=2)
        first, second = wide(self.projector(features, views=2)).chunk(2)
        of_first, of_second = spread(gather_with_gradient(first)), spread(gather_with_gradient(second))

        invariance = F.mse_loss(first, second)
        variance = (of_first.variance + of_second.variance) / 2
        covariance = of_first.covariance + of_second.covariance
        near, vary, differ = self.weights
        loss = near * invariance + vary * variance + differ * covariance
        terms = {"invariance": invariance, "variance": variance, "covariance": covariance}
        measures = {"feature_std": feature_std(features), **{name: term.detach() for name, term in terms.items()}}
        return Output(loss, measures, features[: len(first)].detach())

    def exports(self) -> dict[str, Encoder]:
        return {"encoder": self.encoder}

    def batch_statistics(self) -> tuple[str, ...]:
        return "variances and covariances over the batch", *super().batch_statistics()

    def symptoms(self) -> list[Symptom]:
        no_variance = Symptom(
            "variance",
            "all pictures get nearly the same embeddings: a collapse",
            "Lower optim.base_lr to a third, or raise method.variance to method.invariance or above.",
            at_least=0.95,
        )
        return [no_variance, same_features("raise method.variance to method.invariance or above")]


@region
def spread(embeddings: Tensor) -> Spread:
    """The variance and covariance terms of one view's embeddings [B, D] of all processes (equations 1 to 4)."""
    with exact(embeddings):
        centred = embeddings - embeddings.mean(0)
        deviations = (centred.var(0) + 1e-4).sqrt()
        covariances = centred.T @ centred / (len(centred) - 1)
        others = covariances.square().sum() - covariances.diagonal().square().sum()
        return Spread(F.relu(1 - deviations).mean(), others / len(covariances))
