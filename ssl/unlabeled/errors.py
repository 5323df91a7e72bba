"""Errors that are the user's to mend: shown without a traceback."""

from __future__ import annotations


class UserError(ValueError):
    """Says what was found, what was expected and how to mend it."""


class Interrupted(UserError):
    """Neither recipe nor data are to blame, and nothing is lost: the same command goes on."""


class Stopped(KeyboardInterrupt):
    """A signal asks the program to end, and nothing is lost if it does. No code that handles errors may swallow it."""


def first_line(error: BaseException) -> str:
    """What an error of somebody else's code says, in one line; its kind where it says nothing."""
    return (str(error).splitlines() or [""])[0] or type(error).__name__


class BadSample(Exception):
    """One picture that cannot be used. It is skipped, counted and written to `bad_samples.jsonl`.

    Args:
        key: the picture's path or member name.
        reason: why, in a few words.
    """

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(key, reason)
        self.key, self.reason = key, reason

    def __str__(self) -> str:
        return f"{self.key}: {self.reason}"
