"""Reports for programs."""

from __future__ import annotations

import json
import re

from unlabeled.report.document import Document


def write(document: Document) -> str:
    """The data of a report, indented, with every list of numbers on one line."""
    text = json.dumps(document.data, indent=2) + "\n"
    return re.sub(r"\[\n[\d\s.,eE+-]+\]", lambda found: f"[{' '.join(found[0][1:-1].split())}]", text)
