"""Distillation from a frozen ViT-S/16 into another: ours alone, since lightly has no parts for it.

Counted: patch embedding and encoder over 197 tokens, the student's three times and the teacher's once, the heads, and
the similarities of class tokens to the queue and of patches to each other.
"""

from __future__ import annotations

import torch

from contenders.parts import (
    MODEL,
    PATCHES,
    WIDTH,
    Comparison,
    Ours,
    as_batch,
    crops,
    encoder,
    linear,
    patch_embedding,
)
from unlabeled.backbone.config import EncoderConfig
from unlabeled.data.batch.batch import Batch, ViewBatch
from unlabeled.pretrain.frozen import TeacherConfig
from unlabeled.pretrain.method import Method
from unlabeled.pretrain.methods.distill import Config

QUEUE = 8192


def make_batch(pictures: int, seed: int) -> Batch:
    """One view of noise."""
    return as_batch(pictures, ViewBatch(crops(torch.Generator().manual_seed(seed), 1, pictures), None))


def ours(depth: int) -> Method:
    """A student of so many blocks; its teacher has twelve."""
    vit = EncoderConfig(model=MODEL, depth=depth)
    return Config(encoder=vit, teacher=(TeacherConfig(weights=f"scratch:timm:{MODEL}"),), queue=QUEUE).build()


def gflop() -> float:
    """Of a step, per picture."""
    network = patch_embedding(PATCHES) + encoder(PATCHES)
    heads = linear(PATCHES + 1, WIDTH, WIDTH)
    similar = linear(1, WIDTH, QUEUE) + linear(PATCHES, WIDTH, PATCHES)
    return 3 * (network + heads + similar) + network + similar


COMPARISON = Comparison(make_batch=make_batch, ours=Ours(ours, gflop()), lightly=None)
