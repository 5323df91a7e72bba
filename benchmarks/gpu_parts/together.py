"""The engine with its loader: what a run reaches, and the share of it that waits for pictures."""

from __future__ import annotations

import os

from gpu_parts.cases import Steps
from gpu_parts.loader import prepared
from gpu_parts.pictures import jpegs, tar_of
from gpu_parts.place import Figures, Part, Place
from unlabeled.doctor.speed import measure as speed_of

HERE = ("mae-S-256", "dino-S-256")


def measure(place: Place) -> Figures:
    """Pictures/s of the loader, the model and both, from JPEGs and prepared pictures."""
    count = place.size(4000, 64)
    tar = tar_of(jpegs(count), place.folder / "together.tar")
    cache = prepared(tar, place, "together")
    workers = max(1, (os.cpu_count() or 2) - 1) if place.cuda else 0
    for name in HERE:
        for kind, field in (("jpeg", "data.cache=null"), ("prepared", f"data.cache={cache}")):
            source = f"data={{name: files, path: {tar}, train: '.', val: null}}"
            steps = Steps(place, name, source, field, f"run.workers={workers}")
            job, accelerator = steps.engine.job, steps.engine.accelerator
            speed = speed_of(job, accelerator, 3.0 if place.cuda else 0.1, None)
            yield f"{name} {kind}", {"loader": speed.loader, "model": speed.model, "together": speed.together}


PART = Part(60, measure)
