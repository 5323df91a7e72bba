"""The ceilings of this GPU: copies and products, which all other figures are read against."""

from __future__ import annotations

from functools import partial

import torch

from gpu_parts.place import Figures, Part, Place

# rows, in, out: a square one, and the MLP's of ViT-S at batch 256 and ViT-L at 64
PRODUCTS = {"8192": (8192, 8192, 8192), "vit_s": (256 * 197, 384, 1536), "vit_l": (64 * 197, 1024, 4096)}
SMALL = 64


def measure(place: Place) -> Figures:
    """GB/s of copies, TFLOP/s of products."""
    source = place.random(place.size(1_000_000_000, 1 << 20))
    target = torch.empty_like(source)
    yield "copy_gb_s", 2 * source.nbytes / place.milliseconds(partial(target.copy_, source)) / 1e6
    del source, target  # 8 GB
    for name, shape in PRODUCTS.items():
        yield f"bf16_{name}_tflops", product(place, shape, torch.bfloat16)
    before = torch.get_float32_matmul_precision()
    for label, precision in (("float32", "highest"), ("tf32", "high")):
        torch.set_float32_matmul_precision(precision)
        yield f"{label}_8192_tflops", product(place, PRODUCTS["8192"], torch.float32)
    torch.set_float32_matmul_precision(before)
    for label, pinned in (("pinned", True), ("pageable", False)):
        host = torch.randint(0, 256, (place.size(256 << 20, 1 << 16),), dtype=torch.uint8)
        host = host.pin_memory() if pinned and place.cuda else host
        device = torch.empty_like(host, device=place.device)
        spent = place.milliseconds(partial(device.copy_, host, non_blocking=True))
        yield f"to_device_{label}_gb_s", host.nbytes / spent / 1e6


def product(place: Place, shape: tuple[int, int, int], dtype: torch.dtype) -> float:
    """TFLOP/s of x [rows, in] times a weight [out, in]."""
    rows, inside, outside = (place.size(side, SMALL) for side in shape)
    x, weight = place.random(rows, inside, dtype=dtype), place.random(outside, inside, dtype=dtype)
    spent = place.milliseconds(lambda: torch.nn.functional.linear(x, weight))
    return 2 * rows * inside * outside / spent / 1e9


PART = Part(30, measure)
