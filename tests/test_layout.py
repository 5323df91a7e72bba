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


@pytest.mark.parametrize(
    "module", ["unlabeled", "unlabeled.launch.program", "unlabeled.recipe", "unlabeled.page.finetuned"]
)
def test_light_modules_import_neither_torch_nor_timm(module: str) -> None:
    heavy = "{'torch', 'torchvision', 'timm', 'accelerate'}"
    run(f"import {module}; found = {heavy} & set(sys.modules); assert not found, found", ROOT / "ssl")


def test_parts_import_nothing_of_ours_but_parts() -> None:
    assert [(file, name) for file, name in ours("nn") if not name.startswith("unlabeled.nn.")] == []


@pytest.mark.parametrize("folder", ["nn", "data", "pretrain"])
def test_only_the_stages_know_the_stages(folder: str) -> None:
    later = ("launch", "train", "evaluate", "transfer", "stages", "commands")
    assert [(file, name) for file, name in ours(folder) if name.split(".")[1] in later] == []


def test_the_ladder_stands_on_the_stages_and_the_commands_on_both() -> None:
    # each may import those before it; no other folder imports any
    top = ["stages", "ladder", "interface", "search", "work", "commands"]
    for folder in sorted(path.name for path in PACKAGE.iterdir() if path.is_dir()):
        above = top[top.index(folder) + 1 :] if folder in top else top
        assert [(file, name) for file, name in ours(folder) if name.split(".")[1] in above] == []


def test_only_checkpoints_and_exports_write_weights() -> None:
    # `packed` is the writer of checkpoints; functions that go to workers are no weights
    writers = r"safetensors\.(torch|numpy)\.save|save_file|torch\.save\(|(?<!cloud)pickle\.dump|stored import .*packed"
    writes = re.compile(writers)
    found = [
        file.relative_to(PACKAGE).as_posix()
        for file in PACKAGE.rglob("*.py")
        if writes.search(file.read_text(encoding="utf-8"))
    ]
    assert sorted(found) == ["backbone/folder.py", "train/checkpoint.py"]


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


def extras() -> dict[str, set[str]]:
    """The libraries of every extra of pyproject.toml, by its name."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8").partition("[project.optional-dependencies]\n")[2]
    lines = re.findall(r"^(\w+) = \[(.*)\]$", text.partition("\n[")[0], re.M)
    return {name: set(re.findall(r'"([A-Za-z0-9_-]+)', listed)) for name, listed in lines}


def test_what_people_are_told_to_install_exists() -> None:
    known = extras()
    docs = "\n".join(file.read_text(encoding="utf-8") for file in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")))
    assert set(re.findall(r"\.\[(\w+)\]", docs)) <= known.keys() and {"data", "s3", "gs", "onnx"} <= known.keys()
    assert "s3fs" in known["s3"] and "gcsfs" in known["gs"] and "fsspec" in known["data"]
    libraries = set().union(*known.values())
    for file in PACKAGE.rglob("*.py"):
        for advice in re.findall(r"pip install ([^`\"),:{]+)", file.read_text(encoding="utf-8")):
            names = {re.sub(r"\[.*?\]", "", name.strip("'\\")) for name in advice.partition(" or ")[0].split()}
            assert names - {"-e", "or"} <= libraries, f"{file}: pip install {advice}"
