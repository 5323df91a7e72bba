"""One report, and what each writer makes of it."""

from __future__ import annotations

import io
import json

from rich.console import Console

from unlabeled.report import as_json, markdown, terminal
from unlabeled.report.document import Document, Figure, Marked, Table, Text

REPORT = Document(
    "runs | <b>",
    (
        Table(("probe", "acc."), [("kNN|20", "91.25"), ("linear", Marked("8.5", rest=" (2 s)"))]),
        Text("In percent."),
        Figure("confusion.png", "confusion"),
        Figure("curve.png", "curve"),
        Text("Cost", "heading"),
        Table.facts([("mode", "full"), (Marked("1. warning", "warning"), "slow"), ("", "-> use workers")]),
        Text("one", "item"),
        Text("two", "item"),
    ),
    {"accuracy": 91.25},
)


def shown(document: Document, width: int, colours: bool = False) -> str:
    file = io.StringIO()
    console = Console(file=file, width=width, force_terminal=colours, color_system="standard" if colours else None)
    terminal.show(console, document)
    return file.getvalue()


def test_markdown_as_it_should_look() -> None:
    assert markdown.write(REPORT) == (
        "# runs \\| &lt;b&gt;\n\n"
        "| probe   |          acc. |\n"
        "| ------- | ------------: |\n"
        "| kNN\\|20 |         91.25 |\n"
        "| linear  | **8.5** (2 s) |\n\n"
        "In percent.\n\n"
        "![confusion](confusion.png) ![curve](curve.png)\n\n"
        "## Cost\n\n"
        "|                |                   |\n"
        "| -------------- | ----------------- |\n"
        "| mode           | full              |\n"
        "| **1. warning** | slow              |\n"
        "|                | -&gt; use workers |\n\n"
        "- one\n- two\n"
    )


def test_a_document_without_title_or_parts() -> None:
    assert markdown.write(Document("", (Text("All there is."),))) == "All there is.\n"
    assert terminal.write(Document("", (Text("All there is."),))) == "All there is.\n"
    assert terminal.write(Document("name", ())) == "name\n"


def test_a_terminal_aligns_and_wraps_facts() -> None:
    facts = Document("tiny (pretrain)", [Text("speed", "heading"), REPORT.parts[5]])
    assert terminal.write(facts) == (
        "tiny (pretrain)\n\nspeed\n  mode        full\n  1. warning  slow\n              -> use workers\n"
    )
    long = Document("", [Table.facts([("a", "one two three four five six"), ("", "-> one two three four five six")])])
    assert shown(long, 33) == (
        "  a          one two three four\n             five six\n"
        "             -> one two three\n                four five six\n"
    )


def test_a_terminal_marks_what_stands_out() -> None:
    assert "\x1b[33m1. warning\x1b[0m" in shown(REPORT, 80, colours=True)
    assert "\x1b" not in shown(REPORT, 80)


def test_a_wide_table_is_turned_on_a_terminal() -> None:
    head = ["", *(f"score\n{i}" for i in range(6))]
    wide = shown(Document("", [Table(head, [["mae", *"123456"]], title="accuracy, %")]), 80)
    lines = [line for line in wide.splitlines() if line.strip()]
    assert "accuracy, %" in lines[0] and "mae" in lines[2]
    assert [line.split() for line in lines[4:-1]] == [["│", "score", f"{i}", "│", f"{i + 1}", "│"] for i in range(6)]
    narrow = shown(Document("", [Table(head[:3], [["mae", "1", "2"]])]), 80)
    assert "│     │ score │ score │" in narrow.replace("┃", "│")


def test_names_in_a_table_that_does_not_fit_stay_whole() -> None:
    rows = [["Food & Drink/1f35f-of-the-evening.png", "Food & Drink", "Animals & Nature", Marked("0.9", "strong")]]
    document = Document("", [Table(("picture", "class", "likely", "share of\nneighbours"), rows, title="labels")])
    assert shown(document, 60) == (
        "labels\nFood & Drink/1f35f-of-the-evening.png\n"
        "  class Food & Drink   likely Animals & Nature   share of neighbours 0.9\n"
    )
    assert "│ Food & Drink/1f35f-of-the-evening.png │ Food" in shown(document, 100)


def test_json_is_the_data() -> None:
    assert json.loads(as_json.write(REPORT)) == {"accuracy": 91.25}


def test_lists_of_numbers_stand_on_one_line_in_compact_json() -> None:
    content = {"a": [[1, 2], [3, -4e-9]], "b": ["1", None], "c": [], "[\n1\n]": 0.5}
    text = as_json.write(Document("", (), content), compact=True)
    assert json.loads(text) == content and "[3, -4e-09]" in text
    assert as_json.write(Document("", (), content)) == json.dumps(content, indent=2) + "\n"


def test_code_keeps_its_lines() -> None:
    code = Document("", [Text("Recipe", "heading"), Text("a: |\n  ```<b>\x1b\n", "code")])
    assert markdown.write(code) == "## Recipe\n\n````\na: |\n  ```<b>\\x1b\n````\n"
    assert terminal.write(code) == "Recipe\na: |\n  ```<b>\\x1b\n"
