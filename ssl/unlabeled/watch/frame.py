"""The frame of the server's own pages: the list of runs, and refusals."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

from unlabeled.report.html import ASSETS, ICON

OWN = Path(__file__).with_name("assets")
STYLE = "".join(
    (folder / file).read_text(encoding="utf-8") for folder, file in ((ASSETS, "page.css"), (OWN, "list.css"))
)
THEME = (ASSETS / "theme.js").read_text(encoding="utf-8")
SCRIPT = (OWN / "list.js").read_text(encoding="utf-8")


class Page(NamedTuple):
    """An answer: HTML, a word that changes with it, and its Content-Security-Policy."""

    body: bytes
    tag: str
    policy: str


def framed(title: str, body: str, program: str = "") -> Page:
    """A page of ours, looking as those of runs do; `body` is HTML. Its policy lets nothing run but `program`."""
    programs = [text for text in (THEME, program) if text]
    early, *late = (f"<script>{text}</script>\n" for text in programs)
    html = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)}</title>
<link rel="icon" href="data:image/svg+xml,{escape(ICON).replace("#", "%23")}">
<style>{STYLE}</style>
{early}</head>
<body>
{body}
{"".join(late)}</body>
</html>
"""
    return page(
        html,
        f"default-src 'none'; script-src {_allowed(programs)}; style-src {_allowed([STYLE])}; img-src data:; "
        "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    )


def page(html: str, policy: str) -> Page:
    """The answer of some HTML."""
    body = html.encode("utf-8", "backslashreplace")
    return Page(body, hashlib.sha256(body).hexdigest()[:32], policy)


def _allowed(texts: Sequence[str]) -> str:
    """The texts of elements as a policy names them, by their SHA-256."""
    digests = (hashlib.sha256(text.encode()).digest() for text in texts)
    return " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)
