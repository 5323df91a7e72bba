"""Where a step waits for the GPU: the lines that did, over two steps of every method."""

from __future__ import annotations

import warnings
from collections import Counter
from pathlib import Path

import torch

from gpu_parts.cases import CASES, Steps
from gpu_parts.place import Figures, Part, Place

STEPS = 2
HERE = ("mae_s", "simmim_s", "simclr_s", "mocov3_s", "mocov3_r50", "dino_s", "ibot_s", "dinov2_l")


def measure(place: Place) -> Figures:
    """Waits of two steps, by file and line; expected are none but those of a log line."""
    for name in HERE:
        steps = Steps(place, CASES[name]._replace(batch=place.size(32, 4)))
        steps.step()
        yield name, waits(place, steps)


def waits(place: Place, steps: Steps) -> dict[str, int]:
    """How often each line waited."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if place.cuda:
            torch.cuda.set_sync_debug_mode("warn")
        for _ in range(STEPS):
            steps.step()
        if place.cuda:
            torch.cuda.set_sync_debug_mode("default")
    lines = (f"{Path(one.filename).name}:{one.lineno}" for one in caught if "synchron" in str(one.message))
    return dict(Counter(lines))


PART = Part(30, measure)
