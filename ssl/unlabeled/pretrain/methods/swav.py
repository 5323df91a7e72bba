"""SwAV (Caron et al., NeurIPS 2020; official code facebookresearch/swav at 06b1b7c).

Every crop of a picture predicts the prototypes that its large crops are assigned to. Assignments use all prototypes
equally over a batch (Sinkhorn-Knopp), and in small batches over vectors of earlier pictures too. There is no teacher.
Where paper and code differ this follows the code: the loss is a mean over both assignments and all other crops (in the
paper a sum), and a queue is used once it is full. Prototypes are unit vectors: normalised after every step, there
before it, which is the same. Not as there: one queue for all processes (there each has one of its own pictures), and
pictures are divided by a standard deviation of .229 in red (there .228).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from unlabeled.backbone.config import EncoderConfig
from unlabeled.backbone.encoder import Encoder
from unlabeled.data.batch.batch import Batch
from unlabeled.data.view.views import View
from unlabeled.nn.batchnorm import BatchNorm
from unlabeled.nn.collectives import rank, world
from unlabeled.nn.heads import Mlp
from unlabeled.nn.loss.exact import exact
from unlabeled.nn.loss.prototypes import cross_view
from unlabeled.nn.loss.sinkhorn import sinkhorn
from unlabeled.nn.measures import contrast, feature_std, teaching
from unlabeled.nn.queue import Queue
from unlabeled.nn.regions import region
from unlabeled.pretrain.method import Crops, MethodConfig, Output, PretrainMethod, Progress, Symptom
from unlabeled.pretrain.rescale import Rule, Setting, as_in_paper, same_share
from unlabeled.pretrain.symptoms import few_prototypes, same_features, uniform_targets

PAIR = View(
    count=2,
    scale=(0.14, 1.0),
    interpolation="bilinear",
    jitter=(0.8, 0.8, 0.8, 0.2),
    jitter_p=0.8,
    grayscale=0.2,
    blur=0.5,
)
LOCAL = PAIR.model_copy(update={"count": 6, "size": 96, "scale": (0.05, 0.14)})


class Config(MethodConfig, frozen=True):
    """SwAV: defaults are those of 800 epochs at batch 4096, without a queue."""

    name: Literal["swav"] = "swav"
    view: View = Field(PAIR, description="the two large crops, which are assigned to prototypes")
    local: View | None = Field(LOCAL, description="small crops, which predict assignments alone; null = none")
    encoder: EncoderConfig = Field(
        EncoderConfig(model="resnet50", zero_init=False), description="the CNN or vision transformer that is kept"
    )
    hidden: int = Field(2048, ge=1, description="width inside the projector")
    dim: int = Field(128, ge=2, description="width of the vectors that meet prototypes")
    prototypes: int = Field(3000, ge=2, description="number of prototypes, about ten times the kinds of things")
    temperature: float = Field(0.1, gt=0, description="of the predictions")
    epsilon: float = Field(0.05, gt=0, description="of the assignments: with less they are sharper")
    iterations: int = Field(3, ge=1, description="of Sinkhorn-Knopp")
    queue: int = Field(
        0, ge=0, description="vectors of earlier pictures that share the assignment, for small batches: 3840; 0 = none"
    )
    queue_epoch: float = Field(15.0, ge=0, description="epoch from which the queue fills")
    frozen_epochs: float | None = Field(
        None, ge=0, description="epochs in which prototypes are left alone; null = 1 of 800, rescaled"
    )

    title: ClassVar[str] = "SwAV"
    crops: ClassVar[dict[str, Crops]] = {"view": Crops(count=2), "local": Crops(count=None)}
    any_size: ClassVar[bool] = True
    paper: ClassVar[Setting] = Setting(batch=4096, epochs=800, steps=249_600)
    rules: ClassVar[dict[str, Rule]] = {"frozen_epochs": Rule(1, same_share)}

    def build(self) -> SwAV:
        encoder = self.encoder.build(self.view.shape)
        encoder.initialise_("dino")
        return SwAV(encoder, self)


class SwAV(PretrainMethod):
    """Swapped prediction of assignments to prototypes."""

    def __init__(self, encoder: Encoder, config: Config) -> None:
        super().__init__()
        self.encoder, self.config = encoder, as_in_paper(config)
        first, last = nn.Linear(encoder.feature_width, config.hidden), nn.Linear(config.hidden, config.dim)
        self.projector = Mlp(first, BatchNorm(config.hidden), nn.ReLU(inplace=True), last)
        self.prototypes = nn.Linear(config.dim, config.prototypes, bias=False)
        self.queues = nn.ModuleList(Queue(config.queue, config.dim) for _ in range(2 if config.queue else 0))
        self._normalise_()

    def forward(self, batch: Batch, progress: Progress) -> Output:
        # all crops of one size go through together, and all crops through one projector
        large, *small = (view.flat()[0] for view in batch.views)
        features = [self.encoder.feature(crops) for crops in (large, *small)]
        vectors = F.normalize(self.projector(torch.cat(features)).float(), dim=1).unflatten(0, (-1, len(large) // 2))
        scores = cosines(vectors, self.prototypes.weight)

        # each of the two large crops is assigned, every other crop predicts
        queued = zip(vectors, scores, self._queues(progress), strict=False)
        targets = torch.stack([self._assigned(*one, progress.step) for one in queued])
        loss = cross_view(scores, targets, self.config.temperature)

        views = features[0].detach().chunk(2)
        measures = {**teaching(loss, targets), "of_uniform": loss.detach() / math.log(self.config.prototypes)}
        return Output(loss, {**measures, "feature_std": feature_std(features[0]), **contrast(*views)}, views[0])

    def _queues(self, progress: Progress) -> list[Queue | None]:
        """The queues of the two large crops; None = they have none yet."""
        queues: list[Any] = list(self.queues)
        return queues if queues and progress.epoch >= self.config.queue_epoch else [None, None]

    @torch.no_grad()
    def _assigned(self, vectors: Tensor, scores: Tensor, queue: Queue | None, step: int) -> Tensor:
        """Assignments [B, K] of the vectors [B, D] of a view; over those of its queue too, once that is full."""
        c, valid = self.config, None
        if queue is not None:
            share = (len(queue.rows) * number // world() for number in (rank(), rank() + 1))
            earlier = queue.rows[slice(*share)]
            full = queue.rows[-1].any().expand(len(earlier))
            valid = torch.cat([full, full.new_ones(len(scores))])
            scores = torch.cat([cosines(earlier, self.prototypes.weight), scores])
            queue.note(vectors, step)
        return sinkhorn(scores, c.epsilon, c.iterations, valid)[-len(vectors) :]

    def after_step(self, progress: Progress, broken: Tensor | None = None) -> None:
        self._normalise_(broken)
        for queue in self._queues(progress):
            if queue is not None:
                queue.push_()

    @torch.no_grad()
    def _normalise_(self, broken: Tensor | None = None) -> None:
        """Make prototypes unit vectors, unless the step was skipped."""
        weight = self.prototypes.weight
        unit = F.normalize(weight, dim=1)
        weight.copy_(unit if broken is None else torch.where(broken, weight, unit))

    def frozen(self, progress: Progress) -> Iterable[nn.Parameter]:
        """The prototypes, at first (official `freeze_prototypes_niters`)."""
        return self.prototypes.parameters() if progress.epoch < self.config.frozen_epochs else ()

    def exports(self) -> dict[str, Encoder]:
        return {"encoder": self.encoder}

    def decays(self, name: str, parameter: nn.Parameter) -> bool:
        """Everything decays: biases, norms and prototypes too."""
        return True

    def batch_statistics(self) -> tuple[str, ...]:
        return "Sinkhorn-Knopp", *super().batch_statistics()

    def symptoms(self) -> list[Symptom]:
        sharper = f"lower method.epsilon from {self.config.epsilon:g} to {0.6 * self.config.epsilon:g}"
        return [uniform_targets(self.config.prototypes, sharper), few_prototypes(), same_features(sharper)]


@region
def cosines(vectors: Tensor, prototypes: Tensor) -> Tensor:
    """Products [..., K] of vectors [..., D] and prototypes [K, D], both unit vectors, in float32."""
    with exact(vectors):
        return F.linear(vectors.float(), prototypes.float())
