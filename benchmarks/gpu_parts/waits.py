"""Where a step waits for the GPU: the lines that did, over two steps of every method."""

from __future__ import annotations

import warnings
from collections import Counter
from pathlib import Path

import torch

from gpu_parts.cases import Steps
from gpu_parts.place import Figures, Part, Place

STEPS, SMALL = 2, 16
HERE = (
    *("mae-S-256", "simmim-S-256", "simclr-S-256", "mocov3-S-256", "mocov3-R50-256"),
    *("dino-S-256", "ibot-S-256", "dinov2-L-64"),
)


def measure(place: Place) -> Figures:
    """Waits of two steps, by file and line; expected are none but those of a log line."""
    for name in HERE:
        steps = Steps(place, name, pictures=SMALL)
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
