"""Every error of the package says what to do, and stands on its page of the documentation."""

from __future__ import annotations

from pathlib import Path

import pytest
from make.errors import AREAS, Message, messages, pages

ROOT = Path(__file__).parents[1]

SOURCE = """
from small.words import AGAIN
OWN = "Set it."

def found(path, size):
    said = f"{path} has {size:,} bytes"
    if size < 1:
        raise UserError(f"{said}. {OWN}")
    if size > 9:
        raise ValueError(f"{path.name!r} is too large: {AGAIN}")
    try:
        raise OSError("not ours")
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    raise UserError(f"{', '.join(path)} is odd")
"""


@pytest.fixture(scope="module")
def ours() -> list[Message]:
    return list(messages(ROOT / "ssl" / "unlabeled"))


def test_every_error_of_a_program_says_what_to_do(ours: list[Message]) -> None:
    assert ours and [m for m in ours if m.kind != "ValueError" and not m.forwards and m.fix < 0] == []


def test_messages_are_read_from_the_source(tmp_path: Path) -> None:
    package = tmp_path / "small"
    package.mkdir()
    (package / "words.py").write_text('AGAIN = "take another"\n', encoding="utf-8")
    (package / "first.py").write_text(SOURCE, encoding="utf-8")
    assert [(m.kind, m.text) for m in messages(package)] == [
        ("UserError", "‹path› has ‹size› bytes. Set it."),
        ("ValueError", "‹name› is too large: take another"),
        ("UserError", "‹path› is odd"),
    ]


@pytest.mark.parametrize(
    "text, fix",
    [
        ("a is 3. Set it to 4.", "Set it to 4."),
        ("a is 3, expected 4", "expected 4"),
        ("a is 3: leave it out", "leave it out"),
        ("a is gone. ‹mend›", "‹mend›"),
        ("All must see b: set a to it", "All must see b: set a to it"),
        ("a is a set of 3", ""),
        ("a cannot be read: ‹error›", ""),
        ("the use of a", ""),
    ],
)
def test_the_part_that_says_what_to_do(text: str, fix: str) -> None:
    at = Message("x.py", 1, "UserError", text).fix
    assert (text[at:] if at >= 0 else "") == fix


def test_the_page_has_every_message_once(ours: list[Message], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("make.errors.messages", {ROOT / "ssl" / "unlabeled": ours}.__getitem__)
    page = pages(ROOT)["errors.md"]
    entries = [line for line in page.splitlines() if line.startswith("- ")]
    shown = {m for m in ours if not m.forwards}
    assert len(entries) == len({(m.file, m.text) for m in shown})
    assert all(f"## {area}" in page for area in AREAS if area != "Files")
    assert "train.batch\\_size" in page and "**Set run.accumulate=1" in page
