"""The rungs of the ladder by name."""

from __future__ import annotations

from typing import Any

# the most frequent class, and linear probes of pixels and of random weights
BASELINES = ("majority", "pixels", "untrained")
PROBES = ("knn", "ncm", "ranpac", "linear")
# rungs that train the backbone or more than a linear head: strategy, learning rate, weight decay
TUNED: dict[str, tuple[dict[str, Any], float, float]] = {
    "attentive": ({"name": "attentive"}, 1e-3, 0.01),
    "lora": ({"name": "lora"}, 2e-3, 0.01),
    "layer_decay": ({"name": "differential", "layer_decay": 0.75, "drop_path": 0.1}, 1e-3, 0.05),
    "unlabelled": ({"name": "differential", "layer_decay": 0.75, "drop_path": 0.1}, 1e-3, 0.05),
    "scratch": ({"name": "full", "drop_path": 0.1}, 1e-3, 0.05),
}
WAYS = (*PROBES, *TUNED)
RUNGS = (*BASELINES, *WAYS)
UNPRETRAINED = (*BASELINES, "scratch")
