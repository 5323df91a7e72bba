"""Facts about images and speed as numbers and names: the data of `--json`, of findings and of the report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from unlabeled.doctor.boxes import wrong_boxes
from unlabeled.doctor.compared import FLAT, Compared
from unlabeled.doctor.duplicates import Pairs, groups
from unlabeled.doctor.pictures import Survey
from unlabeled.doctor.speed import Expected, Speed, memory_of
from unlabeled.processes import cores, cores_each
from unlabeled.train.recipe import Recipe

EXAMPLES = 5
QUANTILES = {"min": 0, "p5": 0.05, "median": 0.5, "p95": 0.95, "max": 1}
ELONGATED = 5
TINY = 16

GPU = 250e12  # floating point operations per second: an H100 or H200 in bfloat16, at a third of what it could

Facts = dict[str, Any]


def split_facts(found: Survey, crop: tuple[int, int], patch: int) -> Facts:
    """Facts of one split, but for duplicates; `crop` (height, width) is the largest view, `patch` a side, pixels."""
    facts: Facts = {
        "pictures": len(found.source),
        "looked_at": found.looked,
        "skipped": dict(found.source.skipped),
        "unreadable": {"count": len(found.bad), "examples": [bad._asdict() for bad in found.bad[:EXAMPLES]]},
        "classes": None if found.source.masked else class_facts(found.source.labels, found.source.classes),
    }
    return facts | _picture_facts(found, crop, patch) if len(found) else facts


def _picture_facts(found: Survey, crop: tuple[int, int], patch: int) -> Facts:
    sides = np.stack([found.height, found.width])
    short, long = sides.min(axis=0), sides.max(axis=0)
    # size of the whole image over the crop, on the side where it is smallest
    room = (sides / np.array(crop)[:, None]).min(axis=0)
    mean, std = found.statistics()
    return {
        "short_side": _quantiles(short),
        "aspect": _quantiles(long / short),
        "smaller_than_crop": float(np.mean(room < 1)),
        "larger_than_twice_crop": float(np.mean(room > 2)),
        "channels": len(mean),
        "mean": [round(float(value), 4) for value in mean],
        "std": [round(float(value), 4) for value in std],
        "suspicious": {
            "constant": _named(found, found.contrast < FLAT),
            "elongated": _named(found, long > ELONGATED * short),
            "tiny": _named(found, short < max(patch, min(TINY, *crop))),
            "wrong_ending": _named(found, found.wrong != ""),
            **{kind: _named(found, which) for kind, which in wrong_boxes(found).items()},
        },
    }


def _quantiles(values: NDArray[Any]) -> Facts:
    found = np.quantile(values, list(QUANTILES.values()), method="nearest")
    return {name: round(float(value), 3) for name, value in zip(QUANTILES, found, strict=True)}


def _named(found: Survey, which: NDArray[np.bool_]) -> Facts:
    rows = np.flatnonzero(which)
    return {"count": len(rows), "examples": [found.key(row) for row in rows[:EXAMPLES]]}


def class_facts(labels: NDArray[np.int64], classes: Sequence[str]) -> Facts | None:
    """Class balance of a split; None without classes."""
    if not classes:
        return None
    counts = np.bincount(labels[labels >= 0], minlength=len(classes))
    share = counts[counts > 0] / max(1, counts.sum())
    entropy = -(share * np.log(share)).sum()
    fewest, most = int(counts.argmin()), int(counts.argmax())
    return {
        "classes": len(classes),
        "smallest": {"name": classes[fewest], "pictures": int(counts[fewest])},
        "largest": {"name": classes[most], "pictures": int(counts[most])},
        "ratio": round(float(counts[most] / counts[fewest]), 3) if counts[fewest] else None,
        "entropy": round(float(entropy / math.log(len(classes))), 4) if len(classes) > 1 else 1.0,
        "empty": int((counts == 0).sum()),
        "unlabelled": int((labels < 0).sum()),
    }


def copy_facts(compared: Compared) -> Facts:
    """Duplicates within each split, and images of `val` that are also in `train`."""
    split, kinds, facts = compared.split, compared.copies._asdict(), Facts()
    for i, (name, found) in enumerate(compared.surveys.items()):
        inside = {kind: pairs[(split[pairs] == i).all(axis=1)] for kind, pairs in kinds.items()}
        labels = found.source.labels[found.number[inside["exact"] - int((split < i).sum())]].reshape(-1, 2)
        conflicts = (labels[:, 0] != labels[:, 1]) & (labels >= 0).all(axis=1)
        facts[name] = {kind: _group_facts(pairs, compared) for kind, pairs in inside.items()}
        facts[name]["conflicting_labels"] = int(conflicts.sum())
    if len(compared.surveys) == 2:
        across = {kind: pairs[split[pairs[:, 0]] != split[pairs[:, 1]]] for kind, pairs in kinds.items()}
        facts["overlap"] = {kind: _leak_facts(pairs, compared) for kind, pairs in across.items()}
    return facts


def _group_facts(pairs: Pairs, compared: Compared) -> Facts:
    """`count` images are copies of another one, which is not counted."""
    label = groups(pairs, len(compared.split))
    copies = np.flatnonzero(label != np.arange(len(label)))
    leaders = np.unique(label[copies])
    shown = [compared.keys(np.flatnonzero(label == leader)[:EXAMPLES]) for leader in leaders[:EXAMPLES]]
    return {"count": len(copies), "groups": len(leaders), "examples": shown}


def _leak_facts(pairs: Pairs, compared: Compared) -> Facts:
    """`count` images of `val` are in `train`; examples are (train, val)."""
    _, first = np.unique(pairs[:, 1], return_index=True)
    return {"count": len(first), "examples": [compared.keys(pair) for pair in pairs[first[:EXAMPLES]]]}


def gpu_facts(expected: Expected, speed: Speed, workers: int, device: torch.device) -> Facts:
    """How many cores make the images that a GPU takes: this one as measured, or one of `GPU` by counted operations."""
    here = device.type == "cuda"
    takes = speed.model if here else GPU / expected.flops
    each = speed.loader / max(1, min(workers, cores()))
    return {"here": here, "images_per_s": round(takes, 1), "cores": math.ceil(takes / each), "given": cores_each()}


def speed_facts(recipe: Recipe, expected: Expected, speed: Speed, device: torch.device, evaluated: int) -> Facts:
    """Speed, memory and time. `evaluated` pictures make one evaluation."""
    steps, workers = expected.steps, recipe.run.workers
    images = {name: getattr(speed, name) for name in ("loader", "model", "together", "encode")}
    training = steps * recipe.train.batch_size / speed.real
    evaluations = math.ceil(steps / recipe.evaluated_every) if recipe.evaluated_every else 1
    evaluation = 0.0
    if speed.encode is not None:
        waits = [evaluated / speed.loader, evaluated / speed.encode]
        evaluation = evaluations * (max(waits) if workers else sum(waits))
    return {
        "device": str(device),
        "threads": torch.get_num_threads(),
        "cores": cores(),
        "workers": workers,
        "gpu": gpu_facts(expected, speed, workers, device),
        "images_per_s": {name: rate and round(rate, 2) for name, rate in images.items()},
        "bound_by": "loader" if speed.loader < speed.model else "model",
        "waiting": round(max(0.0, 1 - speed.real / speed.model), 4),
        "batch": {"measured": speed.batch, "run": expected.micro_batch},
        "memory": {"expected": round(expected.bytes), "peak": speed.peak, "available": memory_of(device)},
        "time": {
            "steps": steps,
            "training_s": round(training, 1),
            "evaluations": 0 if speed.encode is None else evaluations,
            "evaluation_s": round(evaluation, 1),
        },
    }
