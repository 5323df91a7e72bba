"""Barlow Twins (Zbontar et al., ICML 2021; official code facebookresearch/barlowtwins at 8e8d284).

The correlation of the projections of two views, feature by feature over the batch, shall be the identity: views agree,
and no two features say the same. No negatives, no teacher, no predictor. Where paper and code differ this follows the
code: weight decay is 1e-6 (paper 1.5e-6), biases and norms learn at 0.024 of the rate of weights. The correlation is
over the rows of all processes; its gradient is that of one process with the whole batch. The official code is for
ResNets; a ViT begins as MoCo v3's and keeps its patch projection.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from unlabeled.backbone.config import EncoderConfig
from unlabeled.backbone.encoder import Encoder
from unlabeled.data.batch.batch import Batch
from unlabeled.data.view.views import View
from unlabeled.nn.batchnorm import BatchNorm
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
    """Barlow Twins: defaults are the paper's ResNet-50."""

    name: Literal["barlowtwins"] = "barlowtwins"
    first: View = Field(FIRST, description="the first view: always blurred")
    second: View = Field(SECOND, description="the second view: rarely blurred, sometimes solarised")
    encoder: EncoderConfig = Field(
        EncoderConfig(model="resnet50"), description="the CNN or vision transformer that is kept"
    )
    freeze_patches: bool = Field(True, description="keep a ViT's patch projection at its random start, as MoCo v3 does")
    hidden: int = Field(8192, ge=1, description="width inside the projector")
    dim: int = Field(8192, ge=2, description="width of what is correlated: the wider, the better the features")
    projector_layers: int = Field(3, ge=1, le=16, description="linear layers of the projector")
    redundancy: float = Field(0.0051, ge=0, description="weight of the correlations of different features, lambda")
    vector_rate: float = Field(
        0.024, gt=0, description="factor on the learning rate of biases, norms and other vectors; 1 with AdamW"
    )

    title: ClassVar[str] = "Barlow Twins"
    crops: ClassVar[dict[str, Crops]] = {"first": Crops(), "second": Crops(like="first")}

    def build(self) -> BarlowTwins:
        encoder = self.encoder.build(self.first.shape)
        encoder.initialise_("mocov3", freeze_patches=self.freeze_patches)
        return BarlowTwins(encoder, encoder.feature_width, self)


class BarlowTwins(PretrainMethod):
    """Features of two views are correlated with themselves alone."""

    def __init__(self, encoder: Encoder, width: int, config: Config) -> None:
        super().__init__()
        self.encoder, self.redundancy, self.vector_rate = encoder, config.redundancy, config.vector_rate
        hidden = [config.hidden] * (config.projector_layers - 1)
        self.projector = mlp((width, *hidden, config.dim), last_norm=False)
        self.norm = BatchNorm(config.dim, affine=False)

    def forward(self, batch: Batch, progress: Progress) -> Output:
        features = self.encoder.feature(torch.cat([view.flat()[0] for view in batch.views]), views=2)
        first, second = (gather_with_gradient(self.norm(view)) for view in self.projector(features, views=2).chunk(2))
        loss, measures = decorrelation(first, second, self.redundancy)
        rows = len(features) // 2
        return Output(loss, {**measures, "feature_std": feature_std(features)}, features[:rows].detach())

    def exports(self) -> dict[str, Encoder]:
        return {"encoder": self.encoder}

    def lr_scale(self, name: str) -> float:
        return self.vector_rate if self.get_parameter(name).ndim < 2 else 1.0

    def batch_statistics(self) -> tuple[str, ...]:
        return "correlations over the batch", *super().batch_statistics()

    def symptoms(self) -> list[Symptom]:
        views_differ = Symptom(
            "on_diagonal",
            "the views of a picture have nothing in common: nothing is learnt",
            "Lower optim.base_lr to a third, or warm up longer (optim.warmup_epochs).",
            at_most=0.02,
        )
        return [views_differ, same_features("set optim.clip=1.0")]


@region
def decorrelation(a: Tensor, b: Tensor, redundancy: float) -> tuple[Tensor, dict[str, Tensor]]:
    """Sum of (c_ii - 1)^2 + redundancy c_ij^2 of the correlations c [D, D] of two views [B, D] (equation 1).

    The views are normalised over the batch. Measures: `on_diagonal`, the mean of c_ii; `off_diagonal`, the root of the
    mean of c_ij^2.
    """
    with exact(a):
        c = wide(a).T @ wide(b) / len(a)
        own = c.diagonal()
        others = c.square().sum() - own.square().sum()
        loss = (own - 1).square().sum() + redundancy * others
        pairs = len(c) * (len(c) - 1)
        return loss, {"on_diagonal": own.detach().mean(), "off_diagonal": (others.detach() / pairs).sqrt()}
