"""Commands are files: each has a summary, options and a run, and the help imports none of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from unlabeled import commands
from unlabeled.__main__ import main
from unlabeled.command import command, programs, summaries

NEW = """
SUMMARY = "count to a number"

def add_arguments(parser):
    parser.add_argument("number", type=int)

def run(options):
    print(*range(options.number))
    return 0
"""


@pytest.mark.parametrize("name", sorted(summaries().keys() - {*programs()}))
def test_every_file_is_a_command(name: str) -> None:
    found = command(name)
    assert summaries()[name] == found.SUMMARY and callable(found.add_arguments) and callable(found.run)


def test_the_help_imports_no_command() -> None:
    code = "import sys; from unlabeled.__main__ import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    code += "assert not {'torch', 'pydantic', 'numpy'} & sys.modules.keys()"
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert all(name in said for name in summaries())


def test_one_file_adds_a_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "count.py").write_text(NEW, encoding="utf-8")
    monkeypatch.setattr(commands, "__path__", [*commands.__path__, str(tmp_path)])
    assert summaries()["count"] == "count to a number"
    assert main(["count", "3"]) == 0
    assert capsys.readouterr().out == "0 1 2\n"
