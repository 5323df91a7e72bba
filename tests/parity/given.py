"""What the parity tests of methods with two views share: features that are given, and batches of views."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from parity.golden import Golden
from parity.vit import shapes_under
from torch import Tensor, nn

from unlabeled.data.batch.batch import Batch, ViewBatch


class Given(nn.Module):
    """An encoder's stand-in for sets that begin at features: pictures are their own features."""

    def feature(self, images: Tensor, views: int = 1) -> Tensor:
        return images.flatten(1)


def batch_of(*views: Tensor) -> Batch:
    """A batch of views [count, B, ...]; labels play no part."""
    nobody = torch.full(views[0].shape[1:2], -1)
    return Batch([ViewBatch(view, None) for view in views], nobody, nobody)


def given(model: Any) -> Any:
    """The same method, whose encoder is a `Given`."""
    model.encoder = Given()
    return model.train()


class Shape(NamedTuple):
    """Sizes of an MLP."""

    width: int
    hidden: int
    out: int
    layers: int


def mlp_shape(golden: Golden, prefix: str) -> Shape:
    """The sizes of the MLP whose official weights lie below `prefix`, all of its hidden layers of one width."""
    shapes = [shape for name, shape in shapes_under(golden, prefix).items() if name.endswith("weight")]
    linears = [shape for shape in shapes if len(shape) == 2]
    hidden = {shape[0] for shape in linears[:-1]}
    assert len(hidden) <= 1, f"one width inside {prefix}, found {hidden}"
    return Shape(linears[0][1], linears[0][0], linears[-1][0], len(linears))
