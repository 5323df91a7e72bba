"""Help that was shown before is shown again without torch, and never when it is out of date."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT

from unlabeled.launch import remembered
from unlabeled.launch.outline import fields
from unlabeled.stages.finetune import FinetuneRecipe
from unlabeled.stages.pretrain import PretrainRecipe

SHOWN = """
import sys
from unlabeled.launch.program import main
try:
    main({name!r}, {words!r})
except SystemExit as end:
    assert not end.code
print("torch" in sys.modules)
"""


def shown(name: str, words: list[str], cache: Path) -> tuple[str, bool]:
    """The text of a command line, and whether torch was imported for it."""
    env = {**os.environ, "XDG_CACHE_HOME": str(cache), "PYTHONPATH": str(ROOT / "ssl")}
    script = [sys.executable, "-c", SHOWN.format(name=name, words=words)]
    *text, torch = subprocess.run(script, check=True, capture_output=True, text=True, env=env).stdout.splitlines()
    return "\n".join(text), torch == "True"


def test_help_is_made_once(tmp_path: Path) -> None:
    for words in (["--help", "all"], ["-h", "optim.schedule"]):
        text, slow = shown("finetune", words, tmp_path)
        assert slow and "milestones" in text
        assert shown("finetune", words, tmp_path) == (text, False)


@pytest.mark.parametrize(("name", "schema"), [("pretrain", PretrainRecipe), ("finetune", FinetuneRecipe)])
def test_the_first_help_names_every_section_and_imports_nothing(name: str, schema: type, tmp_path: Path) -> None:
    text, slow = shown(name, ["--help"], tmp_path)
    assert not slow and not list(tmp_path.iterdir())
    assert re.findall(r"^  ([a-z]+)  +\S", text.partition("fields and sections")[2], re.MULTILINE) == [
        *schema.model_fields
    ]
    for field, about in fields(name).items():
        assert about and schema.model_fields[field].description.startswith(about)


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(remembered, "PACKAGE", tmp_path)
    (tmp_path / "a.py").write_text("one", encoding="utf-8")
    remembered.keep("pretrain", "all", "text\nof two lines")
    assert remembered.recall("pretrain", "all") == "text\nof two lines"
    return tmp_path


def test_every_program_and_section_has_its_own(kept: Path) -> None:
    assert remembered.recall("finetune", "all") is remembered.recall("pretrain", "optim") is None


@pytest.mark.parametrize(
    "change", ["another file", "a moved file", "a longer file", "a later file", "a wider terminal"]
)
def test_what_is_out_of_date_is_made_anew(kept: Path, change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if change == "another file":
        (kept / "b.py").touch()
    elif change == "a moved file":
        (kept / "folder").mkdir()
        (kept / "a.py").rename(kept / "folder" / "a.py")
    elif change == "a longer file":
        (kept / "a.py").write_text("three", encoding="utf-8")
    elif change == "a later file":
        os.utime(kept / "a.py", (1, 1))
    else:
        monkeypatch.setenv("COLUMNS", "333")
    assert remembered.recall("pretrain", "all") is None


def test_a_damaged_or_unwritable_cache_changes_nothing(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [file] = (kept / "cache" / "unlabeled").iterdir()
    file.write_bytes(b"\xff\xfe")
    assert remembered.recall("pretrain", "all") is None
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null/cache")
    remembered.keep("pretrain", "all", "text")
    assert remembered.recall("pretrain", "all") is None
