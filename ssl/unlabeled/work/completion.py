"""The work of `unlabeled completion`: a script for a shell, by shtab."""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

import shtab

from unlabeled.command import command, parser, programs
from unlabeled.launch import arguments
from unlabeled.paths import expand, user_path
from unlabeled.recipe.shipped import called, names
from unlabeled.signals import EXIT_DONE

NAME = "_unlabeled_recipes"  # a function of the script: the names of recipes, and files
BASH = """{name}() {{
  compgen -W "{recipes}" -- "$1"
  compgen -f -- "$1"
}}"""
ZSH = """{name}() {{
  _alternative 'recipes:recipe:({recipes})' 'files:file:_files'
}}"""
FISH = """function {name}
  string split ' ' '{recipes}'
  __fish_complete_path (commandline -ct)
end"""


def run(options: argparse.Namespace) -> int:
    """Print the script."""
    whole = parser(partial(_fill, _recipes()))
    whole.prog = "unlabeled"
    print(shtab.complete(whole, options.shell))
    return EXIT_DONE


def _fill(recipes: dict[str, Any], name: str, one: argparse.ArgumentParser) -> None:
    if name in programs():
        arguments.add_arguments(one, "store")
    else:
        command(name).add_arguments(one)
    _complete(one, recipes)


def _complete(one: argparse.ArgumentParser, recipes: dict[str, Any]) -> None:
    """Say what completes each argument: recipes, files, or nothing but its choices."""
    for action in one._actions:
        if isinstance(action.choices, dict):
            for inner in action.choices.values():
                _complete(inner, recipes)
        elif action.dest == "recipe":
            action.complete = recipes  # type: ignore[attr-defined]
        elif action.type in (expand, user_path):
            action.complete = shtab.FILE  # type: ignore[attr-defined]


def _recipes() -> dict[str, Any]:
    """What shtab puts into the script of each shell."""
    known = " ".join(sorted({word for file in names().values() for word in (file.stem, called(file))}))
    functions = {"bash": BASH, "zsh": ZSH, "fish": FISH}
    told = {shell: text.format(name=NAME, recipes=known) for shell, text in functions.items()}
    return {"bash": NAME, "zsh": NAME, "fish": f"({NAME})", "preamble": told}
