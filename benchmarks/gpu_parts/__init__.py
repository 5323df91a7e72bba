"""The parts of `gpu.py`: one file each, with a `PART`, by file name."""

from __future__ import annotations

import importlib

from gpu_parts.place import Figures, Part, Place

# in this order: what others are read against first, what takes long last
PARTS = (
    *("ceilings", "correct", "steps", "waits", "variants", "loader", "together", "resume", "inference", "checkpoint"),
)


def part(name: str) -> Part:
    """One part by its name."""
    found: Part = importlib.import_module(f"gpu_parts.{name}").PART
    return found


__all__ = ["PARTS", "Figures", "Part", "Place", "part"]
