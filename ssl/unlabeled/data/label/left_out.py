"""What of the files of a source nobody will see."""

from __future__ import annotations

from collections import Counter

import numpy as np

from unlabeled.data.label.part import Part
from unlabeled.data.source import Source
from unlabeled.data.sources.files import Pictures
from unlabeled.data.sources.mixture import MixtureSource


def skipped_in(source: Source) -> Counter[str]:
    """How many files beside the pictures of a source are not read, by ending; see `unlabeled.data.archive.skipped`."""
    if isinstance(source, Part):
        return skipped_in(source.source)
    if isinstance(source, MixtureSource):
        return sum((skipped_in(part) for part in source.sources), Counter())
    return source.skipped if isinstance(source, Pictures) else Counter()


def unlabelled_in(source: Source) -> int:
    """How many pictures a part of a source cannot have had for want of a label."""
    return int((np.asarray(source.source.labels) < 0).sum()) if isinstance(source, Part) else 0
