"""Names of files and classes are written by strangers: what they become on terminals, in logs, Markdown and diagrams.

JSON needs none of this: Python's escapes all that is not ASCII.
"""

from __future__ import annotations

import logging
import re
import sys

KEPT = "\n\t"
# what begins a tag, ends one, or is an entity; numbers as in "< 20" are none
_TAG_BEGINS, _TAG_ENDS, _ENTITY = (
    re.compile(r"<(?=[A-Za-z/!?])"),
    re.compile(r"(?<=[\w\"'/\-?])>"),
    re.compile(r"&(?=#?\w+;)"),
)
_BEFORE_PUNCTUATION = re.compile(r"\\(?=[!-/:-@\[-`{-~])")


def plain(text: str) -> str:
    """A text of several lines without what a terminal obeys instead of showing it: escape sequences, other control
    characters, and those that turn the direction of writing. They become `\\x1b`, `\\u202e`."""
    return "".join(c if c.isprintable() or c in KEPT else _escape(c) for c in text)


def one_line(text: str) -> str:
    """The same of a name, which has no lines: `\\n` for their ends."""
    return text if text.isprintable() else "".join(c if c.isprintable() else _escape(c) for c in text)


def markdown(text: str) -> str:
    """A name or a number in Markdown, also in a table's cell: no HTML, no link or picture, no code, no other cell."""
    text = _BEFORE_PUNCTUATION.sub(r"\\\\", one_line(text))
    text = _TAG_ENDS.sub("&gt;", _TAG_BEGINS.sub("&lt;", _ENTITY.sub("&amp;", text)))
    return text.replace("|", r"\|").replace("`", r"\`").replace("](", r"]\(").replace("][", r"]\[")


def code(text: str) -> str:
    """A name as Markdown's code."""
    text = one_line(text)
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence} {text} {fence}" if "`" in text else f"`{text}`"


def spreadsheet(text: str) -> str:
    """A name in a table that people open: one line, and no formula; numbers stay numbers."""
    text = one_line(text)
    return f"'{text}" if re.match(r"[=@]|[+\-](?!\d)", text) else text


def drawable(text: str) -> str:
    """A name as matplotlib draws it, for which a `$` would begin mathematics."""
    return one_line(text).replace("$", r"\$")


def say(text: str) -> None:
    """Print one line for a person, on standard error."""
    print(one_line(text), file=sys.stderr, flush=True)


class _Escaped(logging.Formatter):
    """Of log lines, all in one line; what comes with a traceback in several."""

    def format(self, record: logging.LogRecord) -> str:
        return (plain if record.exc_info else one_line)(super().format(record))


def escape_logs() -> None:
    """Escape what is logged where nobody said how: Python prints warnings and errors on standard error then."""
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(_Escaped())


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
