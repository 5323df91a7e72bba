"""Reports for programs."""

from __future__ import annotations

import json
import re

from unlabeled.report.document import Document


def write(document: Document, compact: bool = False) -> str:
    """The data of a report, indented; `compact` writes every list of numbers on one line."""
    text = json.dumps(document.data, indent=2) + "\n"
    if not compact:
        return text
    return re.sub(r"\[\n[\d\s.,eE+-]+\]", lambda found: f"[{' '.join(found[0][1:-1].split())}]", text)
