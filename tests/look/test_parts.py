"""The reader of a folder's views: what is there, what is missing, what is broken."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from unlabeled.look.mapped import Mapped
from unlabeled.look.parts import MOST_FRAMES, parts
from unlabeled.report.document import Figure, Table, Text
from unlabeled.report.visuals import Frame, Gallery, Map, Row, Sheet, Shown, Slides

MAPPED: dict[str, Any] = {
    "about": "3 pictures",
    "plane": "the plane is two components",
    "step": 1200,
    "root": "/pictures/",
    "names": ["a.png", "b.png", "c.png"],
    "points": [[0, 1], [2, 3], [4, 5]],
    "thumbnails": {"side": 96, "columns": 2},
    "words": {"class": ["cat", "dog", "cat"]},
    "numbers": {"uncertainty": [0.0, 0.5, 1.0]},
    "queries": [{"place": 0, "neighbours": [[2, 0.91], [1, -0.2]]}],
    "outliers": [[1, 1.25]],
    "duplicates": [{"places": [0, 2], "cosine": 0.991}],
    "grouped": 3,
    "threshold": 0.98,
    "left_out": 2,
}


def written(folder: Path, **changes: Any) -> Path:
    (folder / "look").mkdir(exist_ok=True)
    (folder / "look" / "map.json").write_text(json.dumps({**MAPPED, **changes}))
    return folder


def test_a_map_becomes_views(tmp_path: Path) -> None:
    found = parts(written(tmp_path))
    sheet = Sheet("look/map.jpg", 96, 2, 3)
    gallery, outliers, alike = (part for part in found if isinstance(part, Gallery))
    assert gallery.rows == [
        Row("a.png (cat)", [Shown(0, "query", "strong"), Shown(2, "0.910"), Shown(1, "-0.200", "warning")])
    ]
    assert gallery.sheet == outliers.sheet == alike.sheet == sheet
    [drawn] = [part for part in found if isinstance(part, Map)]
    assert drawn.points == [(0, 1), (2, 3), (4, 5)]
    assert (list(drawn.names), drawn.sheet) == (MAPPED["names"], sheet)
    assert drawn.colours == {**MAPPED["words"], **MAPPED["numbers"]}
    assert drawn.text.startswith("3 pictures at step 1,200; the plane is two components.")
    assert drawn.text.endswith(" 2 pictures cannot be used. Files are below /pictures/")
    assert outliers.rows == [Row("", [Shown(1, "1.25")])]
    assert alike.rows == [Row("0.991", [Shown(0, "a.png"), Shown(2, "c.png")])]
    assert alike.text == (
        "3 groups of pictures whose cosine is 0.98 or more. The closest 1 groups are shown. Files are below /pictures/ "
        "That is many: an encoder that has learnt little takes different pictures for alike."
    )
    assert [part.rows for part in found if isinstance(part, Table)] == [
        [("b.png", "1.250")],
        [("a.png", "c.png", "0.991")],
    ]


def test_nothing_is_made_of_what_is_missing(tmp_path: Path) -> None:
    assert parts(tmp_path) == []
    texts = [
        part.text for part in parts(written(tmp_path, queries=[], outliers=[], duplicates=[])) if isinstance(part, Text)
    ]
    assert texts == ["Map of the pictures", "Near-duplicates", "No two pictures have a cosine of 0.98 or more."]


@pytest.mark.parametrize(
    "changes",
    [
        {"points": [[0, 1]]},
        {"numbers": {"uncertainty": [1.0]}},
        {"outliers": [[3, 1.0]]},
        {"queries": [{"place": 0, "neighbours": [[-1, 0.5]]}]},
        {"duplicates": [{"places": [0, 9], "cosine": 1}]},
        {"names": None},
        {"thumbnails": {"side": 0, "columns": 1}},
    ],
)
def test_a_broken_map_is_a_sentence(tmp_path: Path, changes: dict[str, Any]) -> None:
    [said] = parts(written(tmp_path, **changes))
    assert said == Text("look/map.json cannot be read: ValidationError. It is left out.")


def test_bytes_that_are_no_json_are_a_sentence(tmp_path: Path) -> None:
    (written(tmp_path) / "look" / "map.json").write_bytes(b"\xff{")
    [said] = parts(tmp_path)
    assert isinstance(said, Text)


def test_drawings_of_a_run_are_slides_in_order(tmp_path: Path) -> None:
    (tmp_path / "look").mkdir()
    for step in (900, 99_999_999, 100_000_000):
        (tmp_path / "look" / f"attention-step-{step:08d}.png").touch()
    (tmp_path / "look" / "about.json").write_text('{"attention": "of the class token"}')
    heading, slides = parts(tmp_path)
    assert heading == Text("Where it looks", "heading")
    assert slides == Slides(
        "Where it looks",
        [
            Frame("step 900", "look/attention-step-00000900.png"),
            Frame("step 99,999,999", "look/attention-step-99999999.png"),
            Frame("step 100,000,000", "look/attention-step-100000000.png"),
        ],
        "of the class token",
    )


def test_few_of_many_drawings_are_shown(tmp_path: Path) -> None:
    (tmp_path / "look").mkdir()
    for step in range(100):
        (tmp_path / "look" / f"pca-step-{step:08d}.png").touch()
    _, slides = parts(tmp_path)
    assert isinstance(slides, Slides)
    names = [frame.name for frame in slides.frames]
    assert (len(set(names)), names[0], names[-1]) == (MOST_FRAMES, "step 0", "step 99")


def test_a_drawing_of_no_run_is_a_figure(tmp_path: Path) -> None:
    (tmp_path / "look").mkdir()
    (tmp_path / "look" / "pca.png").touch()
    (tmp_path / "look" / "about.json").write_text("[]")
    title = "Principal components of the patches"
    assert parts(tmp_path) == [Text(title, "heading"), Figure("look/pca.png", title)]
    (tmp_path / "look" / "about.json").write_text('{"pca": "of all"}')
    assert parts(tmp_path)[2:] == [Text("of all")]


def test_reading_needs_no_torch() -> None:
    code = "import sys, unlabeled.look.parts; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_what_is_written_is_read_again() -> None:
    mapped = Mapped.model_validate(MAPPED)
    assert Mapped.model_validate_json(mapped.model_dump_json(exclude_defaults=True)) == mapped
