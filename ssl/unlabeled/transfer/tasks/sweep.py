"""Linear heads on a frozen backbone, many at once: one for every kind of features and learning rate (iBOT's
`eval_linear_multi.py`, DINOv2's `eval/linear.py`; with a single head, DINO's `eval_linear.py`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from unlabeled.backbone.build import copy_encoder
from unlabeled.backbone.encoder import Encoder
from unlabeled.backbone.folder import Preprocessing, timm_config, write_export
from unlabeled.backbone.pooling import FeatureSpec, Part, Pool, check, in_python, parts, read, reader, widths
from unlabeled.data.batch.batch import Batch
from unlabeled.data.source import Source
from unlabeled.pretrain.method import Output, Progress
from unlabeled.report.card import Made, head_card
from unlabeled.train.optimizer import Optim
from unlabeled.train.watch import Watching
from unlabeled.transfer.label_task import LabelTask
from unlabeled.transfer.losses import Objective, examples
from unlabeled.transfer.network import Trained
from unlabeled.transfer.predict import Predict
from unlabeled.transfer.strategies import frozen
from unlabeled.transfer.task import ImageTask, Traced
from unlabeled.transfer.tasks import classify

Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Config(LabelTask, frozen=True, extra="forbid"):
    """Train many linear heads on a frozen backbone side by side: every rate on every kind of features."""

    name: Literal["sweep"] = "sweep"
    pool: Literal["cls", "mean", "mean_max"] = Field(
        "cls",
        description="class token, mean of the patches (CNN), or their mean and maximum; unless set, as the encoder is "
        "evaluated",
    )
    rates: tuple[Rate, ...] = Field((1.0,), min_length=1, description="factors on optim.base_lr, a head for each")
    pools: tuple[Pool, ...] = Field(
        (), description="ways to make tokens one vector, [cls, cls_mean] in DINOv2; [] = as pool says"
    )
    blocks: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (1,), min_length=1, description="how many of the last blocks to concatenate, each through the final norm"
    )

    def heads(self) -> list[Head]:
        """All heads; those of one kind of features together."""
        kinds = [FeatureSpec(each, blocks) for blocks in self.blocks for each in self.pools or (self.pool,)]
        return [Head(kind, rate) for kind in dict.fromkeys(kinds) for rate in self.rates]

    def build(self, encoder: Encoder, counts: Sequence[int], trained: Trained | None = None) -> ImageTask:
        return LinearSweep(encoder, self, counts)

    def check(self, watch: Watching | None, optim: Optim) -> None:
        super().check(watch, optim)
        heads = len(self.heads())
        if heads == 1:
            return
        if watch is None:
            raise ValueError(
                f"task.name sweep trains {heads} heads and must be told which pictures choose one: set "
                "watch: {every: STEPS, hold_out: 0.1}; hold_out: 0 chooses on data.val, as published results do"
            )
        if watch.metric == "nll":
            raise ValueError("heads are compared by how often they are right: set watch.metric=accuracy")
        if optim.clip is not None and optim.clip_by != "tensor":
            raise ValueError(
                f"optim.clip {optim.clip:g} by {optim.clip_by} would make {heads} heads share one norm: set "
                "optim.clip=null or optim.clip_by=tensor"
            )

    def choice(self, predict: Predict, source: Source | None, watch: Watching | None) -> Choice | None:
        return None if source is None or watch is None else Choice(predict, source, watch.metric, watch.hold_out)

    def describe(self) -> str:
        heads = self.heads()
        kinds = dict.fromkeys(f"{kind.pool} of {kind.blocks} block{'s' * (kind.blocks > 1)}" for kind, _ in heads)
        counts = (f"{n} {word}{'s' * (n > 1)}" for n, word in ((len(heads), "head"), (len(self.rates), "rate")))
        return f"{': '.join(counts)} x {', '.join(kinds)}"


class Head(NamedTuple):
    """A linear head: the features that it reads, and the factor on its learning rate."""

    kind: FeatureSpec
    rate: float


class LinearSweep(ImageTask):
    """Linear heads that learn as if each were alone: their losses are added, and none sees another's gradient.

    The encoder is copied and stays as it is, running statistics included. Of the heads `tried`, the one of number
    `chosen` predicts. Raises UserError when the encoder does not have such features.
    """

    def __init__(self, encoder: Encoder, config: Config, counts: Sequence[int]) -> None:
        super().__init__()
        self.config, self.num_classes, self.chosen = config, len(counts), 0
        self.architecture, self.family = encoder.model, type(encoder)
        self.tried = config.heads()
        self.kinds = list(dict.fromkeys(head.kind for head in self.tried))
        for kind in self.kinds:
            check(encoder, kind)
        self.encoder = copy_encoder(encoder).requires_grad_(False)
        self.pieces = list(dict.fromkeys(part for kind in self.kinds for part in parts(kind)))
        self.heads = nn.ModuleList(
            nn.Linear(sum(widths(encoder, parts(head.kind))), len(counts)) for head in self.tried
        )
        for head in self.heads:
            config.initialize_(cast("nn.Linear", head))
        self.objective = Objective(counts, config.effective_number, config.logit_adjustment)

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
        read = reader(self.encoder, self.pieces)(images).split(widths(self.encoder, self.pieces), dim=1)
        pieces = dict(zip(self.pieces, read, strict=True))
        return torch.cat([self._logits(kind, pieces) for kind in self.kinds], dim=1)

    def _logits(self, kind: FeatureSpec, pieces: dict[Part, Tensor]) -> Tensor:
        """Class scores of all heads on one kind of features, in a single product."""
        features = torch.cat([pieces[part] for part in parts(kind)], dim=1)
        heads: Any = [head for head, tried in zip(self.heads, self.tried, strict=True) if tried.kind == kind]
        weight, bias = torch.cat([head.weight for head in heads]), torch.cat([head.bias for head in heads])
        return F.linear(features, weight, bias).unflatten(1, (len(heads), -1))

    def predict(self, images: Tensor) -> Tensor:
        return self.logits(images)[:, self.chosen]

    @property
    def network(self) -> Any:
        return self.encoder.vit

    def traced(self, images: Tensor) -> Traced:
        wanted, head = parts(self.tried[self.chosen].kind), cast("nn.Linear", self.heads[self.chosen])
        deepest, encoder = max(part.block for part in wanted), self.encoder
        # its call may be compiled, without the hooks that read its layers
        blocks = [encoder.forward(images)] if deepest == 1 else encoder.intermediate(images, range(-deepest, 0))
        scores, last = head(read(blocks, wanted, encoder.own)), blocks[-1]
        return Traced(scores, last.raw if wanted[0].how == "own" else last.patches, last.grid)

    def guesses(self, images: Tensor) -> Tensor:
        """The class that every head takes images [B, C, H, W] for [B, heads]."""
        return self.logits(images).argmax(-1)

    def as_classifier(self) -> classify.Classifier | None:
        """A timm model with the chosen head; None where timm has none that reads such features."""
        pool, blocks = self.tried[self.chosen].kind
        if blocks > 1 or pool not in ("cls", "mean", "own"):
            return None
        config = classify.Config(strategy=frozen.Config(), pool=pool, view=self.config.view)
        whole = classify.Classifier(self.encoder, config, [1] * self.num_classes)
        whole.head.load_state_dict(self.heads[self.chosen].state_dict())
        return whole

    def export(self, folder: Path, prepared: Preprocessing, made: Made) -> bool:
        """Write a classifier, or the backbone and a linear head on features that timm's classifiers do not read."""
        whole = self.as_classifier()
        if whole is not None:
            return whole.export(folder, prepared, made)
        encoder, head, kind = self.encoder, self.heads[self.chosen], self.tried[self.chosen].kind
        config = timm_config(encoder.model, encoder.arguments, encoder.width, prepared)
        loading = encoder.loading(encoder.model, encoder.arguments)
        config["linear_head"] = {**kind._asdict(), "label_names": list(made.classes)}
        card = head_card(made, kind.pool, kind.blocks, in_python(encoder, kind), loading)
        write_export(folder, dict(encoder.vit.state_dict()), config, card, dict(head.state_dict()))
        return False

    def train(self, mode: bool = True) -> LinearSweep:
        super().train(mode)
        self.encoder.eval()
        return self

    def lr_scale(self, name: str) -> float:
        return self.tried[int(name.split(".")[1])].rate


class Choice:
    """Scores every head of a sweep on `source` and lets the best one predict; of equals, the first.

    Args:
        metric: accuracy or balanced_accuracy; `scores` holds it of every head at the last look, percent.
        hold_out: share of the labels that the source is; 0 = it is data.val.
    """

    def __init__(self, predict: Predict, source: Source, metric: str, hold_out: float) -> None:
        self.predict, self.source, self.metric, self.hold_out = predict, source, metric, hold_out
        self.scores: list[float] = []

    def __call__(self, method: LinearSweep) -> dict[str, float]:
        seen = self.predict(lambda images: method.guesses(images).float(), method, self.source)
        right = (seen.x.long() == seen.y.unsqueeze(1)).double()
        scores = 100 * (balanced(right, seen.y) if self.metric == "balanced_accuracy" else right.mean(0))
        self.scores, method.chosen = scores.tolist(), int(scores.argmax())
        return {self.metric: self.scores[method.chosen]}

    def summary(self, method: LinearSweep) -> dict[str, Any]:
        heads = [
            {"pool": kind.pool, "blocks": kind.blocks, "rate": rate, self.metric: score}
            for (kind, rate), score in zip(method.tried, self.scores, strict=True)
        ]
        on = f"{100 * self.hold_out:g} % of the labels, held out" if self.hold_out else "data.val itself"
        return {"chosen": heads[method.chosen], "on": on, "pictures": len(self.source), "heads": heads}


def balanced(right: Tensor, labels: Tensor) -> Tensor:
    """Mean over the classes that occur of the share that is right: right [n, heads], labels [n], scores [heads]."""
    counts = torch.bincount(labels)
    shares = right.new_zeros(len(counts), right.shape[1]).index_add_(0, labels, right)
    present = counts > 0
    return (shares[present] / counts[present].unsqueeze(1)).mean(0)
