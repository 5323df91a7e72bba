"""The pages of docs/: their links, anchors and the files that they name. `make docs` builds the site."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from make import errors, recipes, results, written
from make.links import LINK, broken, broken_site, missing_files
from make.navigation import ordered
from make.recipes import Head

from unlabeled.command import summaries
from unlabeled.page.measures import BY_NAME

ROOT = Path(__file__).parents[1]
GENERATED = ("commands.md", "fields.md")  # whole pages made from the programs, which take seconds to import


def sources() -> dict[str, str]:
    return written.pages(ROOT) | recipes.pages(ROOT) | results.pages(ROOT) | errors.pages(ROOT)


def test_links_and_anchors_lead_somewhere() -> None:
    others = {f"pictures/{file.name}" for file in (ROOT / "docs" / "pictures").iterdir()}
    others |= {f"results/{file.name}" for file in (ROOT / "benchmarks" / "results").glob("*.png")}
    assert broken(sources() | dict.fromkeys(GENERATED, ""), others) == []


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_links_of_the_front_pages_lead_somewhere(name: str) -> None:
    addresses = LINK.findall((ROOT / name).read_text(encoding="utf-8"))
    inside = [address.partition("#")[0] for address in addresses if "//" not in address]
    assert [address for address in inside if not (ROOT / address).exists()] == []


def test_files_that_are_named_exist() -> None:
    pages = sources() | {name: (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "CONTRIBUTING.md")}
    assert {name: found for name, text in pages.items() if (found := missing_files(text, ROOT))} == {}


def test_every_page_is_in_the_navigation() -> None:
    pages = written.pages(ROOT)
    sections = ordered([*pages, "recipes/index.md", "results/index.md", "errors.md", *GENERATED])
    named = [page for found in sections.values() for page in found]
    assert len(named) == len(set(named)) and set(pages) <= set(named)


def test_commands_of_the_pages_exist() -> None:
    known = {*summaries(), "--version"}
    blocks = r"^```sh\n(.*?)^```|^((?: {4}\S.*\n)+)"
    for name, text in written.pages(ROOT).items():
        shown = "\n".join("\n".join(found) for found in re.findall(blocks, text, re.MULTILINE | re.DOTALL))
        named = re.findall(r"^ *unlabeled ([\w-]+)", shown, re.MULTILINE)
        assert set(named) <= known, name


def test_every_method_has_a_guide_whose_measures_are_known() -> None:
    guides = {file.stem: file for file in (ROOT / "docs" / "methods").glob("*.md")}
    methods = {file.stem for file in (ROOT / "ssl" / "unlabeled" / "pretrain" / "methods").glob("[a-z]*.py")}
    assert guides.keys() == methods | {"index"}
    for name in methods:
        text = guides[name].read_text(encoding="utf-8")
        assert all(f"<!-- {part} of {name} -->" in text for part in ("symptoms", "recipes", "fidelity"))
        healthy = text.partition("## Healthy values")[2].partition("\n## ")[0]
        rows = re.findall(r"^\| (`.*?) \|", healthy, re.MULTILINE)
        measures = {one for row in rows for one in re.findall(r"`(\w+)`", row)}
        assert measures and measures <= BY_NAME.keys(), name


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("[a](missing.md)", "missing.md"),
        ("[a](b.md#nowhere)", "b.md#nowhere"),
        ("[a](#nowhere)", "#nowhere"),
        ("![a](pictures/none.png)", "pictures/none.png"),
        ("[a](b.md#two-words)", None),
        ("[a](b.md#two-words_1)", None),
        ("[a](b.md#two-words_2)", "b.md#two-words_2"),
        ("[a](sub/c.md)", None),
        ("`[a](missing.md)`", None),
        ("```sh\n[a](missing.md)\n```", None),
        ("    [a](missing.md)", None),
        ("[a](https://example.org/x)", None),
        ("[a](pictures/there.png)", None),
    ],
)
def test_a_link_that_leads_nowhere_is_found(text: str, fault: str | None) -> None:
    pages = {"a.md": text, "b.md": "# B\n\n## Two, `words`\n\n## Two words\n", "sub/c.md": "[b](../b.md) [a](../a.md)"}
    assert broken(pages, {"pictures/there.png"}) == ([f"a.md: {fault}"] if fault else [])


def test_what_a_built_page_misses_or_loads_from_elsewhere_is_found(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(
        '<script src="https://example.org/x.js"></script><a href="https://example.org">fine</a><h2 id="two"></h2>'
        '<a href="b.html#one">fine</a><a href="/b.html">fine</a><a href="#two">fine</a><a href="#three">none</a>'
        '<img src="none.png"><a href="b.html#four">none</a><link href="//example.org/y.css">',
        encoding="utf-8",
    )
    (tmp_path / "b.html").write_text('<h1 id="one"></h1>', encoding="utf-8")
    assert list(broken_site(tmp_path)) == [
        "a.html loads https://example.org/x.js",
        "a.html loads //example.org/y.css",
        "a.html: #three",
        "a.html: b.html#four",
        "a.html: none.png",
    ]


def test_a_file_that_does_not_exist_is_found() -> None:
    text = "`tests/test_docs.py`, tests/test_none.py, [x](docs/none.md), recipes/NAME.yaml, ../benchmarks/x.md"
    assert missing_files(text, ROOT) == ["tests/test_none.py"]


def test_the_head_of_a_recipe_is_read() -> None:
    head = Head.of(
        "# Two\n# lines.\n#\n#   command   run it\n#   cost      one,\n#             two\n\n# later\nname: x\n"
    )
    assert head == Head("Two lines.", {"command": "run it", "cost": "one, two"})
