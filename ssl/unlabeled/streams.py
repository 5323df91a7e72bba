"""Standard output and error that never fail: letters a terminal does not have, readers that have gone."""

from __future__ import annotations

import errno
import io
import sys
from typing import Any

GONE = (errno.EPIPE, errno.EIO)  # a pipe nobody reads any more, a terminal that was closed


class _Lasting(io.FileIO):
    """A stream on which what nobody can read any more is lost, and no reason to stop."""

    def write(self, data: Any) -> int:
        """The bytes written, or that would have been."""
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in GONE:
                raise
            return memoryview(data).nbytes


def make_lasting() -> None:
    """Let both streams show what they have no letters for as `\\xe9`, and outlive their readers, rather than fail."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
        # of this process itself: tests and notebooks have classes of their own
        if type(stream) is io.TextIOWrapper and type(getattr(stream.buffer, "raw", stream.buffer)) is io.FileIO:
            setattr(sys, name, _lasting(stream))


def _lasting(stream: io.TextIOWrapper) -> io.TextIOWrapper:
    stream.flush()
    raw: Any = _Lasting(stream.fileno(), "w", closefd=False)
    buffer = raw if stream.write_through else io.BufferedWriter(raw)
    return io.TextIOWrapper(
        buffer,
        stream.encoding,
        stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )
