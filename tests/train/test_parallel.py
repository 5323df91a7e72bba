"""What processes send each other beside gradients, and in which type. Whole runs: `tests/installed/test_shards.py`."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from every_method import build, every_method
from torch import nn

from unlabeled.accelerator import spread
from unlabeled.nn.batchnorm import buffers_differ, synchronise_


class Outside(nn.Module):
    """Code of a user with a buffer that nobody knows."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(1))


@every_method
def test_no_method_needs_the_buffers_of_the_first_process(name: str) -> None:
    assert not buffers_differ(build(name))


@pytest.mark.parametrize(
    ("part", "differs"),
    [
        (nn.BatchNorm3d(2), True),
        (nn.InstanceNorm2d(2, track_running_stats=True), True),
        (nn.InstanceNorm2d(2), False),
        (Outside(), True),
        (nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)), False),
    ],
)
def test_buffers_that_may_differ_are_still_sent(part: nn.Module, differs: bool) -> None:
    network = nn.Sequential(nn.Linear(2, 2), part)
    synchronise_(network)
    assert buffers_differ(network) == differs


@pytest.mark.parametrize(("exchange", "expected"), [("float32", torch.float32), ("bf16", torch.bfloat16)])
def test_shards_of_gradients_are_added_in_the_type_that_the_recipe_says(exchange: Any, expected: torch.dtype) -> None:
    plugin = SimpleNamespace(mixed_precision_policy=None)
    accelerator: Any = SimpleNamespace(
        is_fsdp2=True, state=SimpleNamespace(fsdp_plugin=plugin), prepare=lambda *parts: parts, autocast=nullcontext
    )
    method: Any = build("mae")
    spread(accelerator, method, torch.optim.SGD(method.parameters(), 1.0), exchange, False)
    policy: Any = plugin.mixed_precision_policy
    assert (policy.param_dtype, policy.reduce_dtype, policy.output_dtype) == (None, expected, None)
