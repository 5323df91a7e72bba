"""Reports as one HTML file that needs nothing else: styles, programs, images and numbers are in it, and it asks no host
for anything.

Text, tables, images and galleries are HTML; the programs in `assets/` draw charts and maps from the numbers, which are
JSON in the page, as they scroll into view.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from functools import lru_cache
from html import escape
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from unlabeled.report.document import Document, Part, Text
from unlabeled.report.markup import Markup, said

ASSETS = Path(__file__).with_name("assets")
EARLY = ("theme.js",)  # before the page is shown
PROGRAMS = ("echarts/echarts.common.min.js", "state.js", "charts.js", "pictures.js", "map.js", "live.js")
ICON = (
    "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'><g fill='#2563c9'><circle cx='4' cy='11' r='3'/>"
    "<circle cx='11' cy='12' r='2.4'/><circle cx='9.5' cy='4.5' r='3.6'/></g></svg>"
)


class Section(NamedTuple):
    """A heading ('' = before the first one), and the parts below it."""

    title: str
    name: str  # in the address
    parts: list[Part]


def write(document: Document, folder: Path, refresh: float | None = None, home: str | None = None) -> str:
    """A whole page.

    Args:
        document: the report.
        folder: that its files are relative to; those that cannot be read become a sentence.
        refresh: seconds after which the page reads itself anew; None = never.
        home: address of a page that lists this one and others.
    """
    sections, markup = list(_sections(document)), Markup(document, folder)
    body = "".join(_section(section, markup) for section in sections)
    links = "".join(f'<li><a href="#{one.name}">{said(one.title)}</a></li>' for one in sections if one.title)
    early, late = (_program(files) for files in (EARLY, PROGRAMS))
    back = f'<a class="home" href="{escape(home)}">all runs</a>' if home is not None else ""
    timer = f' data-refresh="{refresh:g}"' if refresh is not None else ""
    title = said(document.title) or "unlabeled"
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="generator" content="unlabeled">
<meta http-equiv="Content-Security-Policy" content="{_policy(early, late, refresh is not None)}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<link rel="icon" href="data:image/svg+xml,{escape(ICON).replace("#", "%23")}">
<style>{_asset("page.css")}</style>
<script>{early}</script>
</head>
<body{timer}>
<a class="skip" href="#main">Skip to the content</a>
<header class="top"><div class="name">{back}<h1>{title}</h1></div>
<button type="button" id="theme" aria-label="Light or dark" title="Light or dark">◐</button></header>
<div class="page">
<nav aria-label="Sections"{"" if links else " hidden"}><ul>{links}</ul></nav>
<main id="main" tabindex="-1">
<noscript><p class="missing">Charts and maps need JavaScript.</p></noscript>
{body}<script type="application/json" id="data">{_island(markup.numbers)}</script>
</main>
</div>
<dialog id="large" aria-label="Enlarged image"></dialog>
<script>{late}</script>
</body>
</html>
"""


def _sections(document: Document) -> Iterator[Section]:
    section, names = Section("", "top", []), {"top", "main", "data", "large", "theme"}
    for part in document.parts:
        if isinstance(part, Text) and part.kind == "heading":
            yield section
            base = re.sub(r"[^a-z0-9]+", "-", part.text.lower()).strip("-") or "section"
            name = next(name for name in (base, *(f"{base}-{i}" for i in range(2, 10_000))) if name not in names)
            names.add(name)
            section = Section(part.text, name, [])
        else:
            section.parts.append(part)
    yield section


def _section(section: Section, markup: Markup) -> str:
    """Parts of a kind that follow each other stand side by side."""
    if not (section.title or section.parts):
        return ""
    groups = [(kind, list(parts)) for kind, parts in groupby(section.parts, Markup.group)]
    body = "".join(markup.together(kind, parts, not section.title) for kind, parts in groups)
    if not section.title:
        return f'<section class="lead" id="top" aria-label="Overview">{body}</section>\n'
    title = said(section.title)
    body = body.replace(f"<h3>{title}</h3>", "", 1)  # a part that has the section's name does not repeat it
    return f'<section id="{section.name}"><h2>{title}</h2>{body}</section>\n'


def _island(numbers: list[object]) -> str:
    """JSON that cannot end the element it is in."""
    text = json.dumps(numbers, separators=(",", ":"), allow_nan=False)
    return text.replace("&", r"\u0026").replace("<", r"\u003c").replace(">", r"\u003e")


def _policy(early: str, late: str, live: bool) -> str:
    """A Content Security Policy: no other program than ours runs, and nothing is loaded from anywhere."""
    programs = " ".join(f"'sha256-{_hash(text)}'" for text in (early, late))
    own = "'self'" if live else "'none'"
    return (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {programs}; connect-src {own}; "
        "base-uri 'none'; form-action 'none'"
    )


@lru_cache(maxsize=4)
def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")


@lru_cache(maxsize=4)
def _program(files: tuple[str, ...]) -> str:
    text = "\n".join(_asset(file) for file in files)
    assert "</script" not in text.lower() and "<!--" not in text, "a program would end its element"
    return text


@lru_cache(maxsize=16)
def _asset(file: str) -> str:
    return (ASSETS / file).read_text(encoding="utf-8")
