"""Commands are files: each has a summary, options and a run, and the help imports none of them."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from unlabeled import commands
from unlabeled.__main__ import main
from unlabeled.backbone.encoder import Pool
from unlabeled.backbone.importing import importer_names
from unlabeled.command import command, kinds, programs, summaries
from unlabeled.evaluate.evaluation import DEFAULT
from unlabeled.evaluate.protocol import PROTOCOLS
from unlabeled.look.plane import How
from unlabeled.progress import duration
from unlabeled.work.evaluate import CHEAP

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


def test_the_help_of_every_command_needs_neither_torch_nor_timm() -> None:
    code = "import argparse, sys\nfrom unlabeled.command import command, programs, summaries\n"
    code += "for name in summaries().keys() - {*programs()}: command(name).add_arguments(argparse.ArgumentParser())\n"
    code += "print(sorted({'torch', 'torchvision', 'timm', 'numpy', 'accelerate', 'matplotlib'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "[]\n"


def options_of(name: str) -> dict[str, argparse.Action]:
    """The options of a command by their names."""
    command(name).add_arguments(parser := argparse.ArgumentParser())
    return {action.dest: action for action in parser._actions}


def test_choices_are_those_of_the_work() -> None:
    """Options repeat names of the work, which takes seconds to import."""
    evaluate = options_of("evaluate")
    assert set(evaluate["pool"].choices or ()) == set(get_args(Pool))
    assert tuple(evaluate["protocol"].default) == DEFAULT
    assert kinds("evaluate/protocols") == PROTOCOLS.names() and all(
        name in str(evaluate["protocol"].help) for name in PROTOCOLS.names()
    )
    assert duration(CHEAP) in str(evaluate["baselines"].help)
    assert options_of("import")["method"].choices == importer_names()
    assert options_of("look")["map"].choices == get_args(How)
    for name in ("embed", "look"):
        assert set(options_of(name)["pool"].choices or ()) == set(get_args(Pool)) - {"own"}
