"""Programs by file name: `stages/NAME.py` has the type of its recipes and `STAGE`, and `NAME.py` runs it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from unlabeled.errors import UserError
from unlabeled.recipe import fields, load
from unlabeled.train.recipe import Recipe


def load_any(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe of either program, told apart by its fields.

    Raises:
        UserError: it is neither, or something in it is wrong.
    """
    names = fields(path, overrides)
    if "method" in names or not names:  # without any, loading says what is wrong
        from unlabeled.stages.pretrain import PretrainRecipe

        return load(PretrainRecipe, path, overrides)
    if names & {"encoder", "task"}:
        from unlabeled.stages.finetune import FinetuneRecipe

        return load(FinetuneRecipe, path, overrides)
    raise UserError(
        f"{path} is no recipe: expected `method` (for pretrain.py) or `encoder` (for finetune.py), "
        f"found {', '.join(sorted(names))}"
    )
