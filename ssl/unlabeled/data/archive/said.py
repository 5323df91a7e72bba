"""Warnings about data, given once."""

from __future__ import annotations

import logging
from functools import cache

log = logging.getLogger(__name__)


@cache
def say_once(text: str) -> None:
    """Log a warning once, however often it is met."""
    log.warning("%s", text)
