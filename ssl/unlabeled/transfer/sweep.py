"""Linear heads on a frozen backbone, many at once: one for every kind of features and learning rate (iBOT's
`eval_linear_multi.py`, DINOv2's `eval/linear.py`; with a single head, DINO's `eval_linear.py`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import BaseModel, Field
from torch import Tensor, nn

from unlabeled.backbone.build import copy_encoder
from unlabeled.backbone.encoder import Encoder
from unlabeled.backbone.pooling import FeatureSpec, Part, Pool, check, parts, reader
from unlabeled.pretrain.method import Batch, Method, Output, Progress
from unlabeled.transfer.losses import Objective, examples

if TYPE_CHECKING:
    from unlabeled.transfer.classify import Classifier
    from unlabeled.transfer.config import ClassifyConfig


class Sweep(BaseModel, frozen=True, extra="forbid"):
    """Which heads are trained side by side: every rate on every kind of features."""

    rates: tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...] = Field(
        (1.0,), min_length=1, description="factors on optim.base_lr, a head for each"
    )
    pools: tuple[Pool, ...] = Field(
        (), description="ways to make tokens one vector, [cls, cls_mean] in DINOv2; [] = as task.pool says"
    )
    blocks: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (1,), min_length=1, description="how many of the last blocks to concatenate, each through the final norm"
    )

    def heads(self, pool: Any) -> list[Head]:
        """All of them; those of one kind of features together. `pool` is the task's."""
        kinds = [FeatureSpec(each, blocks) for blocks in self.blocks for each in self.pools or (pool,)]
        return [Head(kind, rate) for kind in dict.fromkeys(kinds) for rate in self.rates]


class Head(NamedTuple):
    """What a linear head reads, and the factor on its learning rate."""

    kind: FeatureSpec
    rate: float


class LinearSweep(Method):
    """Linear heads that learn as if each were alone: their losses are added, and none sees another's gradient.

    Args:
        encoder: copied; it stays as it is, running statistics included.
        config: how to transfer.
        counts: training pictures of each class.

    Attributes:
        tried: what every head is.
        chosen: number of the head that predicts.

    Raises:
        UserError: the encoder does not have such features.
    """

    def __init__(self, encoder: Encoder, config: ClassifyConfig, counts: Sequence[int]) -> None:
        from unlabeled.transfer.classify import initialize_

        super().__init__()
        self.config, self.num_classes, self.chosen = config, len(counts), 0
        self.tried = config.sweep.heads(config.pool)
        self.kinds = list(dict.fromkeys(head.kind for head in self.tried))
        for kind in self.kinds:
            check(encoder, kind)
        self.encoder = copy_encoder(encoder).requires_grad_(False)
        self.pieces = list(dict.fromkeys(part for kind in self.kinds for part in parts(kind)))
        self.heads = nn.ModuleList(nn.Linear(len(parts(head.kind)) * encoder.width, len(counts)) for head in self.tried)
        for head in self.heads:
            initialize_(head, config)  # type: ignore[arg-type]
        self.objective = Objective(config, counts)

    def forward(self, batch: Batch, progress: Progress) -> Output:
        images, targets = examples(batch, self.num_classes, self.config.label_smoothing)
        logits = self.logits(images).float()
        correct = logits.detach().argmax(-1) == targets.argmax(-1, keepdim=True)
        loss = self.objective(logits, targets.unsqueeze(1))
        metrics = {"loss_per_head": loss.detach(), "train_accuracy": 100 * correct.float().mean(0).max()}
        # the mean over heads, times their number: each gets the gradient of its own mean loss
        return Output(len(self.heads) * loss, metrics)

    def logits(self, images: Tensor) -> Tensor:
        """Class scores [B, heads, classes] of images [B, C, H, W]."""
        read = reader(self.encoder, self.pieces)(images).chunk(len(self.pieces), dim=1)
        pieces = dict(zip(self.pieces, read, strict=True))
        return torch.cat([self._logits(kind, pieces) for kind in self.kinds], dim=1)

    def _logits(self, kind: FeatureSpec, pieces: dict[Part, Tensor]) -> Tensor:
        """Of all heads on one kind of features, in a single product."""
        features = torch.cat([pieces[part] for part in parts(kind)], dim=1)
        heads: Any = [head for head, tried in zip(self.heads, self.tried, strict=True) if tried.kind == kind]
        weight, bias = torch.cat([head.weight for head in heads]), torch.cat([head.bias for head in heads])
        return F.linear(features, weight, bias).unflatten(1, (len(heads), -1))

    def predict(self, images: Tensor) -> Tensor:
        """Class scores [B, classes] by the chosen head."""
        return self.logits(images)[:, self.chosen]

    def guesses(self, images: Tensor) -> Tensor:
        """The class that every head takes images [B, C, H, W] for [B, heads]."""
        return self.logits(images).argmax(-1)

    def as_classifier(self) -> Classifier | None:
        """A timm model with the chosen head; None where timm has none that reads such features."""
        from unlabeled.transfer.classify import Classifier

        kind = self.tried[self.chosen].kind
        if kind.blocks > 1 or kind.pool not in ("cls", "mean"):
            return None
        config = self.config.model_copy(update={"mode": "frozen", "pool": kind.pool})
        whole = Classifier(self.encoder, config, [1] * self.num_classes)
        whole.head.load_state_dict(self.heads[self.chosen].state_dict())
        return whole

    def train(self, mode: bool = True) -> LinearSweep:
        """The backbone stays in evaluation mode."""
        super().train(mode)
        self.encoder.eval()
        return self

    def exports(self) -> dict[str, Encoder]:
        return {}

    def lr_scale(self, name: str) -> float:
        """A head's own rate."""
        return self.tried[int(name.split(".")[1])].rate
