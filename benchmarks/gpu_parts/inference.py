"""Encoding and fine-tuning: pictures a second by network, precision and batch, and our loop against a bare one."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import torch

from gpu_parts.place import Figures, Part, Place
from unlabeled.backbone.config import EncoderConfig

MODELS = {"vit_s": "vit_small_patch16_224", "vit_l": "vit_large_patch16_224"}
TINY = {"tiny": "test_vit"}
PRECISIONS = {"float32": ("highest", False), "tf32": ("high", False), "bf16": ("highest", True)}
BATCHES, SIDE = (64, 256, 1024), 224


def measure(place: Place) -> Figures:
    """Pictures/s."""
    before = torch.get_float32_matmul_precision()
    for name, model in (TINY if place.dry else MODELS).items():
        encoder = EncoderConfig(model=model).build((SIDE, SIDE)).to(place.device).eval()
        for label, (products, casting) in PRECISIONS.items():
            torch.set_float32_matmul_precision(products)
            for batch in (place.size(size, 2) for size in (BATCHES if place.cuda else BATCHES[:1])):
                images = place.random(batch, 3, SIDE, SIDE)
                with torch.no_grad(), place.autocast(casting):
                    spent = place.milliseconds(partial(encoder, images), repeats=5)
                yield f"encode_{name}_{label}_{batch}", 1e3 * batch / spent
    torch.set_float32_matmul_precision(before)
    if place.cuda:  # the suite runs that benchmark on a CPU
        yield "finetune_over_bare_loop", tuned()


def tuned() -> dict[str, float]:
    """Fine-tuning by the engine against timm's model in a bare loop, in turn."""
    program = str(Path(__file__).parents[1] / "finetune.py")
    options = ("--json", "--rounds", "20", "--batch-size", "256", "--device", "cuda", "--precision", "bf16")
    said = subprocess.run([sys.executable, program, *options], check=True, capture_output=True, text=True).stdout
    found: dict[str, float] = json.loads(said.splitlines()[-1])
    return found


PART = Part(60, measure)
