"""Stages by file name: `stages/NAME.py` has the type of its recipes and a `STAGE`; the program NAME.py runs it."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path

from unlabeled.errors import UserError
from unlabeled.launch.stage import Stage
from unlabeled.recipe import said
from unlabeled.recipe.shipped import PROGRAMS
from unlabeled.train.job import Job
from unlabeled.train.recipe import Recipe


def stage_of(path: str | Path, overrides: Sequence[str] = ()) -> tuple[Stage[Recipe, Job], Recipe]:
    """The stage that a recipe is for, by its fields, and the recipe. Raises UserError when something in it is wrong."""
    names = said(path, overrides).keys()
    name = next((program for field, program in PROGRAMS.items() if field in names), None)
    if names and name is None:
        raise UserError(
            f"{path} is no recipe: expected `method` (for pretraining) or `encoder` (for fine-tuning), "
            f"found {', '.join(sorted(names))}"
        )
    # without any field, loading says what is wrong
    module = importlib.import_module(f"{__name__}.{name or 'pretrain'}")
    stage: Stage[Recipe, Job] = module.STAGE
    return stage, stage.load(path, overrides)[0]


def load_any(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe of any stage, see `stage_of`."""
    return stage_of(path, overrides)[1]
