"""Checkpoints of a large model: how long training stands still, how long until it is on disk, how long to read."""

from __future__ import annotations

from gpu_parts.cases import Steps
from gpu_parts.place import Figures, Part, Place

SAVES = 3


def measure(place: Place) -> Figures:
    """Seconds, and gigabytes on disk."""
    steps = Steps(place, "dinov2-L-64", pictures=8)
    steps.step()
    engine = steps.engine
    yield "step_s", place.once(steps.step) / 1e3
    for number in range(1, SAVES + 1):
        engine.step = number
        yield f"stall_{number}_s", place.once(engine.save) / 1e3
        yield f"step_meanwhile_{number}_s", place.once(steps.step) / 1e3
        yield f"complete_{number}_s", place.once(engine.saving.wait) / 1e3
    folder = engine.checkpoints.path(SAVES)
    yield "gigabytes", sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e9
    yield "read_s", place.once(lambda: engine.checkpoints.read(SAVES)) / 1e3


PART = Part(40, measure)
