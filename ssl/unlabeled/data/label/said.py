"""What a source found and people should know, said once."""

from __future__ import annotations

import logging
from functools import cache

log = logging.getLogger(__name__)


@cache
def say_once(text: str) -> None:
    """Warn of something, however often it is met."""
    log.warning("%s", text)
