"""Escape names of files and classes, which may hold anything, for terminals, logs, Markdown and diagrams.

JSON needs none of this: Python escapes everything outside ASCII.
"""

from __future__ import annotations

import logging
import re
import sys


def plain(text: str) -> str:
    """Escape control characters, and those that turn the direction of writing, as `\\x1b`, `\\u202e`; lines stay."""
    return "".join(c if c.isprintable() or c in "\n\t" else one_line(c) for c in text)


def one_line(text: str) -> str:
    """Escape a name, as `plain`, and the ends of lines as `\\n`."""
    escaped = (c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
    return text if text.isprintable() else "".join(escaped)


def markdown(text: str) -> str:
    """Escape a name or a number for Markdown and its tables: no HTML, link, image, code or second cell."""
    text = re.sub(r"\\(?=[!-/:-@\[-`{-~])", r"\\\\", one_line(text))
    # an entity, and the beginning and end of a tag; "< 20" is none
    text = re.sub(r"<(?=[A-Za-z/!?])", "&lt;", re.sub(r"&(?=#?\w+;)", "&amp;", text))
    text = re.sub(r"(?<=[\w\"'/\-?])>", "&gt;", text)
    return text.replace("|", r"\|").replace("`", r"\`").replace("](", r"]\(").replace("][", r"]\[")


def code(text: str) -> str:
    """Format a name as Markdown code."""
    text = one_line(text)
    fence = _fence(text, 1)
    return f"{fence} {text} {fence}" if "`" in text else f"`{text}`"


def code_block(text: str) -> str:
    """Format lines as a Markdown block of code."""
    fence = _fence(text, 3)
    return f"{fence}\n{plain(text).strip(chr(10))}\n{fence}"


def _fence(text: str, least: int) -> str:
    """Backticks that enclose a text: more than it has in a row."""
    return "`" * max(least, 1 + max((len(run) for run in re.findall("`+", text)), default=0))


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
