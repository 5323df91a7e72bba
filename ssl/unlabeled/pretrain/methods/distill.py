"""Distillation from frozen teachers (lightly-train, Lightly 2025; official code lightly-ai/lightly-train at 8f5a75c).

A student of any architecture learns to say of a picture what a large frozen network says of it: how similar it is to
the pictures in a queue (global, `v1` of the official code), what the patches are (dense, `v2`), or both, the patches by
how similar they are to each other (`v3`, the official default). There is no paper; this follows the code: the queue
takes the present batch before the loss, student and teacher see the same mixed picture, the student's map is resized to
the teacher's grid after its projection. Not as there: the queue is that of all processes, one share mixes the pictures
of all of them, pictures are mixed with their neighbours in the batch, which is in random order already, and several
teachers may teach at once.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from pydantic import BeforeValidator, Field, PrivateAttr
from torch import Tensor, nn

from unlabeled.backbone.config import EncoderConfig
from unlabeled.backbone.encoder import Encoder
from unlabeled.backbone.folder import IMAGENET, Preprocessing
from unlabeled.data.batch.batch import Batch
from unlabeled.data.view.mixing import Mixing
from unlabeled.data.view.views import View
from unlabeled.nn.loss.exact import exact
from unlabeled.nn.measures import feature_std
from unlabeled.nn.mixing import mix_images
from unlabeled.nn.patches import resize_patches
from unlabeled.nn.queue import Queue
from unlabeled.nn.regions import region
from unlabeled.pretrain.frozen import Seen, Teacher, TeacherConfig
from unlabeled.pretrain.method import Crops, MethodConfig, Output, PretrainMethod, Progress, Symptom
from unlabeled.pretrain.rescale import Rule, Setting, as_in_paper, queue_for_pictures
from unlabeled.pretrain.symptoms import nothing_explained, same_features

CROP = View(scale=(0.14, 1.0), jitter=(0.4, 0.4, 0.2, 0.1), jitter_p=0.8, grayscale=0.2)
STUDENT = EncoderConfig(model="vit_small_patch16_224", positions="learned")
TEACHER = TeacherConfig(weights="timm:vit_base_patch16_dinov3.lvd1689m")


def _several(told: Any) -> Any:
    """One teacher or a list of them, each a section or its address alone."""
    one = isinstance(told, str | dict | TeacherConfig)
    if not one and not isinstance(told, list | tuple):
        return told
    return tuple({"weights": each} if isinstance(each, str) else each for each in ((told,) if one else told))


class Config(MethodConfig, frozen=True):
    """Distillation: defaults are the official code's newest variant, with a ViT-S/16."""

    name: Literal["distill"] = "distill"
    view: View = Field(CROP, description="the crop that student and teachers see")
    encoder: EncoderConfig = Field(STUDENT, description="the student: any network, which is kept")
    teacher: Annotated[tuple[TeacherConfig, ...], BeforeValidator(_several)] = Field(
        (TEACHER,), min_length=1, max_length=8, description="the frozen network to learn from, or several"
    )
    mode: Literal["global", "dense", "both"] = Field(
        "both",
        description="learn a picture's similarities to those of a queue (global), its patches (dense), or its "
        "similarities and those of its patches to each other (both)",
    )
    queue: int | None = Field(
        None,
        ge=1,
        description="pictures to compare with, as the teacher sees them; null = 16 to 8192, by their number",
    )
    temperature: float = Field(0.07, gt=0, description="of similarities between pictures")
    local_temperature: float = Field(0.07, gt=0, description="of similarities between patches")
    mixup: bool = Field(True, description="each picture is mixed with another of its batch, by one share in a step")

    title: ClassVar[str] = "distillation"
    crops: ClassVar[dict[str, Crops]] = {"view": Crops()}
    paper: ClassVar[Setting] = Setting(batch=1536, epochs=100, steps=83_400)
    rules: ClassVar[dict[str, Rule]] = {"queue": Rule(8192, queue_for_pictures)}
    _how: Preprocessing = PrivateAttr(IMAGENET)  # of the pictures

    @property
    def mixing(self) -> Mixing:
        """Shares are uniform between 0 and 1."""
        return Mixing(mixup=1.0, together=True) if self.mixup else Mixing()

    def seeing(self, how: Preprocessing) -> Config:
        """See `MethodConfig`; teachers see pictures by their own normalisation."""
        seen = self.model_copy()
        seen._how = how
        return seen

    def teachers(self) -> list[Teacher]:
        """The teachers with their weights."""
        seen = Seen(self.view.shape, self._how)
        return [teacher.build(seen, blocks=2 if self.mode == "dense" else 1) for teacher in self.teacher]

    def relies_on(self) -> dict[str, str]:
        return {"method.teacher": "; ".join(teacher.in_words() for teacher in self.teachers())}

    def build(self) -> Distillation:
        """A student with random weights, and its teachers."""
        encoder = self.encoder.build(self.view.shape, pooled=self.mode != "dense")
        encoder.initialise_("dino")
        return Distillation(encoder, self.teachers(), as_in_paper(self))


class Distillation(PretrainMethod):
    """A student and its frozen teachers, with heads and a queue for each of them."""

    def __init__(self, encoder: Encoder, teachers: list[Teacher], config: Config) -> None:
        super().__init__()
        self.encoder, self.config, mode = encoder, config, config.mode
        self.teachers = nn.ModuleList(teachers)
        whole, local = [] if mode == "dense" else teachers, [] if mode == "global" else teachers
        self.heads = nn.ModuleList(_linear(encoder.feature_width, teacher.feature_width) for teacher in whole)
        self.queues = nn.ModuleList(Queue(int(config.queue or 0), teacher.feature_width) for teacher in whole)
        self.patch_heads = nn.ModuleList(_linear(encoder.width, teacher.width, mode != "dense") for teacher in local)

    def forward(self, batch: Batch, progress: Progress) -> Output:
        images, _ = batch.views[0].flat()
        if batch.mix is not None:
            images = mix_images(images, batch.mix)
        tokens, how = self.encoder(images), self.encoder.default_pool
        feature = self.encoder.own(tokens) if how == "own" else tokens.pool(how)

        # teachers add their losses, and share measures
        taught, terms = [teacher(images) for teacher in self.teachers], list[tuple[Tensor, dict[str, Tensor]]]()
        for (aims, _, _), head, queue in zip(taught, self.heads, self.queues, strict=False):
            terms.append(self._global(head(feature), aims, cast("Queue", queue), progress.step))
        for (_, aims, grid), head in zip(taught, self.patch_heads, strict=False):
            terms.append(self._local(resize_patches(head(tokens.patches), tokens.grid, grid, "bilinear"), aims))
        loss = torch.stack([loss for loss, _ in terms]).sum()
        names = dict.fromkeys(name for _, found in terms for name in found)
        means = {name: torch.stack([found[name] for _, found in terms if name in found]).mean() for name in names}
        return Output(loss, {**means, "feature_std": feature_std(feature)}, feature.detach())

    def _global(self, student: Tensor, teacher: Tensor, queue: Queue, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss and measures of features [B, D] of pictures."""
        own, aims = (F.normalize(x.float(), dim=-1) for x in (student, teacher))
        pictures, temperature = queue.after(aims), self.config.temperature
        queue.note(aims, step)
        loss = global_loss(own, aims, pictures, temperature)
        found = loss.detach()
        return loss, {"kl": found, "of_uniform": of_uniform(found, aims, pictures, temperature)}

    def _local(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss and measures of patches [B, N, D] on one grid."""
        if self.config.mode == "dense":
            loss = dense_loss(student, teacher)
            return loss, {"explained": explained(loss.detach(), teacher)}
        own, aims = (F.normalize(x.float(), dim=-1) for x in (student, teacher))
        loss = local_loss(own, aims, self.config.local_temperature)
        return loss, {"kl_patches": loss.detach()}

    def after_step(self, progress: Progress, broken: Tensor | None = None) -> None:
        """The teachers' features of the step enter the queues."""
        for queue in self.queues:
            cast("Queue", queue).push_()

    def exports(self) -> dict[str, Encoder]:
        return {"encoder": self.encoder}

    def batch_statistics(self) -> tuple[str, ...]:
        own = ("the teacher's features of the batch",) if len(self.queues) else ()
        return *own, *super().batch_statistics()

    def symptoms(self) -> list[Symptom]:
        calm = same_features("set optim.clip=1.0")
        return [nothing_explained(1.0) if self.config.mode == "dense" else nothing_learnt(), calm]


def nothing_learnt() -> Symptom:
    """A divergence as large as that of a student to which all pictures are alike."""
    return Symptom(
        "of_uniform",
        "the student follows the teacher no better than if all pictures were alike: nothing is learnt",
        "Lower optim.base_lr to a third, or warm up longer (optim.warmup_epochs).",
        at_least=0.98,
    )


def _linear(source: int, target: int, biased: bool = True) -> nn.Linear:
    """A head. Its bias begins as torch has it (official `DistillationV3`), or at zero (`DistillationV2`)."""
    layer = nn.Linear(source, target)
    nn.init.trunc_normal_(layer.weight, std=0.02)
    if not biased:
        nn.init.zeros_(layer.bias)
    return layer


@region
def global_loss(student: Tensor, teacher: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """KL divergence of the student's similarities to the pictures of the queue [Q, D] from the teacher's.

    The mean over pictures; student and teacher are unit vectors [B, D], and the queue has the batch in it already.
    """
    with exact(student):
        return _divergence(student @ queue.T / temperature, teacher @ queue.T / temperature)


@region
def local_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL divergence of the similarities of a picture's patches to each other, themselves included.

    The mean over all patches of all pictures; student and teacher are unit vectors [B, N, D] and [B, N, E].
    """
    with exact(student):
        return _divergence(student @ student.mT / temperature, teacher @ teacher.mT / temperature)


@region
def dense_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """The mean squared error of patches [B, N, D], which are not normalised."""
    return F.mse_loss(student.float(), teacher.float())


def _divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """The mean over rows of KL(softmax(teacher) || softmax(student)), of logits [..., K]."""
    aims, own = teacher.log_softmax(-1), student.log_softmax(-1)
    return F.kl_div(own, aims, reduction="none", log_target=True).sum(-1).mean()


@torch.no_grad()
@region
def of_uniform(divergence: Tensor, teacher: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """A divergence of `global_loss` as a share of what a student gets to which all pictures are alike."""
    with exact(teacher):
        aims = (teacher @ queue.T / temperature).softmax(-1)
    return divergence / (math.log(len(queue)) - torch.special.entr(aims).sum(-1).mean()).clamp_min(1e-6)


@torch.no_grad()
@region
def explained(error: Tensor, teacher: Tensor) -> Tensor:
    """The share of the variance of the teacher's patches [B, N, D] that a squared error leaves out: 0 = none."""
    rows = teacher.float().flatten(0, 1)
    return 1 - error / rows.var(0, unbiased=False).mean().clamp_min(1e-12)
