"""MoCo v3 (Chen, Xie, He, ICCV 2021; official code facebookresearch/moco-v3 at c349e6e).

Two views of a picture must find each other among the pictures of the batch: queries from a trained encoder, keys from
its moving average. Where paper and code differ this follows the code: the teacher that makes the keys of a step has
already followed the student's weights of that step (the pseudocode updates it at the end), queries are contrasted with
all keys of all processes, and the two terms are summed. Small has 12 heads, not timm's 6. A CNN begins as timm has it,
with a projector of two layers and no norm after its predictor (official `MoCo_ResNet`).
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from unlabeled.backbone.config import EncoderConfig
from unlabeled.backbone.encoder import Encoder
from unlabeled.data.batch.batch import Batch
from unlabeled.data.view.views import View
from unlabeled.nn.collectives import gather, rank, world
from unlabeled.nn.curves import cosine
from unlabeled.nn.heads import mlp
from unlabeled.nn.loss.contrast import info_nce
from unlabeled.nn.measures import contrast, feature_std
from unlabeled.nn.teacher import ema_, follow_
from unlabeled.pretrain.method import Crops, MethodConfig, Output, PretrainMethod, Progress, Symptom
from unlabeled.pretrain.rescale import Rule, Setting, as_in_paper, same_window
from unlabeled.pretrain.symptoms import chance, same_features

FIRST = View(
    scale=(0.08, 1.0), interpolation="bilinear", jitter=(0.4, 0.4, 0.2, 0.1), jitter_p=0.8, grayscale=0.2, blur=1.0
)
SECOND = FIRST.model_copy(update={"blur": 0.1, "solarize": 0.2})
SMALL = EncoderConfig(model="vit_small_patch16_224", heads=12, positions="sincos_rows")


class Config(MethodConfig, frozen=True):
    """MoCo v3: defaults are the paper's ViT-S/16."""

    name: Literal["mocov3"] = "mocov3"
    first: View = Field(FIRST, description="the first view: always blurred")
    second: View = Field(SECOND, description="the second view: rarely blurred, sometimes solarised")
    encoder: EncoderConfig = Field(SMALL, description="the vision transformer or CNN that is kept")
    freeze_patches: bool = Field(True, description="keep a ViT's patch projection at its random start (section 4.2)")
    hidden: int = Field(4096, ge=1, description="width inside projector and predictor")
    dim: int = Field(256, ge=2, description="width of queries and keys")
    projector_layers: int | None = Field(
        None, ge=1, le=16, description="linear layers of the projector; null = 3, of a CNN 2"
    )
    predictor_layers: int = Field(2, ge=1, le=16, description="linear layers of the predictor")
    temperature: float = Field(0.2, gt=0, description="of the similarities")
    momentum: float | None = Field(
        None,
        ge=0,
        le=1,
        description="of the teacher at the start, a cosine takes it to 1; null = 0.99 at batch 4096, rescaled",
    )

    title: ClassVar[str] = "MoCo v3"
    crops: ClassVar[dict[str, Crops]] = {"first": Crops(), "second": Crops(like="first")}
    paper: ClassVar[Setting] = Setting(batch=4096, epochs=300, steps=93_600)
    ends: ClassVar[dict[str, float]] = {"momentum": 1.0}
    rules: ClassVar[dict[str, Rule]] = {"momentum": Rule(0.99, same_window)}

    def build(self) -> MoCoV3:
        """A randomly initialised model, its teacher equal to it."""
        return MoCoV3(self._branch(), self._branch(), self)

    def _branch(self) -> Branch:
        encoder = self.encoder.build(self.first.shape)
        encoder.initialise_("mocov3", freeze_patches=self.freeze_patches)
        layers = self.projector_layers or (2 if encoder.resnet_heads else 3)
        return Branch(encoder, mlp((encoder.feature_width, *[self.hidden] * (layers - 1), self.dim)))


class Branch(nn.Module):
    """An encoder and its projector: what the teacher follows."""

    def __init__(self, encoder: Encoder, projector: nn.Module) -> None:
        super().__init__()
        self.encoder, self.projector = encoder, projector


class MoCoV3(PretrainMethod):
    """Symmetrised InfoNCE between two views, with a momentum teacher and no queue."""

    def __init__(self, student: Branch, teacher: Branch, config: Config) -> None:
        super().__init__()
        self.encoder, self.projector = student.encoder, student.projector
        widths = config.dim, *[config.hidden] * (config.predictor_layers - 1), config.dim
        self.predictor = mlp(widths, last_norm=not self.encoder.resnet_heads)
        self.teacher = teacher
        self.temperature, self.momentum = config.temperature, as_in_paper(config).momentum
        follow_(teacher, self)

    def forward(self, batch: Batch, progress: Progress) -> Output:
        images = torch.cat([view.flat()[0] for view in batch.views])
        features = self.encoder.feature(images, views=2)
        query_1, query_2 = self.predictor(self.projector(features, views=2), views=2).chunk(2)
        with torch.no_grad():
            key_1, key_2 = self.teacher.projector(self.teacher.encoder.feature(images, views=2), views=2).chunk(2)

        loss = self._contrast(query_1, key_2) + self._contrast(query_2, key_1)
        # what a network gets that cannot tell pictures apart
        blind = 2 * 2 * self.temperature * math.log(len(query_1) * world())
        measures = {"of_chance": loss.detach() / blind, "feature_std": feature_std(features)}
        return Output(loss, {**measures, **contrast(query_1, key_2)}, features[: len(query_1)].detach())

    def _contrast(self, queries: Tensor, keys: Tensor) -> Tensor:
        return info_nce(queries, gather(keys), len(queries) * rank(), self.temperature)

    def after_step(self, progress: Progress, broken: Tensor | None = None) -> None:
        """The teacher follows, with the next step's momentum: officially it does so before that step's keys."""
        done = min(1.0, (progress.step + 1) / progress.total_steps)
        ema_(self.teacher, self, cosine(self.momentum, 1.0, done), broken)

    def exports(self) -> dict[str, Encoder]:
        return {"encoder": self.encoder, "teacher": self.teacher.encoder}

    def decays(self, name: str, parameter: nn.Parameter) -> bool:
        """Everything decays: biases, norms and class token too (official `main_moco.py`)."""
        return True

    def batch_statistics(self) -> tuple[str, ...]:
        return "negatives of the batch", *super().batch_statistics()

    def symptoms(self) -> list[Symptom]:
        return [chance(), same_features("keep method.momentum at 0.99 or above")]
