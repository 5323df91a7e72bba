"""What a recipe is, by its header and its fields."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from unlabeled.recipe.draft import Draft

COST = "#   cost"


class Header(NamedTuple):
    """A recipe in words.

    Attributes:
        about: its first line.
        cost: of a run.
        method: for pretraining; for fine-tuning the task or the strategy.
        network: the model, or where the encoder comes from.
    """

    about: str
    cost: str
    method: str
    network: str


def header(file: Path) -> Header:
    """The header of a recipe that comes with the package."""
    text = file.read_text(encoding="utf-8")
    comments = [line for line in text.splitlines() if line.startswith("#")]
    cost = next((line.removeprefix(COST).strip() for line in comments if line.startswith(COST)), "")
    data = Draft(text).data
    method, task = data.get("method", {}), data.get("task", {})
    strategy = task.get("strategy", {}).get("name") or task.get("name", "")
    model = method.get("encoder", {}).get("model") or data.get("encoder") or data.get("init", "")
    return Header(comments[0].lstrip("# "), cost, method.get("name") or strategy, model)
