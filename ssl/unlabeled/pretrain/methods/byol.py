"""BYOL, Bootstrap Your Own Latent (Grill et al., NeurIPS 2020; official code google-deepmind/deepmind-research at
f5de0ed, `byol/`).

A predictor turns one view of a picture into what a moving average of the network makes of the other: no negatives.
Where paper and code differ this follows the code: the target begins at random weights of its own, normalises by the
statistics of its batch, follows parameters alone (running statistics are its own), and moves after every step with the
momentum of that step. Each view is a batch of its own for batch normalisation, over all processes. The loss is the sum
of both directions, not their mean. Not as there: crops are antialiased when they are resized, and the blur is Pillow's.
The official code is for ResNets; a ViT begins as MoCo v3's and keeps its patch projection.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from unlabeled.backbone.config import EncoderConfig
from unlabeled.backbone.encoder import Encoder
from unlabeled.data.batch.batch import Batch
from unlabeled.data.view.views import View
from unlabeled.nn.curves import cosine
from unlabeled.nn.heads import mlp
from unlabeled.nn.loss.exact import wide
from unlabeled.nn.measures import contrast, feature_std
from unlabeled.nn.regions import region
from unlabeled.nn.teacher import ema_, follow_
from unlabeled.pretrain.continued import Continued
from unlabeled.pretrain.method import Crops, MethodConfig, Output, PretrainMethod, Progress, Symptom
from unlabeled.pretrain.rescale import Rule, Setting, as_in_paper, same_window
from unlabeled.pretrain.symptoms import blind, same_features

FIRST = View(
    scale=(0.08, 1.0), interpolation="bicubic", jitter=(0.4, 0.4, 0.2, 0.1), jitter_p=0.8, grayscale=0.2, blur=1.0
)
SECOND = FIRST.model_copy(update={"blur": 0.1, "solarize": 0.2})


class Config(MethodConfig, frozen=True):
    """BYOL: defaults are the paper's ResNet-50 of 1000 epochs."""

    name: Literal["byol"] = "byol"
    first: View = Field(FIRST, description="the first view: always blurred")
    second: View = Field(SECOND, description="the second view: rarely blurred, sometimes solarised")
    encoder: EncoderConfig = Field(
        EncoderConfig(model="resnet50"), description="the CNN or vision transformer that is kept"
    )
    freeze_patches: bool = Field(True, description="keep a ViT's patch projection at its random start, as MoCo v3 does")
    hidden: int = Field(4096, ge=1, description="width inside the projector")
    dim: int = Field(256, ge=2, description="width of projections and predictions")
    predictor_hidden: int | None = Field(None, ge=1, description="width inside the predictor; null = `hidden`")
    momentum: float | None = Field(
        None,
        ge=0,
        le=1,
        description="of the target at the start, a cosine takes it to 1; null = 0.996 at batch 4096, rescaled",
    )

    title: ClassVar[str] = "BYOL"
    crops: ClassVar[dict[str, Crops]] = {"first": Crops(), "second": Crops(like="first")}
    paper: ClassVar[Setting] = Setting(batch=4096, epochs=1000, steps=312_000)
    ends: ClassVar[dict[str, float]] = {"momentum": 1.0}
    rules: ClassVar[dict[str, Rule]] = {"momentum": Rule(0.996, same_window)}

    def build(self) -> BYOL:
        """A randomly initialised model, its target at random weights of its own."""
        return BYOL(self._branch(), self._branch(), self)

    def _branch(self) -> Branch:
        encoder = self.encoder.build(self.first.shape)
        encoder.initialise_("mocov3", freeze_patches=self.freeze_patches)
        return Branch(encoder, encoder.feature_width, self)


class Branch(nn.Module):
    """An encoder of features of a `width` and its projector: what the target consists of."""

    def __init__(self, encoder: Encoder, width: int, config: Config) -> None:
        super().__init__()
        self.encoder = encoder
        self.projector = mlp((width, config.hidden, config.dim), last_norm=False, hidden_bias=True)


class BYOL(PretrainMethod):
    """Each view predicts the target's projection of the other."""

    def __init__(self, online: Branch, target: Branch, config: Config) -> None:
        super().__init__()
        self.encoder, self.projector = online.encoder, online.projector
        widths = config.dim, config.predictor_hidden or config.hidden, config.dim
        self.predictor = mlp(widths, last_norm=False, hidden_bias=True)
        self.teacher = target.requires_grad_(False)
        self.momentum = as_in_paper(config).momentum

    def forward(self, batch: Batch, progress: Progress) -> Output:
        images = torch.cat([view.flat()[0] for view in batch.views])
        features = self.encoder.feature(images, views=2)
        predicted_1, predicted_2 = self.predictor(self.projector(features, views=2), views=2).chunk(2)
        with torch.no_grad():
            target_1, target_2 = self.teacher.projector(self.teacher.encoder.feature(images, views=2), views=2).chunk(2)

        loss = distance(predicted_1, target_2) + distance(predicted_2, target_1)
        pairs = contrast(predicted_1, target_2)
        measures = {"feature_std": feature_std(features), "told_apart": pairs["positive"] - pairs["negative"]}
        return Output(loss, {**measures, **pairs}, features[: len(predicted_1)].detach())

    def after_step(self, progress: Progress, broken: Tensor | None = None) -> None:
        """The target follows, with the momentum of the step that was taken."""
        ema_(self.teacher, self, cosine(self.momentum, 1.0, progress.share), broken)

    def continue_(self, settings: Continued) -> None:
        """The target of an encoder that learns on begins as that encoder."""
        follow_(self.teacher.encoder, self.encoder)
        super().continue_(settings)

    def exports(self) -> dict[str, Encoder]:
        return {"encoder": self.encoder, "teacher": self.teacher.encoder}

    def symptoms(self) -> list[Symptom]:
        cure = "keep method.momentum at 0.97 or above"
        return [blind(cure), same_features(cure)]


@region
def distance(predictions: Tensor, targets: Tensor) -> Tensor:
    """Squared distance of unit vectors of predictions and targets [B, D], mean over the batch (equation 2)."""
    # the norm of a vector is at least 1e-6, as officially
    return 2 - 2 * F.cosine_similarity(wide(predictions), wide(targets), dim=1, eps=1e-6).mean()
