"""The programs that `race.py` starts: one file each, with a `RACER`, by file name."""

from __future__ import annotations

import importlib

from racers.parts import Racer

# ours first: it gets the CPU minutes that the others have used
RACERS = ("unlabeled", "lightly_train", "stable_pretraining")


def racer(name: str) -> Racer:
    """One of them."""
    found: Racer = importlib.import_module(f"racers.{name}").RACER
    return found
