"""The fields of a stage's recipes with what each is for, read from the source: importing it takes seconds."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[1]


def fields(stage: str) -> dict[str, str]:
    """Every field of the recipes of a stage by its name, with the beginning of its description."""
    common = _described(PACKAGE / "train" / "recipe.py", "Recipe")
    return dict([*common, *_described(PACKAGE / "stages" / f"{stage}.py", f"{stage.capitalize()}Recipe")])


def _described(file: Path, name: str) -> Iterator[tuple[str, str]]:
    """The fields that a class itself has."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name).body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.value, ast.Call):
            texts = [word.value for word in node.value.keywords if word.arg == "description"]
            yield ast.unparse(node.target), "".join(map(_beginning, texts))


def _beginning(text: ast.expr) -> str:
    """A text up to its first colon, semicolon or value."""
    parts = text.values if isinstance(text, ast.JoinedStr) else [text]
    return str(ast.literal_eval(parts[0])).partition(";")[0].partition(":")[0]
