"""Escape names of files and classes, which may hold anything, for terminals, logs, Markdown and diagrams.

JSON needs none of this: Python escapes everything outside ASCII.
"""

from __future__ import annotations

import logging
import re
import sys

KEPT = "\n\t"
# the beginning and end of a tag, and an entity; "< 20" is none
_TAG_BEGINS, _TAG_ENDS, _ENTITY = (
    re.compile(r"<(?=[A-Za-z/!?])"),
    re.compile(r"(?<=[\w\"'/\-?])>"),
    re.compile(r"&(?=#?\w+;)"),
)
_BEFORE_PUNCTUATION = re.compile(r"\\(?=[!-/:-@\[-`{-~])")


def plain(text: str) -> str:
    """Escape control characters, and those that turn the direction of writing, as `\\x1b`, `\\u202e`; lines stay."""
    return "".join(c if c.isprintable() or c in KEPT else _escape(c) for c in text)


def one_line(text: str) -> str:
    """Escape a name, as `plain`, and the ends of lines as `\\n`."""
    return text if text.isprintable() else "".join(c if c.isprintable() else _escape(c) for c in text)


def markdown(text: str) -> str:
    """Escape a name or a number for Markdown and its tables: no HTML, link, image, code or second cell."""
    text = _BEFORE_PUNCTUATION.sub(r"\\\\", one_line(text))
    text = _TAG_ENDS.sub("&gt;", _TAG_BEGINS.sub("&lt;", _ENTITY.sub("&amp;", text)))
    return text.replace("|", r"\|").replace("`", r"\`").replace("](", r"]\(").replace("][", r"]\[")


def code(text: str) -> str:
    """Format a name as Markdown code."""
    text = one_line(text)
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence} {text} {fence}" if "`" in text else f"`{text}`"


def spreadsheet(text: str) -> str:
    """Escape a name for a spreadsheet: one line, and no formula; numbers stay numbers."""
    text = one_line(text)
    return f"'{text}" if re.match(r"[=@]|[+\-](?!\d)", text) else text


def drawable(text: str) -> str:
    """Escape a name for matplotlib, where a `$` would begin mathematics."""
    return one_line(text).replace("$", r"\$")


def say(text: str) -> None:
    """Print one line on standard error."""
    print(one_line(text), file=sys.stderr, flush=True)


class _Escaped(logging.Formatter):
    """Formats log records in one line each, tracebacks in several."""

    def format(self, record: logging.LogRecord) -> str:
        return (plain if record.exc_info else one_line)(super().format(record))


def escape_logs() -> None:
    """Escape the records of loggers without a handler, which Python prints on standard error."""
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(_Escaped())


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
