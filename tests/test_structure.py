"""The rules of the package's structure, and that each of them can be broken."""

from __future__ import annotations

from pathlib import Path

import pytest
from structure import House

ROOT = Path(__file__).parents[1]

BROKEN = {
    "import cycle: unlabeled.a unlabeled.b": {"a.py": "import unlabeled.b", "b.py": "from unlabeled import a"},
    "import cycle: unlabeled.stages.a unlabeled.stages.b": {
        "stages/a.py": "def f():\n    from unlabeled.stages.b import x",
        "stages/b.py": "if TYPE_CHECKING:\n    from unlabeled.stages.a import f\nx = 1",
    },
    "for types: a.py:2 unlabeled.b": {"a.py": "if TYPE_CHECKING:\n    import unlabeled.b", "b.py": ""},
    "in a function: data/a.py:2 unlabeled.b": {"data/a.py": "def f():\n    import unlabeled.b", "b.py": ""},
    "untyped: a.py:1": {"a.py": "def f(recipe: Any): ..."},
    "untyped: b.py:2": {"b.py": "def f(\n    engine: Any\n): ..."},
    "question: a.py:2": {"a.py": "\n" + "isinstance(x, Vit)\n" * 4},
    "question: c.py:1": {"c.py": "x.has_class_token\n" * 4, "backbone/families/vit.py": "x.has_class_token\n"},
    "mode: a.py:1": {"a.py": 'if task.mode == "full": ...'},
    "full folder: a has 19 files": {f"a/{n}.py": "" for n in range(19)},
    "26 own imports in functions": {
        "stages/a.py": "def f():\n" + "    import unlabeled.b\n" * 26,
        "b.py": "",
    },
}


def test_the_package_keeps_the_rules() -> None:
    assert House(ROOT).breaches() == []


def test_every_kind_is_one_file(tmp_path: Path) -> None:
    assert set(House(ROOT).to_add().values()) == {1}
    listed = {"masks/random.py": "", "masks/block.py": "", "view.py": "from unlabeled.data.masks import random, block"}
    for name, text in listed.items():
        (file := tmp_path / "ssl" / "unlabeled" / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    assert House(tmp_path).to_add()["mask"] == 2


@pytest.mark.parametrize("breach", BROKEN)
def test_a_breach_is_found(tmp_path: Path, breach: str) -> None:
    for name, text in BROKEN[breach].items():
        file = tmp_path / "ssl" / "unlabeled" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    assert breach in House(tmp_path).breaches()


def test_few_questions_and_imports_of_commands_are_allowed(tmp_path: Path) -> None:
    folder = tmp_path / "ssl" / "unlabeled"
    (folder / "commands").mkdir(parents=True)
    (folder / "b.py").write_text("x.has_class_token\n" * 3, encoding="utf-8")
    (folder / "commands" / "a.py").write_text("def f():\n    import unlabeled.b\n" * 25, encoding="utf-8")
    assert House(tmp_path).breaches() == []
