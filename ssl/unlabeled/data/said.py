"""What a source found and people should know, said once."""

from __future__ import annotations

import logging
from functools import cache

from unlabeled.text import one_line

log = logging.getLogger(__name__)


@cache
def say_once(text: str) -> None:
    """Warn of something, however often it is met."""
    log.warning("%s", one_line(text))
