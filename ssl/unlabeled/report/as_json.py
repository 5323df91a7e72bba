"""Reports for programs."""

from __future__ import annotations

import json

from unlabeled.report.document import Document


def write(document: Document) -> str:
    """The data of a report."""
    return json.dumps(document.data, indent=2) + "\n"
