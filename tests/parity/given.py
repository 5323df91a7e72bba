"""What the parity tests of methods with two views share: features that are given, and batches of views."""

from __future__ import annotations

from typing import Any

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


def mlp_widths(golden: Golden, prefix: str) -> list[int]:
    """Widths of the input, the hidden layers and the output of the MLP whose official weights lie below `prefix`."""
    weights = {n: shape for n, shape in shapes_under(golden, prefix).items() if n.endswith("weight")}
    linears = [weights[name] for name in sorted(weights, key=layer_of) if len(weights[name]) == 2]
    return [linears[0][1], *(rows for rows, _ in linears)]


def layer_of(name: str) -> int:
    """The number in a name such as 3.weight; names alone are sorted as words: 12 before 3."""
    return int(name.partition(".")[0])
