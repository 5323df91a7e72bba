"""Links, pictures and anchors that lead nowhere: in the sources, and in the pages of a built site."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Mapping
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#{1,6} +(.+?) *$", re.MULTILINE)
BLOCK = re.compile(r"^(```|~~~).*?^\1|^(?: {4}|\t).*?$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`[^`\n]*`")
FILE = re.compile(r"(?<![\w/.*])((?:benchmarks|docs|recipes|ssl|tests|deploy)/[\w./-]*\w\.\w+)\b")


def anchors(text: str) -> set[str]:
    """The anchors of the headings of a page, as Python-Markdown makes them; those of equal headings end in `_N`."""
    found: list[str] = []
    for heading in HEADING.findall(BLOCK.sub("", text)):
        words = re.sub(r"[^\w\s-]", "", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)).strip().lower()
        anchor = re.sub(r"[-\s]+", "-", words)
        again = found.count(anchor)
        found += [anchor, *([f"{anchor}_{again}"] if again else [])]
    return set(found)


def broken(pages: Mapping[str, str], others: set[str]) -> list[str]:
    """What the links of pages (path -> text) miss, a line each; `others` are paths of pictures and the like."""
    known = {page: anchors(text) for page, text in pages.items()}
    return [
        f"{page}: {address}"
        for page, text in pages.items()
        for address in LINK.findall(CODE.sub("", BLOCK.sub("", text)))
        if not urlsplit(address).scheme and not _found(page, address, known, others)
    ]


def _found(page: str, address: str, known: Mapping[str, set[str]], others: set[str]) -> bool:
    parts = urlsplit(address)
    target = posixpath.join("/", posixpath.dirname(page), unquote(parts.path))
    path = posixpath.normpath(target).lstrip("/") if parts.path else page
    return path in others or (path in known and (not parts.fragment or parts.fragment in known[path]))


def missing_files(text: str, root: Path) -> list[str]:
    """Files of the repository that a text names and that do not exist; a name with NAME in it is a pattern."""
    named = FILE.findall(LINK.sub("", text))
    return [name for name in named if "NAME" not in name and not (root / name).exists()]


# (tag, attribute) of what a browser loads with a page
LOADED = {("script", "src"), ("img", "src"), ("iframe", "src"), ("source", "src"), ("link", "href")}


class Page(HTMLParser):
    """The anchors of a page, where its links lead, and what a browser loads with it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("id", "name") and value:
                self.anchors.add(value)
            elif (tag, name) in LOADED and value:
                self.loads.append(value)
            elif (tag, name) == ("a", "href") and value:
                self.links.append(value)


def broken_site(site: Path) -> Iterator[str]:
    """What the pages of a built site miss or load from elsewhere, a line each."""
    pages = {file.relative_to(site).as_posix(): Page(file.read_text(encoding="utf-8")) for file in site.rglob("*.html")}
    known = {name: page.anchors for name, page in pages.items()}
    others = {file.relative_to(site).as_posix() for file in site.rglob("*") if file.is_file()} - known.keys()
    for name, page in pages.items():
        yield from (f"{name} loads {address}" for address in page.loads if urlsplit(address).netloc)
        inside = [address for address in (*page.links, *page.loads) if not _outside(address)]
        yield from (f"{name}: {address}" for address in inside if not _found(name, address, known, others))


def _outside(address: str) -> bool:
    parts = urlsplit(address)
    return bool(parts.scheme or parts.netloc) or address in (".", "#")
