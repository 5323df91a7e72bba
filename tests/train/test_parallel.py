"""What processes send each other, and how a GPU computes. Whole runs: `tests/installed/test_shards.py`."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from every_method import build, every_method, recipe_of
from torch import nn

from unlabeled.accelerator import apart, multiply, precision_for, spread
from unlabeled.launch.plan import _device
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


def test_products_are_rounded_on_a_gpu_alone_and_exact_again_after_a_run() -> None:
    before = torch.get_float32_matmul_precision()
    with apart():
        multiply(torch.device("cpu"), True)
        assert torch.get_float32_matmul_precision() == before
        for tf32, expected in ((True, "high"), (False, "highest"), (True, "high")):
            multiply(torch.device("cuda"), tf32)
            assert torch.get_float32_matmul_precision() == expected
    assert torch.get_float32_matmul_precision() == before == "highest"


@pytest.mark.parametrize(
    ("device", "more", "expected"),
    [
        ("cuda:0", (), "precision float32 without TF32 (train.tf32=true is several times faster, and rounds), "),
        ("cuda:0", ("train.tf32=true",), "precision float32, products in TF32, "),
        ("cuda:0", ("train.precision=bf16",), "precision bf16, "),
        ("cpu", ("train.gradient_exchange=bf16",), "precision float32, gradients averaged in bf16, "),
    ],
)
def test_the_plan_says_how_numbers_are_rounded(device: str, more: tuple[str, ...], expected: str) -> None:
    assert expected in _device(recipe_of("mae", *more), device)


@pytest.mark.parametrize(
    ("device", "gpu", "bf16", "expected"),
    [
        ("auto", True, True, "bf16"),
        ("auto", True, False, "no"),
        ("auto", False, False, "no"),
        ("cpu", True, True, "no"),
    ],
)
def test_inference_takes_bfloat16_where_a_gpu_has_it(
    device: str, gpu: bool, bf16: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for owner, name in ((torch.accelerator, "is_available"), (torch.cuda, "is_available")):
        monkeypatch.setattr(owner, name, lambda: gpu)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: bf16)
    assert precision_for(device) == expected
