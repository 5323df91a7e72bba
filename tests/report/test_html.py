"""Reports as one HTML file: what is in it, and that nothing in it becomes a program."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from every_part import EVIL, every_part
from PIL import Image

from unlabeled.report import html, inline
from unlabeled.report.document import Document, Figure, Table, Text
from unlabeled.report.markup import number
from unlabeled.report.visuals import Chart, Frame, Line, Slides


class Elements(HTMLParser):
    """The elements of a page, their attributes, and the text of the scripts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.cdata_elem == "script":
            self.scripts[-1] += data
        elif self.cdata_elem is None:
            self.text += data

    def all(self, tag: str, name: str = "") -> list[dict[str, str | None]]:
        return [
            attributes
            for found, attributes in self.found
            if found == tag and name in ("", *(attributes.get("class") or "").split())
        ]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Elements:
    folder = tmp_path_factory.mktemp("page")
    return Elements(html.write(every_part(folder), folder))


def of(*parts: object, folder: Path = Path(), **options: object) -> Elements:
    return Elements(html.write(Document("a title", parts), folder, **options))  # type: ignore[arg-type]


def test_names_stay_names(page: Elements) -> None:
    assert len(page.scripts) == 3 and not page.all("script", "x")
    handlers = [name for _, attributes in page.found for name in attributes if name.startswith("on")]
    assert handlers == []
    shown = EVIL.replace("\u2028", "\\u2028").replace("\u202e", "\\u202e")
    assert page.text.count(shown) > 10
    assert {line["name"] for line in json.loads(page.scripts[1])[2]["lines"]} == {"mae", "dino", shown}


def test_nothing_is_asked_of_a_host(page: Elements) -> None:
    sources = [a.get(name) or "" for _, a in page.found for name in ("src", "href", "srcset", "action") if name in a]
    assert sources and all(source.startswith(("data:", "#")) for source in sources)
    policy = next(a["content"] or "" for a in page.all("meta") if a.get("http-equiv"))
    assert "default-src 'none'" in policy and "connect-src 'none'" in policy and "unsafe-eval" not in policy
    assert re.search(r"script-src 'sha256-\S+' 'sha256-\S+';", policy)


def test_the_page_that_reads_itself_anew_may_ask_its_own_host_alone() -> None:
    live = of(Text("x"), refresh=2.5, home="../?a=1&b")
    assert live.all("body")[0]["data-refresh"] == "2.5" and live.all("a", "home")[0]["href"] == "../?a=1&b"
    assert "connect-src 'self'" in next(a["content"] or "" for a in live.all("meta") if a.get("http-equiv"))
    assert "data-refresh" not in of(Text("x")).all("body")[0] and not of(Text("x")).all("a", "home")


def test_sections_of_one_name_have_their_own_addresses() -> None:
    found = of(Text("Map", "heading"), Text("map!", "heading"), Text("日本", "heading"), Text("Data", "heading"))
    names = [a["id"] for a in found.all("section")]
    assert names == ["map", "map-2", "section", "data-2"]
    assert [a["href"] for a in found.all("a")][1:] == [f"#{name}" for name in names]


def test_a_part_with_the_name_of_its_section_does_not_repeat_it() -> None:
    chart = Chart("Loss", [Line("a", [0], [1])])
    found = of(Text("Loss", "heading"), chart, chart._replace(title="Other"))
    assert len(found.all("h2")) == len(found.all("h3")) == 1 and found.all("figure")[0]["aria-label"] == "Loss"


def test_numbers_are_short_and_json() -> None:
    line = Line("a", [0, 1234567, 2.0], [0.123456789, float("nan"), None], [float("inf"), -1e-9, 1])
    found = json.loads(of(Chart("t", [line])).scripts[1])[0]["lines"][0]
    assert found["x"] == [0, 1234567, 2] and found["y"] == [0.123457, None, None] and found["low"] == [None, -1e-9, 1]
    assert number(2.0**60) == 1.15292e18 and number(True) == 1


def test_a_file_outside_the_folder_or_that_is_no_image_becomes_a_sentence(tmp_path: Path) -> None:
    (folder := tmp_path / "run").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "secret.png")
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    (folder / "text.png").write_text("no image")
    (folder / "folder.png").mkdir()
    for name in (
        "../secret.png",
        str(tmp_path / "secret.png"),
        "link.png",
        "text.png",
        "folder.png",
        "no.png",
        "a\0b",
        "",
    ):
        found = of(Figure(name, "it"), folder=folder)
        assert not found.all("img") and "cannot be read." in found.text, name
    Image.new("RGB", (4, 4)).save(folder / "right.png")
    assert (of(Figure("right.png", "it"), folder=folder).all("img")[0]["src"] or "").startswith(
        "data:image/png;base64,"
    )


def test_a_series_stays_light(tmp_path: Path) -> None:
    Image.effect_noise((700, 700), 90).save(tmp_path / "noise.png")
    frames = [Frame(f"step {i}", f"{i}.png") for i in range(100)]
    for frame in frames:
        (tmp_path / frame.file).hardlink_to(tmp_path / "noise.png")
    kept = inline.thinned(frames)
    assert len(kept) <= inline.FRAMES and kept[0] == frames[0] and kept[-1] == frames[-1]
    assert set(inline.thinned(frames[:99])[:-1]) <= set(kept)  # most stay as the series grows
    assert inline.thinned(frames[:24]) == frames[:24] and inline.thinned([]) == []
    page = html.write(Document("", [Slides("a", frames), Slides("b", frames)]), tmp_path)
    assert len(page) < 1.1 * inline.SERIES + 1_000_000
    found = Elements(page)
    assert all((a["src"] or "").startswith("data:image/jpeg") for a in found.all("img"))
    assert "of 100 are here" in found.text and found.all("div", "frame")[-1]["data-name"] == "step 99"


def test_facts_continue_the_line_above_and_short_ones_stand_side_by_side() -> None:
    facts = Table.facts([("loss", "0.4"), ("state", "running")])
    found = of(facts, Text("More", "heading"), facts, Table.facts([("a", "b"), ("", "c")]))
    assert [a["class"] for a in found.all("dl")] == ["tiles", "facts", "facts"]
    assert len(found.all("dt")) == 5 and len(found.all("dd")) == 6
    assert of(Table.facts([("a", "long " * 20)])).all("dl")[0]["class"] == "facts"


def test_an_empty_report_is_a_page() -> None:
    found = Elements(html.write(Document("", ()), Path()))
    assert found.all("title") and found.all("main") and "hidden" in found.all("nav")[0]
