"""What the layout promises: no trap in `ssl/`, light imports, one direction, few writers of weights."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "ssl" / "unlabeled"


def run(code: str, *path: Path) -> None:
    paths = [str(folder) for folder in path]
    subprocess.run([sys.executable, "-c", f"import sys; sys.path[:0] = {paths}\n{code}"], check=True, cwd=ROOT)


def imports(file: Path) -> Iterator[str]:
    """The modules that a file imports, at its top or within functions."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative imports hide where things come from"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def ours(folder: str) -> Iterator[tuple[str, str]]:
    """(file, module) for every import of ours in a folder of the package."""
    for file in sorted((PACKAGE / folder).rglob("*.py")):
        yield from ((file.name, name) for name in imports(file) if name.split(".")[0] == "unlabeled")


def test_pythons_own_ssl_is_not_shadowed() -> None:
    assert not (ROOT / "ssl" / "__init__.py").exists()
    run("import ssl, asyncio; ssl.SSLContext; assert not ssl.__file__.startswith(sys.path[0])", ROOT)


@pytest.mark.parametrize("module", ["unlabeled", "unlabeled.cli", "unlabeled.recipe"])
def test_light_modules_import_neither_torch_nor_timm(module: str) -> None:
    heavy = "{'torch', 'torchvision', 'timm', 'accelerate'}"
    run(f"import {module}; found = {heavy} & set(sys.modules); assert not found, found", ROOT / "ssl")


def test_parts_import_nothing_of_ours_but_parts() -> None:
    assert [(file, name) for file, name in ours("nn") if not name.startswith("unlabeled.nn.")] == []


@pytest.mark.parametrize("folder", ["nn", "data", "methods", "train"])
def test_only_the_stages_know_the_stages(folder: str) -> None:
    later = ("engine", "cli", "plan", "evaluate", "transfer")
    assert [(file, name) for file, name in ours(folder) if name.split(".")[1] in later] == []


def test_only_checkpoints_and_exports_write_weights() -> None:
    writes = re.compile(r"safetensors\.(torch|numpy)\.save|save_file|torch\.save\(|pickle\.dump")
    found = [
        file.relative_to(PACKAGE).as_posix()
        for file in PACKAGE.rglob("*.py")
        if writes.search(file.read_text(encoding="utf-8"))
    ]
    assert sorted(found) == ["export.py", "train/checkpoint.py"]


def opens_text(call: ast.Call) -> bool:
    """Whether a call opens a file as text: `read_text`, `write_text`, or `open` in a mode without `b`."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if name in ("read_text", "write_text"):
        return isinstance(call.func, ast.Attribute)
    if ast.unparse(call.func) == "tarfile.open":
        return False
    # a picture's, a data set's and the system's own `open` have no mode in words
    modes = [a.value for a in call.args if isinstance(a, ast.Constant) and re.fullmatch("[rwax][+bt]*", str(a.value))]
    return name == "open" and (modes != [] or isinstance(call.func, ast.Name)) and not any("b" in m for m in modes)


def test_text_is_utf8_whatever_the_locale() -> None:
    for file in sorted([*ROOT.glob("*.py"), *PACKAGE.rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]):
        calls = [node for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
        for call in filter(opens_text, calls):
            said = [ast.unparse(k.value) for k in call.keywords if k.arg == "encoding"]
            assert said in (["'utf-8'"], ["'utf-8-sig'"]), f"{file}:{call.lineno} must say encoding='utf-8'"
