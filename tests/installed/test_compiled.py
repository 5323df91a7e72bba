"""Every method compiled by regions; a few with the compiler itself, which takes its time on a CPU."""

from __future__ import annotations

import sys

import pytest
import torch
from every_method import build, recipe_of
from graphs import batches_of, check_compiled, steps_of
from support import ROOT
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from unlabeled.nn.regions import compile_blocks_, compiling, region

sys.path.insert(0, str(ROOT / "benchmarks"))
from counting import Copies, Counting, count_step
from fused import compiled

SHALLOW = "method.encoder.depth=2"
SWIN = (
    "method.encoder={model: swin_tiny_patch4_window7_224, patch_size: 8, width: 48, depth: [2, 2], heads: [2, 4], "
    "window: 4}"
)
DINOV2 = "method.patch_head={prototypes: 64, hidden: 32, bottleneck: 16}", "method.patch_centre=hidden"
CASES = {
    "mae": (("mae", SHALLOW, "method.normalize_targets=true"), 4),
    "ijepa": (("ijepa", SHALLOW), 6),
    "simmim of a Swin": (("simmim", SWIN), 4),
    "simclr": (("simclr", SHALLOW), 5),
    "lejepa": (("lejepa", SHALLOW), 8),
    "crossmae": (("mae", SHALLOW, "method.decoder={name: cross, width: 32, depth: 2, heads: 2}"), 3),
    "mocov3 of a CNN": (("mocov3", "method.encoder={model: test_resnet}"), 14),
    "spark": (("spark",), 9),
    "spark of a ConvNeXt V2": (
        ("spark", "method.encoder={model: convnextv2_atto, stride: 8}", "method.decoder={name: single, width: 32}"),
        7,
    ),
    "ibot": (("ibot", SHALLOW), 16),
    "dinov3": (("ibot", SHALLOW, *DINOV2, "method.koleo=0.1", "method.targets=sinkhorn"), 22),
}


@pytest.mark.parametrize("name", CASES)
def test_a_method_is_compiled_by_regions(name: str) -> None:
    fields, graphs = CASES[name]
    assert len(check_compiled(*fields).made) == graphs


def test_compiled_is_not_compiled_within_rounding() -> None:
    fields = "mae", "method.encoder.depth=1", "method.normalize_targets=true"
    batches = [next(batches_of(*fields))]
    expected = next(steps_of(build(*fields), batches, compiled=False))
    method = build(*fields)
    compile_blocks_(method)
    found = next(steps_of(method, batches, compiled=True))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_a_region_counts_as_one_kernel_each_way() -> None:
    """32 values of 4 bytes are read and written, and read again beside a gradient. They alone are kept."""
    counting = Counting()
    with (
        FakeTensorMode(allow_non_fake_inputs=True),
        Copies(counting),
        counting,
        compiled(counting),
        compiling(True),
    ):
        x = torch.empty(4, 8, requires_grad=True)
        counting.begin()
        y = smooth(x)
        assert (counting.count.launches, counting.count.bytes) == (1, 2 * 128)
        assert counting.held == 2 * 128
        y.backward(torch.empty(4, 8))
    assert (counting.count.launches, counting.count.bytes) == (2, 5 * 128)


@region
def smooth(x: Tensor) -> Tensor:
    return torch.nn.functional.gelu(x) * 2 + 1


def test_a_compiled_step_asks_less_of_a_gpu() -> None:
    fields = "mae", "method.encoder.depth=1", "train.precision=bf16"
    eager = count_step(recipe_of(*fields), 8, warm=False)
    fused = count_step(recipe_of(*fields, "run.compile=true"), 8, warm=False, within=compiled)
    assert fused.flop == eager.flop and fused.waits == eager.waits
    assert fused.launches <= 349 and fused.bytes <= 28.8e6 and fused.peak <= 3.4e6
