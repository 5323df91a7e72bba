"""Names of files, folders and classes that would turn a terminal's colours, forge lines, or run as a script: no writer
passes them on."""

from __future__ import annotations

import ast
import csv
import io
import logging
import re
import shutil
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from support import SHOWN_FINETUNE, TINY_PRETRAIN, launch

from unlabeled import text
from unlabeled.__main__ import main
from unlabeled.backbone.build import build_encoder
from unlabeled.backbone.folder import IMAGENET, timm_config, write_export
from unlabeled.doctor.speed import Speed
from unlabeled.errors import UserError
from unlabeled.evaluate.results import EncoderScores, brief, full
from unlabeled.ladder.page import plot
from unlabeled.ladder.rungs import RungResult
from unlabeled.launch.plan import format_plan
from unlabeled.launch.program import exit_code
from unlabeled.progress import Bars
from unlabeled.report import markdown, terminal
from unlabeled.report.document import Document, Table
from unlabeled.report.plots import draw_confusion
from unlabeled.work import doctor as command

HOSTILE = (
    "\x1b]0;title\x07\x1b[2J\x1b[31mred",
    "\x9b31mred",
    "<img src=x onerror=alert(1)>",
    "<script>alert(1)<script>",
    "![x](x.png)",
    "a|b|`c`",
    "exe.\u202egnp",
    "two\nlines | error: forged",
    "\rback",
    "$\\frac$_{x",
    "[red]x[/red][/]",
    "&lt;b&gt;",
    "\\|\\<b>",
    "```\n# heading",
    "=HYPERLINK(1)",
    "@SUM(1)",
)


def is_clean(shown: str, lines: int | None = None) -> bool:
    """Whether nothing in a text acts: controls, formats, and where it is Markdown tags."""
    acting = [c for c in shown if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") and c != "\n"]
    return not acting and (lines is None or shown.count("\n") == lines)


def is_clean_markdown(shown: str) -> bool:
    return is_clean(shown) and not any(part in shown for part in ("<img", "<script", "<b>", "](x.png", "\n# heading"))


# ---------------------------------------------------------------- by hand


@pytest.mark.parametrize("name", HOSTILE)
def test_names_keep_what_can_be_read_of_them(name: str) -> None:
    line = text.one_line(name)
    assert is_clean(line, 0) and line == "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in name
    )
    assert is_clean(text.plain(name)) and text.plain(name).count("\n") == name.count("\n")
    assert is_clean_markdown(text.markdown(name)) and is_clean(text.code(name), 0)


def test_ordinary_names_stay_as_they_are() -> None:
    for name in (
        "cat",
        "Katze müde",
        "91.20 ± 0.31 [90.84, 91.56]",
        "< 20",
        "(> 100 pictures)",
        "**31.2** (4 s)",
        "日本",
        "R&D",
        "-",
    ):
        assert text.markdown(name) == text.one_line(name) == text.plain(name) == name


def test_every_cell_of_a_table_stays_in_it() -> None:
    shown = markdown.table(Table(["class", "n"], [[name, "1"] for name in HOSTILE]))
    lines = shown.splitlines()
    assert len(lines) == 2 + len(HOSTILE) and is_clean_markdown(shown)
    for line in lines:
        assert line.replace("\\\\", "").replace("\\|", "").count("|") == 3


def test_code_ends_where_its_name_does() -> None:
    assert text.code("a`b``c") == "``` a`b``c ```" and text.code("plain") == "`plain`"


# ---------------------------------------------------------------- terminals


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_said_is_one_line(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    for on_terminal in (False, True):
        file = io.StringIO()
        console = Console(file=file, force_terminal=on_terminal, color_system=None, soft_wrap=True, width=200)
        with Bars(console=console) as bars:
            bars.say(f"skipped {name}")
        assert is_clean(file.getvalue(), 1) and text.one_line(name) in file.getvalue()
    text.say(f"skipped {name}")
    assert is_clean(capsys.readouterr().err, 1)
    assert is_clean(format_plan(name, iter([("output", name), (name, "x")])), 2)


@pytest.mark.parametrize("name", HOSTILE)
def test_tables_and_reports_on_a_terminal(name: str) -> None:
    row = EncoderScores(name, (8, 8), 8, 1, 1, 1.0, {}, {}, {"cpu_seconds": 1.0})
    file = io.StringIO()
    console = Console(file=file, color_system=None, width=400)
    terminal.show(console, brief([row], {}, [name]))
    terminal.show(console, Document(name, [Table.facts([(name, name), ("unreadable", f"{name}: cannot be read")])]))
    assert is_clean(file.getvalue()) and text.one_line(name).split()[0] in file.getvalue()
    assert is_clean_markdown(markdown.write(full([row], {}, [name], {})))


@pytest.mark.parametrize("name", HOSTILE)
def test_errors(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["evaluate", name, "--data", name], ["report", name], ["import", "mae", name, "out"]):
        assert main(arguments) == 2
        said = capsys.readouterr().err
        assert said.startswith("error: ") and is_clean(said)


def test_errors_of_megabytes_are_cut(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> int:
        raise UserError("field: unknown\n" * 1_000_000)

    assert exit_code(fail, last=False) == 2
    said = capsys.readouterr().err
    assert len(said) < 21_000 and said.endswith("more characters\n")


# ---------------------------------------------------------------- diagrams


def test_diagrams_of_any_name(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    names = [*HOSTILE, "日本", "\udcff", "$", "$a$b$"]
    draw_confusion(tmp_path / "a.png", torch.eye(len(names), dtype=torch.int64), names, "$\\x \x1b[2J")
    step = RungResult("knn", 1.0, [1.0], 1.0)
    plot([step], [step.amount], "$\\frac{ \x1b[2J\n日本", tmp_path / "b.png")
    assert all(Image.open(tmp_path / file).size for file in ("a.png", "b.png"))
    assert not [str(w.message) for w in recwarn if "lyph" in str(w.message)]


# ---------------------------------------------------------------- every writer

SAFE = {"one_line", "plain", "dumps", "table", "write"}
OWN_WORDS = {
    "launch/stage.py:begun": "escaped by format_plan",
    "work/ladder.py:run": "names of rungs",
    "command.py:__call__": "versions",
    "launch/arguments.py:parse": "the help",
    "launch/arguments.py:__call__": "the help",
    "launch/program.py:_run": "the help",
}


def test_whatever_prints_escapes_or_prints_no_names() -> None:
    """A new `print` with something in it must go through one of these functions."""
    root, raw = Path(text.__file__).parent, []
    for file in sorted(root.rglob("*.py")):
        for function in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            place = f"{file.relative_to(root).as_posix()}:{getattr(function, 'name', '')}"
            if isinstance(function, ast.FunctionDef) and place not in OWN_WORDS:
                raw += [place for call in ast.walk(function) if _prints(call) and not _escapes(call)]
    assert not raw


def _prints(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print"


def _escapes(call: ast.AST) -> bool:
    nodes = list(ast.walk(call))
    used = {getattr(n.func, "id", getattr(n.func, "attr", "")) for n in nodes if isinstance(n, ast.Call)}
    return bool(used & SAFE) or (
        not any(isinstance(n, ast.JoinedStr) for n in nodes)
        and "text" not in {n.id for n in nodes if isinstance(n, ast.Name)}
    )


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_logged_is_one_line(name: str) -> None:
    assert exit_code(lambda: 0, last=False) == 0 and logging.lastResort is not None
    record = logging.LogRecord("unlabeled.data", logging.WARNING, "", 0, "%s is not there", (name,), None)
    assert is_clean(logging.lastResort.format(record), 0)


# ---------------------------------------------------------------- whole programs


def fill(root: Path) -> Path:
    """Hostile classes, and pictures that cannot be read under hostile names."""
    for split in ("train", "val"):
        for number, name in enumerate(HOSTILE):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(2):
                pixels = np.random.default_rng((number, i, len(split))).integers(256, size=(16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    (root / "train" / HOSTILE[0] / f"{HOSTILE[7]}.png").write_bytes(b"no picture")
    return root


@pytest.fixture
def export(tmp_path: Path) -> Path:
    arguments: dict[str, Any] = {"img_size": [16, 16], "patch_size": 8, "in_chans": 3, "embed_dim": 8}
    arguments |= {"depth": 1, "num_heads": 2}
    folder = tmp_path / HOSTILE[2]
    weights = build_encoder("vit_tiny_patch16_224", arguments).vit.state_dict()
    write_export(folder, weights, timm_config("vit_tiny_patch16_224", arguments, 8, IMAGENET), "")
    return folder


def test_finetuning_evaluating_and_reporting(export: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures = fill(tmp_path / "pictures")
    data = f"{{name: files, path: {pictures}, train: train, val: val, max_bad_fraction: 1.0}}"
    recipe = SHOWN_FINETUNE.replace("{name: shapes, train_size: 42, val_size: 20, size: 16}", data)
    (tmp_path / "r.yaml").write_text(recipe.replace("epochs: 3", "epochs: 1"), encoding="utf-8")
    run = tmp_path / "run"
    assert launch("finetune", [str(tmp_path / "r.yaml"), f"encoder={export}", f"run.output={run}"]) == [0], (
        capsys.readouterr().err
    )
    said = capsys.readouterr().err
    assert "skipped" in said and is_clean(said) and "\nlines" not in said
    assert is_clean_markdown((run / "result.md").read_text(encoding="utf-8"))
    card = (run / "export" / "README.md").read_text(encoding="utf-8")
    assert is_clean(card) and is_clean_markdown(re.sub(r"(?s)```\w+\n.*?\n```|`[^`]*`", "", card))
    options = ("--data", str(pictures), "--protocol", "knn", "--set", "knn.k=[1]", "--workers", "0", "--device", "cpu")
    assert main(["evaluate", str(export), *options, "--markdown", str(tmp_path / "e.md")]) == 0
    assert main(["report", str(run), "--markdown", str(tmp_path / "r.md")]) == 0
    captured = capsys.readouterr()
    assert is_clean(captured.out) and is_clean(captured.err)
    assert all(is_clean_markdown((tmp_path / file).read_text(encoding="utf-8")) for file in ("e.md", "r.md"))


def test_a_look_at_the_pictures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    speed = Speed(loader=1000, model=100, together=95, encode=300, batch=8, peak=10**9)
    monkeypatch.setattr(command, "measure", lambda *_: speed)
    data = f"{{name: files, path: {fill(tmp_path / 'pictures')}, train: train, val: val}}"
    recipe = TINY_PRETRAIN.replace("{name: shapes, train_size: 42, val_size: 20, size: 16}", data)
    (tmp_path / "r.yaml").write_text(recipe, encoding="utf-8")
    train, val = (tmp_path / "pictures" / split for split in ("train", "val"))
    for name in HOSTILE[1:]:
        shutil.copy(train / name / "0.png", val / HOSTILE[0] / f"{name.replace('/', '_')}.png")
    options = ("--pictures", "99", "--csv", str(tmp_path / "copies.csv"))
    assert main(["doctor", str(tmp_path / "r.yaml"), *options]) in (0, 2)
    captured, copies = capsys.readouterr(), (tmp_path / "copies.csv").read_text(encoding="utf-8")
    rows = list(csv.reader(io.StringIO(copies)))
    assert len(rows) == len(HOSTILE) and is_clean(copies, len(rows))
    assert not any(cell.startswith(("=", "@")) for row in rows for cell in row)
    assert "unreadable" in captured.out and is_clean(captured.out) and is_clean(captured.err)
