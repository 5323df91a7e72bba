"""MSN, masked siamese networks (Assran et al., ECCV 2022; official code facebookresearch/msn at 4388dc1).

A crop with patches dropped, and small crops, predict the prototypes that a moving average, the target network, gives
another crop of the picture; the mean prediction is to use all prototypes (me-max). Targets are sharpened, then balanced
(Sinkhorn-Knopp). Where paper and code differ this follows the code: its recipe balances targets, which the paper need
not; the momentum grows along a straight line, which the end of the run cuts off. Not as there: patches are dropped at
random in every picture (there the same ones in all pictures of a process), and gradients of prototypes are means over
processes (there sums).
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from unlabeled.backbone.config import EncoderConfig
from unlabeled.backbone.encoder import Encoder, Hiding
from unlabeled.data.batch.batch import Batch
from unlabeled.data.masks.random import Config as RandomMask
from unlabeled.data.view.views import View
from unlabeled.nn.collectives import gather_with_gradient
from unlabeled.nn.heads import DistillHead
from unlabeled.nn.loss.exact import exact
from unlabeled.nn.loss.prototypes import soft_cross_entropy
from unlabeled.nn.loss.sinkhorn import sinkhorn
from unlabeled.nn.measures import contrast, feature_std, teaching
from unlabeled.nn.regions import region
from unlabeled.nn.teacher import ema_, follow_
from unlabeled.pretrain.method import Crops, MethodConfig, Output, PretrainMethod, Progress, Symptom
from unlabeled.pretrain.rescale import Rule, Setting, as_in_paper, same_window
from unlabeled.pretrain.symptoms import few_prototypes, same_features, uniform_targets

TARGET = View(
    scale=(0.3, 1.0), interpolation="bilinear", jitter=(0.4, 0.4, 0.4, 0.1), jitter_p=0.8, grayscale=0.2, blur=0.5
)
ANCHOR = TARGET.model_copy(update={"mask": RandomMask(ratio=0.15)})
FOCAL = TARGET.model_copy(update={"count": 10, "size": 96, "scale": (0.05, 0.3)})
SMALL = EncoderConfig(model="vit_small_patch16_224", positions="learned", interpolation="scale")


class Config(MethodConfig, frozen=True):
    """MSN: defaults are those of the official ViT-S/16."""

    name: Literal["msn"] = "msn"
    target: View = Field(TARGET, description="the crop that the target network sees, whole")
    anchor: View = Field(ANCHOR, description="the large crop that the encoder sees, and the mask that drops patches")
    focal: View | None = Field(FOCAL, description="small crops that the encoder sees whole; null = none")
    encoder: EncoderConfig = Field(SMALL, description="the vision transformer that is kept")
    hidden: int = Field(2048, ge=1, description="width inside the head, three layers with batch normalisation")
    dim: int = Field(256, ge=2, description="width of the vectors that meet prototypes")
    prototypes: int = Field(1024, ge=2, description="number of prototypes, which are learnt")
    temperature: float = Field(0.1, gt=0, description="of predictions and of targets before they are sharpened")
    sharpening: float = Field(0.25, gt=0, description="targets are p^(1/0.25): with less they are sharper")
    iterations: int = Field(3, ge=0, description="of Sinkhorn-Knopp over the targets; 0 = targets are sharpened alone")
    memax: float = Field(1.0, ge=0, description="weight of the mean prediction's lack of entropy")
    momentum: float | None = Field(
        None, ge=0, le=1, description="of the target network at first; null = 0.996 at batch 1024, rescaled"
    )
    momentum_end: float | None = Field(
        None, ge=0, le=1, description="at the end, by a straight line; null = 0.9992 at batch 1024, rescaled"
    )

    title: ClassVar[str] = "MSN"
    crops: ClassVar[dict[str, Crops]] = {
        "target": Crops(),
        "anchor": Crops(masked=True, equal_counts=True, rounding="floor_visible", like="target"),
        "focal": Crops(count=None),
    }
    hides: ClassVar[Hiding | None] = "drop"
    any_size: ClassVar[bool] = True
    class_token: ClassVar[bool] = True
    paper: ClassVar[Setting] = Setting(batch=1024, epochs=800, steps=1_000_800)
    ends: ClassVar[dict[str, float]] = {"momentum": 0.9992}
    rules: ClassVar[dict[str, Rule]] = {
        "momentum": Rule(0.996, same_window),
        "momentum_end": Rule(0.9992, same_window),
    }

    def build(self) -> MSN:
        """A randomly initialised model, its target network equal to it. That drops no paths."""
        calm = self.encoder.model_copy(update={"drop_path": 0.0})
        encoder, teacher = (config.build(self.target.shape, pooled=False) for config in (self.encoder, calm))
        encoder.initialise_("dino")
        head, teacher_head = (DistillHead(encoder.width, None, self.hidden, self.dim, norm=True) for _ in range(2))
        return MSN(encoder, head, teacher, teacher_head, self)


class MSN(PretrainMethod):
    """Predictions of prototypes, from a part of a picture."""

    def __init__(
        self, encoder: Encoder, head: DistillHead, teacher: Encoder, teacher_head: DistillHead, config: Config
    ) -> None:
        super().__init__()
        self.encoder, self.head, self.teacher, self.teacher_head = encoder, head, teacher, teacher_head
        bound = 1 / math.sqrt(config.dim)
        self.prototypes = nn.Parameter(torch.empty(config.prototypes, config.dim).uniform_(-bound, bound))
        self.config = as_in_paper(config)
        follow_(teacher, encoder)
        follow_(teacher_head, head)

    def forward(self, batch: Batch, progress: Progress) -> Output:
        # the target network sees one crop, whole
        target, _ = batch.views[0].flat()
        with torch.no_grad():
            whole = self.teacher(target).prefix[:, 0]
            vectors = self.teacher_head(whole)

        # the encoder sees the other with patches dropped, and the small ones; the head normalises each size by itself
        large, mask = batch.views[1].flat()
        seen = self.encoder(large, drop=mask).prefix[:, 0]
        small = [self.encoder(view.flat()[0]).prefix[:, 0] for view in batch.views[2:]]
        anchors = torch.cat([self.head(features) for features in (seen, *small)]).unflatten(0, (-1, len(target)))

        found = self.compare(anchors, vectors)
        uniform = math.log(self.config.prototypes)
        loss = found.cross_entropy + self.config.memax * found.memax
        parts = {
            "memax": found.memax.detach(),
            "entropy": found.entropy,
            **teaching(found.cross_entropy, found.targets),
        }
        measures = {**parts, "of_uniform": found.cross_entropy.detach() / uniform, "feature_std": feature_std(seen)}
        return Output(loss, {**measures, **contrast(seen.detach(), whole)}, seen.detach())

    def compare(self, anchors: Tensor, vectors: Tensor) -> Compared:
        """Compare anchors [V, B, D] with the target network's vectors [B, D], by the prototypes."""
        c = self.config
        sharpened = cosines(vectors, self.prototypes.detach()) / (c.temperature * c.sharpening)
        targets = sharpened.softmax(1)
        if c.iterations:
            targets = sinkhorn(sharpened.log_softmax(1), 1.0, c.iterations)
        loss, mean, entropy = _predicted(cosines(anchors, self.prototypes), targets, c.temperature)
        everyone = gather_with_gradient(mean.unsqueeze(0)).mean(0)
        memax = math.log(c.prototypes) - torch.special.entr(everyone).sum()
        return Compared(loss, memax, entropy.detach(), targets)

    def after_step(self, progress: Progress, broken: Tensor | None = None) -> None:
        first, last = self.config.momentum, self.config.momentum_end
        momentum = first + (last - first) * progress.share
        ema_(self.teacher, self.encoder, momentum, broken)
        ema_(self.teacher_head, self.head, momentum, broken)

    def exports(self) -> dict[str, Encoder]:
        return {"teacher": self.teacher, "encoder": self.encoder}

    def decays(self, name: str, parameter: nn.Parameter) -> bool:
        """As usual, but for prototypes."""
        return name != "prototypes" and super().decays(name, parameter)

    def clip_groups(self) -> list[list[nn.Parameter]]:
        """The encoder and its head together; prototypes are not clipped (official `msn_train.py`)."""
        return [[*self.encoder.parameters(), *self.head.parameters()]]

    def batch_statistics(self) -> tuple[str, ...]:
        balanced = ("Sinkhorn-Knopp",) if self.config.iterations else ()
        return *balanced, "the mean prediction", *super().batch_statistics()

    def symptoms(self) -> list[Symptom]:
        sharper = f"lower method.sharpening from {self.config.sharpening:g} to {self.config.sharpening / 2:g}"
        return [uniform_targets(self.config.prototypes, sharper), few_prototypes(), same_features(sharper)]


class Compared(NamedTuple):
    """What a comparison gives: scalars, and the targets [B, K]."""

    cross_entropy: Tensor  # of the anchors' predictions
    memax: Tensor  # ln K - the entropy of the mean prediction of all processes: 0 at best
    entropy: Tensor  # of a prediction, the mean
    targets: Tensor


@region
def cosines(vectors: Tensor, prototypes: Tensor) -> Tensor:
    """Cosines [..., K] of vectors [..., D] and prototypes [K, D], in float32."""
    with exact(vectors):
        return F.normalize(vectors.float(), dim=-1) @ F.normalize(prototypes.float(), dim=-1).T


@region
def _predicted(scores: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """The cross-entropy of predictions from cosines [V, B, K] at targets [B, K], the mean prediction [K], and the mean
    of their entropies."""
    predictions = (scores / temperature).softmax(-1)
    loss = soft_cross_entropy(scores, targets, temperature).mean()
    return loss, predictions.mean((0, 1)), torch.special.entr(predictions).sum(-1).mean()
