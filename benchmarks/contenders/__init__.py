"""What `step.py` compares: one file per method with a `COMPARISON`, by file name."""

from __future__ import annotations

import importlib

from contenders.parts import Comparison

# the order of the table
METHODS = (
    *("mae", "simmim", "spark", "ijepa", "mocov3", "simclr", "barlowtwins", "vicreg", "byol", "simsiam"),
    *("lejepa", "swav", "msn", "dino", "ibot", "distill"),
)


def comparison(name: str) -> Comparison:
    """One method, ours and lightly's where lightly has it."""
    return importlib.import_module(f"contenders.{name}").COMPARISON
