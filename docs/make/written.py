"""The pages that are written by hand."""

from __future__ import annotations

import re
from pathlib import Path

MEASURED = re.compile(r"\]\((?:\.\./)+benchmarks/(?:results/)?(\w[\w.-]*\.md)")


def pages(root: Path) -> dict[str, str]:
    """The pages of docs/. Links to files of benchmarks/ lead to their pages on the site."""
    docs = root / "docs"
    files = {file.relative_to(docs).as_posix(): file for file in sorted(docs.rglob("*.md"))}
    return {name: _on_site(name, file.read_text(encoding="utf-8")) for name, file in files.items()}


def _on_site(page: str, text: str) -> str:
    up = "../" * page.count("/")
    return MEASURED.sub(lambda found: f"]({up}results/{found[1]}", text)
