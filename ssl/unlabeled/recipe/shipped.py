"""The recipes that come with the package, by name: `pretrain/mae_cifar10`, or `mae_cifar10` alone.

They lie at the top of a checkout, and inside the package once it is installed.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

from unlabeled.errors import UserError, suggest

PACKAGE = Path(__file__).parents[1]
# the program that a recipe is for, by a field that it has
PROGRAMS = {"method": "pretrain", "tasks": "incremental", "encoder": "finetune", "task": "finetune"}
FILES = (".yaml", ".yml")  # what ends so is a file


def folder() -> Path:
    """The folder of all recipes that come with the package."""
    inside = PACKAGE / "recipes"
    return inside if inside.is_dir() else PACKAGE.parents[1] / "recipes"


@cache
def names() -> dict[str, Path]:
    """The file of every recipe that comes with the package, by its folder and stem."""
    root = folder()
    files = sorted(root.rglob("*.yaml"))
    return {file.relative_to(root).with_suffix("").as_posix(): file for file in files}


def find(word: str, stage: str = "") -> Path:
    """The file of a recipe.

    Args:
        word: a file, or the name of a recipe that comes with the package. A file of that name goes before.
        stage: that asks, `pretrain` or `finetune`: its recipe goes before another of the same stem.

    Raises:
        UserError: no recipe has that name, or several have.
    """
    if is_path(word):
        return Path(word)
    known = names()
    found = [name for name, file in known.items() if word in (name, file.stem)]
    if len(found) > 1:
        found = [name for name in found if name.startswith(f"{stage}/")] or found
    if len(found) > 1:
        raise UserError(f"{len(found)} recipes are called {word}. Name one of them: {', '.join(found)}")
    if not found:
        near = suggest(word, [*known, *(file.stem for file in known.values())])
        raise UserError(
            f"{word}: no such recipe{near or '.'} `unlabeled recipes list` shows all; a file ends in .yaml, "
            "or is given with its folder."
        )
    return known[found[0]]


def called(file: Path) -> str:
    """A recipe as it is typed here: the shortest name of one that comes with the package, the path of another."""
    known = names()
    for name, path in known.items():
        if path == file:
            return name if [other.stem for other in known.values()].count(file.stem) > 1 else file.stem
    return os.path.relpath(file) if file.is_relative_to(Path.cwd()) else str(file)


def is_path(word: str) -> bool:
    """Whether a word can only be a file: it is one, it ends like one, or its folder is none of the recipes'."""
    within = os.path.dirname(word)
    return os.path.isfile(word) or word.endswith(FILES) or (within != "" and not _holds(within))


def is_shipped(word: str) -> bool:
    """Whether a word is the name of a recipe that comes with the package, and no file or folder has that name."""
    return not os.path.exists(word) and any(word in (name, file.stem) for name, file in names().items())


def _holds(within: str) -> bool:
    return any(os.path.dirname(name) == within for name in names())
