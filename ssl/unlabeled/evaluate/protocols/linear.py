"""A linear probe on frozen features; learning rate and kind of features are chosen without the test set."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Annotated, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from unlabeled.backbone.pooling import FeatureSpec, Pool
from unlabeled.evaluate.bench import Bench
from unlabeled.evaluate.features import Features
from unlabeled.evaluate.probing import LearningRate, accuracy, batches, hold_out, standardize
from unlabeled.evaluate.protocol import Protocol, Score
from unlabeled.progress import track

MOMENTUM = 0.9
CHUNK = 4096  # samples classified at a time
Blocks = Annotated[int, Field(ge=1)]


class Config(Protocol, frozen=True, extra="forbid"):
    """Softmax regression on standardised features: SGD, momentum 0.9, cosine schedule, no weight decay.

    A head for every learning rate on every kind of features, all trained at once (iBOT, DINOv2); they begin at zero.
    """

    version: ClassVar[str] = "linear/1"
    summary: ClassVar[str] = "a linear probe"
    order: ClassVar[int] = 2
    few_labels: ClassVar[bool] = True
    pixels: ClassVar[bool] = True
    name: Literal["linear"] = "linear"

    lrs: tuple[LearningRate, ...] = Field(
        (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0),
        min_length=1,
        description="learning rates to try; a held-out tenth of the training pictures decides",
    )
    pools: tuple[Pool, ...] = Field(
        (), description="ways to make tokens one vector to try, [cls, cls_mean] in DINOv2; [] = as evaluate.pool says"
    )
    blocks: tuple[Blocks, ...] = Field(
        (1,), min_length=1, description="how many of the last blocks to concatenate, to try; [1, 4] in DINOv2"
    )
    epochs: int = Field(100, ge=1, description="passes over the training features")
    max_steps: int = Field(1000, ge=1, description="steps at most, whatever the epochs")
    batch_size: int = Field(1024, ge=1, description="features per step, at most all of them")
    standardize: bool = Field(
        True, description="features of zero mean and unit variance, as MAE's BatchNorm before the head makes them"
    )

    def required_features(self, pool: Pool, depth: int) -> list[FeatureSpec]:
        return [FeatureSpec(each, blocks) for blocks in self.blocks for each in self.pools or (pool,)]

    def scores(self, bench: Bench) -> Iterator[Score]:
        wanted = self.required_features(bench.pool, bench.encoder.readable)
        found = sweep([bench.features(*kind) for kind in wanted], bench.num_classes, self, bench.seed)
        chosen = {"lr": found.lr, **wanted[found.kind]._asdict()}
        yield Score("", accuracy(found.hits), 100.0 * found.hits.cpu().numpy(), chosen)


class LinearHeads(NamedTuple):
    """Linear classifiers per kind of features and learning rate: weight [G, D, L, C], bias [G, L, C]."""

    weight: Tensor
    bias: Tensor

    def logits(self, x: Tensor) -> Tensor:
        """Features [G, B, D] to logits [G, B, L, C] in one batched matrix product."""
        flat = torch.baddbmm(self.bias.flatten(1).unsqueeze(1), x, self.weight.flatten(2))
        return flat.unflatten(2, self.bias.shape[1:])


class Selected(NamedTuple):
    """The chosen kind of features and learning rate, the hits [n] on the test images, and the classifier alone."""

    kind: int
    lr: float
    hits: Tensor
    head: LinearHeads


@torch.no_grad()
def sweep(kinds: Sequence[tuple[Features, Features]], num_classes: int, config: Config, seed: int = 0) -> Selected:
    """Choose features and learning rate on a held-out tenth, train on everything with them, test once.

    Of few samples several tenths are held out in turn. Classes with a single sample hold nothing out; when no class
    can, the training accuracy decides. Ties go to the smaller learning rate, then to the features named first. Runs
    where the features are; random choices come from `seed` alone.

    Args:
        kinds: (train, test) of every kind of features to try, of the same images.
    """
    if config.standardize:
        kinds = [standardize(*kind) for kind in kinds]
    trains = [train for train, _ in kinds]
    labels = trains[0].y
    right = np.zeros((len(kinds), len(config.lrs)), dtype=np.int64)
    widths = [train.x.shape[1] for train in trains]
    groups = [[i for i, other in enumerate(widths) if other == width] for width in dict.fromkeys(widths)]
    for held, kept in hold_out(labels.cpu().numpy(), seed) if right.size > 1 else ():
        for group in groups:
            x, others = (torch.stack([trains[kind].x[rows] for kind in group]) for rows in (kept, held))
            heads = train_heads(x, labels[kept], num_classes, config.lrs, config, seed)
            right[group] += _hits(heads, others, labels[held]).sum(1).cpu().numpy()
    best = zip(*np.nonzero(right == right.max()), strict=True)
    kind, rate = min(best, key=lambda place: (config.lrs[place[1]], place[0]))
    (train, test), lr = kinds[kind], config.lrs[rate]
    head = train_heads(train.x.unsqueeze(0), labels, num_classes, (lr,), config, seed)
    return Selected(int(kind), lr, _hits(head, test.x.unsqueeze(0), test.y)[0, :, 0], head)


def linear_probe(
    train: Features, test: Features, num_classes: int, config: Config, seed: int = 0
) -> tuple[float, float]:
    """(top-1 accuracy on the test set in percent, chosen learning rate), see `sweep`."""
    found = sweep([(train, test)], num_classes, config, seed)
    return accuracy(found.hits), found.lr


@torch.no_grad()
def train_heads(x: Tensor, y: Tensor, num_classes: int, lrs: Sequence[float], config: Config, seed: int) -> LinearHeads:
    """Train one head per kind of features [G, n, D] and peak learning rate, all on the same batches.

    Each is trained as if it were alone. The order of samples depends on `seed` alone.
    """
    lr = x.new_tensor(lrs).unsqueeze(1)
    heads = LinearHeads(
        x.new_zeros(len(x), x.shape[2], len(lrs), num_classes), x.new_zeros(len(x), len(lrs), num_classes)
    )
    speed = LinearHeads(*map(torch.zeros_like, heads))
    steps = list(batches(len(y), config, seed))
    for step, rows in enumerate(track(steps, "linear probe", len(steps))):
        rows = rows.to(x.device)
        batch = x[:, rows]
        # the gradient of the mean cross-entropy with respect to logits: (probability - target) / batch
        error = heads.logits(batch).softmax(-1)
        error[:, torch.arange(len(rows), device=x.device), :, y[rows]] -= 1
        error /= len(rows)
        gradient = LinearHeads((batch.mT @ error.flatten(2)).unflatten(2, heads.bias.shape[1:]), error.sum(1))
        now = lr * (0.5 + 0.5 * math.cos(math.pi * step / len(steps)))
        for parameter, velocity, slope in zip(heads, speed, gradient, strict=True):
            parameter.sub_(now * velocity.mul_(MOMENTUM).add_(slope))
    return heads


def _hits(heads: LinearHeads, x: Tensor, y: Tensor) -> Tensor:
    """Hits [G, n, L] of every head on samples x [G, n, D] with labels y [n]."""
    prediction = torch.cat([heads.logits(some).argmax(-1) for some in x.split(CHUNK, dim=1)], dim=1)
    return prediction == y.unsqueeze(1)
