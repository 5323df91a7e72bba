"""What caching features saves: a linear probe on features computed once, and the same probe with the backbone run anew
in every epoch. CPU time of each, in one process.

Both see the same batches, without augmentation, at the same rate: a linear head that begins at zero, SGD with momentum,
cosine schedule. One has its features standardised over all training pictures, the other MAE's BatchNorm in front.

python benchmarks/probe.py EXPORT DATA.tar
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from common import THREADS, finish, machine, table
from torch import Tensor, nn

from unlabeled.accelerator import settle
from unlabeled.backbone.folder import IMAGENET
from unlabeled.backbone.pooling import encoder_features
from unlabeled.backbone.weights import load_encoder, preprocessing_of
from unlabeled.data.batch.loader import Normalize
from unlabeled.data.label.subset import Part, stratified
from unlabeled.data.opened import Opened
from unlabeled.data.source import Source
from unlabeled.data.sources.files import Config as Files
from unlabeled.errors import UserError
from unlabeled.evaluate.features import Features, extract
from unlabeled.evaluate.probing import accuracy, batches
from unlabeled.evaluate.protocols.linear import Config as Linear
from unlabeled.evaluate.protocols.linear import linear_probe

CPU = torch.device("cpu")
MOMENTUM, EPS = 0.9, 1e-6


class Timed(NamedTuple):
    """Accuracy in percent, and what it cost."""

    accuracy: float
    cpu_seconds: float


class Backbone:
    """Turns pictures into features, in this process alone."""

    def __init__(self, export: str, pool: str, crop_pct: float, batch_size: int) -> None:
        self.encoder, prepared = load_encoder(export), preprocessing_of(export) or IMAGENET
        self.encode = encoder_features(self.encoder, pool)  # type: ignore[arg-type]
        self.crop_pct, self.batch_size = crop_pct, batch_size
        self.mean, self.std = tuple(prepared.mean), tuple(prepared.std)

    def __call__(self, source: Source, rows: np.ndarray | None = None) -> Features:
        """Features of all pictures, or of some."""
        return extract(
            self.encode,
            source,
            shape=self.encoder.image_size,
            crop_pct=self.crop_pct,
            normalize=Normalize(self.mean, self.std, CPU),
            device=CPU,
            batch_size=self.batch_size,
            indices=rows,
        )


def cached(backbone: Backbone, train: Source, test: Source, config: Linear) -> float:
    """Features once, then the probe on them."""
    return linear_probe(backbone(train), backbone(test), len(train.classes), config)[0]


def anew(backbone: Backbone, train: Source, test: Source, config: Linear) -> float:
    """The probe behind the backbone: every step reads, decodes and encodes its pictures."""
    classes = len(train.classes)
    norm, head = (
        nn.BatchNorm1d(backbone.encoder.width, eps=EPS, affine=False),
        nn.Linear(backbone.encoder.width, classes),
    )
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    optimizer = torch.optim.SGD(head.parameters(), config.lrs[0], momentum=MOMENTUM)
    orders = list(batches(len(train), config, seed=0))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(orders))
    for rows in orders:
        batch = backbone(train, rows.numpy())
        optimizer.zero_grad()
        F.cross_entropy(head(norm(batch.x)), batch.y).backward()
        optimizer.step()
        schedule.step()
    last = backbone(test)
    return accuracy(predicted(norm.eval(), head, last.x) == last.y)


@torch.no_grad()
def predicted(norm: nn.Module, head: nn.Module, x: Tensor) -> Tensor:
    """Classes [n] of features [n, D]."""
    return head(norm(x)).argmax(1)


def timed(way: str, *arguments: object) -> Timed:
    """One way's accuracy and CPU seconds."""
    began = time.process_time()
    found = {"cached": cached, "anew": anew}[way](*arguments)  # type: ignore[arg-type]
    return Timed(found, time.process_time() - began)


def some(source: Source, share: float) -> Source:
    """A share of the pictures, of all classes alike."""
    return source if share >= 1 else Part(source, stratified(source.labels, share, 0))


def main(arguments: Sequence[str] | None = None) -> None:
    """Both ways, then a table."""
    parser = argparse.ArgumentParser(description="A linear probe on cached features and one that runs the backbone.")
    parser.add_argument("export", help="an encoder (runs/NAME/export)")
    parser.add_argument("data", help="a tar or folder of labelled pictures, train/CLASS/* and test/CLASS/*")
    parser.add_argument("--train", default="train", metavar="PREFIX", help="subfolder to train on")
    parser.add_argument("--val", default="test", metavar="PREFIX", help="subfolder to test on")
    parser.add_argument("--pictures", type=int, help="to train on, and as large a share to test on (default all)")
    parser.add_argument("--epochs", type=int, default=30, help="passes over the training pictures (default 30)")
    parser.add_argument("--lr", type=float, default=0.1, help="learning rate (default 0.1)")
    parser.add_argument("--batch-size", type=int, default=1024, help="pictures per step (default 1024)")
    parser.add_argument("--pool", default="mean", help="cls, mean, cls_mean or mean_max (default mean)")
    parser.add_argument("--crop-pct", type=float, default=1.0, help="share of the side that is kept (default 1)")
    parser.add_argument("--threads", type=int, default=THREADS, help=f"threads (default {THREADS})")
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    chosen = parser.parse_args(arguments)
    settle(chosen.threads)

    backbone = Backbone(chosen.export, chosen.pool, chosen.crop_pct, chosen.batch_size)
    data = Files(path=chosen.data, train=chosen.train, val=chosen.val, mean=backbone.mean, std=backbone.std)
    share = 1.0 if chosen.pictures is None else chosen.pictures / len(Opened(data).train)
    train, test = some(Opened(data).train, share), some(Opened(data).val, share)
    if min(train.labels.min(), test.labels.min()) < 0:
        raise UserError("expected a label for every picture: batches would differ between the two ways")
    config = Linear(lrs=(chosen.lr,), epochs=chosen.epochs, batch_size=chosen.batch_size, max_steps=10**9)

    print(f"{machine()}\n{len(train):,} + {len(test):,} pictures, {chosen.epochs} epochs")
    found = {way: timed(way, backbone, train, test, config) for way in ("cached", "anew")}
    rows = [(way, f"{one.accuracy:.2f}", f"{one.cpu_seconds:.1f}") for way, one in found.items()]
    print(table(("backbone", "accuracy, %", "CPU s"), rows))
    difference = found["cached"].accuracy - found["anew"].accuracy
    ratio = found["anew"].cpu_seconds / found["cached"].cpu_seconds
    print(f"cached: {difference:+.2f} points, {ratio:.1f} times as cheap")
    finish(chosen, {**{way: one._asdict() for way, one in found.items()}, "difference": difference, "ratio": ratio})


if __name__ == "__main__":
    main()
