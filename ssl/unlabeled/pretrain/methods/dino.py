"""DINO (Caron et al., ICCV 2021; official code facebookresearch/dino at 7c446df).

A student that sees any crop of a picture learns to say what its moving average, the teacher, says about the two large
ones. Where paper and code differ this follows the code: the centre is updated after the loss that used it, the teacher
temperature changes once per epoch, and the last layer is left alone, weight decay included, in the first epoch. The
defaults are those of the released ViT-S/16, which are not those of the code's README.

With `coding_rate` it is SimDINO (Wu et al., ICML 2025; official code RobinWu218/SimDINO at 8149fc4): no prototypes,
temperatures and centre; vectors agree by their cosine, and a coding rate keeps them apart. Not as in that code, unless
its `reduce_cov` is 1: the rate is of the rows of all processes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from unlabeled.backbone.config import EncoderConfig
from unlabeled.backbone.encoder import Encoder
from unlabeled.data.batch.batch import Batch
from unlabeled.data.view.views import View
from unlabeled.nn.curves import Temperature, cosine
from unlabeled.nn.heads import DistillHead, HeadConfig
from unlabeled.nn.loss.prototypes import CrossEntropy, sharpen
from unlabeled.nn.loss.spread import CodingRate
from unlabeled.nn.measures import contrast, feature_std
from unlabeled.nn.teacher import Centre, ema_, follow_
from unlabeled.pretrain.method import Crops, MethodConfig, Output, PretrainMethod, Progress, Symptom
from unlabeled.pretrain.rescale import Rule, Setting, as_in_paper, same_share, same_window
from unlabeled.pretrain.symptoms import of_self_distillation

GLOBAL_1 = View(scale=(0.25, 1.0), jitter=(0.4, 0.4, 0.2, 0.1), jitter_p=0.8, grayscale=0.2, blur=1.0)
GLOBAL_2 = GLOBAL_1.model_copy(update={"blur": 0.1, "solarize": 0.2})
LOCAL = GLOBAL_1.model_copy(update={"count": 10, "size": 96, "scale": (0.05, 0.25), "blur": 0.5})
SMALL = EncoderConfig(model="vit_small_patch16_224", positions="learned", interpolation="scale", drop_path=0.1)


class Config(MethodConfig, frozen=True):
    """DINO: defaults are those of the released ViT-S/16."""

    name: Literal["dino"] = "dino"
    global_1: View = Field(GLOBAL_1, description="the first large crop: always blurred")
    global_2: View = Field(GLOBAL_2, description="the second large crop: rarely blurred, sometimes solarised")
    local: View | None = Field(LOCAL, description="small crops, for the student only; null = none")
    encoder: EncoderConfig = Field(SMALL, description="the vision transformer or CNN that is kept")
    head: HeadConfig = Field(HeadConfig(freeze_gain=False), description="from the encoder's feature to prototypes")
    coding_rate: CodingRate | None = Field(
        None, description="SimDINO's objective in place of prototypes, temperatures and centre; {} = its defaults"
    )
    head_norm: bool | None = Field(
        None, description="batch normalisation inside the head (official use_bn_in_head); null = for a CNN"
    )
    student_temperature: float = Field(0.1, gt=0, description="of the student's distribution")
    teacher_temperature: float = Field(0.07, gt=0, description="of the teacher's distribution; more is unstable")
    teacher_temperature_start: float = Field(0.04, gt=0, description="where its warm-up begins: sharper")
    teacher_temperature_epochs: float | None = Field(
        None, ge=0, description="epochs of its warm-up; null = 30 of 800, rescaled"
    )
    centre_momentum: float = Field(0.9, ge=0, lt=1, description="of the running centre of the teacher's logits")
    momentum: float | None = Field(
        None,
        ge=0,
        le=1,
        description="of the teacher at the start, a cosine takes it to 1; null = 0.996 at batch 1024, rescaled",
    )
    frozen_epochs: float | None = Field(
        None, ge=0, description="epochs in which the last layer is left alone; null = 1 of 800, rescaled"
    )

    title: ClassVar[str] = "DINO"
    crops: ClassVar[dict[str, Crops]] = {
        "global_1": Crops(),
        "global_2": Crops(like="global_1"),
        "local": Crops(count=None),
    }
    any_size: ClassVar[bool] = True
    paper: ClassVar[Setting] = Setting(batch=1024, epochs=800, steps=1_000_800)
    ends: ClassVar[dict[str, float]] = {"momentum": 1.0}
    rules: ClassVar[dict[str, Rule]] = {
        "momentum": Rule(0.996, same_window),
        "teacher_temperature_epochs": Rule(30, same_share),
        "frozen_epochs": Rule(1, same_share),
    }

    @model_validator(mode="after")
    def _has_vectors(self) -> Config:
        if self.coding_rate is not None and not self.head.bottleneck:
            raise ValueError("coding_rate needs unit vectors: expected head.bottleneck above 0, such as 256; found 0")
        return self

    @property
    def normalizes(self) -> bool:
        """Whether the head has batch normalisation."""
        return self.encoder.family.resnet_heads if self.head_norm is None else self.head_norm

    def build(self) -> DINO:
        """A randomly initialised model, its teacher equal to it. The teacher drops no paths."""
        calm = self.encoder.calm
        encoder, teacher = (config.build(self.global_1.shape) for config in (self.encoder, calm))
        encoder.initialise_("dino")
        made = {"norm": self.normalizes, "embeds": self.coding_rate is not None}
        head, teacher_head = (self.head.build(encoder.feature_width, **made) for _ in range(2))
        return DINO(encoder, head, teacher, teacher_head, self)


class DINO(PretrainMethod):
    """Self-distillation without labels."""

    def __init__(
        self, encoder: Encoder, head: DistillHead, teacher: Encoder, teacher_head: DistillHead, config: Config
    ) -> None:
        super().__init__()
        self.encoder, self.head, self.teacher, self.teacher_head = encoder, head, teacher, teacher_head
        self.centre = Centre(config.head.prototypes, config.centre_momentum)
        self.config = c = as_in_paper(config)
        self.objective = c.coding_rate or CrossEntropy(c.student_temperature)
        start, end, epochs = c.teacher_temperature_start, c.teacher_temperature, c.teacher_temperature_epochs
        self.teacher_temperature = Temperature(start, end, epochs)
        follow_(teacher, encoder)
        follow_(teacher_head, head)

    def forward(self, batch: Batch, progress: Progress) -> Output:
        # all crops of one size go through together, the large ones first
        large = torch.cat([view.flat()[0] for view in batch.views[:2]])
        small = [view.flat()[0] for view in batch.views[2:]]
        features = [self.encoder.feature(crops) for crops in (large, *small)]
        student = self.head(torch.cat(features))

        # the teacher sees the large ones only
        with torch.no_grad():
            teacher = self.teacher_head(self.teacher.feature(large))
        if self.config.coding_rate is None:
            teacher = self._targets(teacher, progress)

        # every pair of different views
        teacher, student = (rows.unflatten(0, (-1, len(large) // 2)) for rows in (teacher, student))
        loss, measures = self.objective.compare(student, teacher)
        views = features[0].detach().chunk(2)
        measures = {**measures, "feature_std": feature_std(features[0]), **contrast(*views)}
        return Output(loss, measures, views[0])

    def _targets(self, logits: Tensor, progress: Progress) -> Tensor:
        """The teacher's probabilities [2B, K]; its logits enter the centre after this step."""
        temperature = self.teacher_temperature.at(progress.epoch, progress.total_steps / progress.epochs)
        self.centre.note(logits, progress.step)
        return sharpen(logits, self.centre.value, temperature)

    def after_step(self, progress: Progress, broken: Tensor | None = None) -> None:
        momentum = cosine(self.config.momentum, 1.0, progress.step / progress.total_steps)
        ema_(self.teacher, self.encoder, momentum, broken)
        ema_(self.teacher_head, self.head, momentum, broken)
        if self.config.coding_rate is None:
            self.centre.update_()

    def frozen(self, progress: Progress) -> Iterable[nn.Parameter]:
        """The last layer, at first (official `cancel_gradients_last_layer`)."""
        return self.head.prototypes() if progress.epoch < self.config.frozen_epochs else ()

    def exports(self) -> dict[str, Encoder]:
        return {"teacher": self.teacher, "encoder": self.encoder}

    def batch_statistics(self) -> tuple[str, ...]:
        rated = () if self.config.coding_rate is None else ("the coding rate",)
        return *rated, *super().batch_statistics()

    def symptoms(self) -> list[Symptom]:
        return of_self_distillation(self.config, centred=True)
