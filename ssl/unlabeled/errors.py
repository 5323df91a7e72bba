"""Errors that users can mend, shown without a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """An error that says what was found, what was expected and how to mend it."""


class Interrupted(UserError):
    """An error outside of recipe and data; nothing is lost, and the same command resumes."""


class Stopped(KeyboardInterrupt):
    """A signal ends the program; nothing is lost. No `except Exception` may swallow it."""


def first_line(error: BaseException) -> str:
    """The first line of the message of an error; the name of its class where it has none."""
    return (str(error).splitlines() or [""])[0] or type(error).__name__


class BadSample(Exception):
    """An image, by its path or member name, that cannot be used: skipped, counted, written to `bad_samples.jsonl`."""

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(key, reason)
        self.key, self.reason = key, reason

    def __str__(self) -> str:
        return f"{self.key}: {self.reason}"


def suggest(word: object, names: Iterable[str]) -> str:
    """A sentence that offers the nearest of `names`; empty when none is near."""
    near = difflib.get_close_matches(str(word), list(names), n=1)
    return f". Did you mean {near[0]!r}?" if near else ""
