"""Standard output and error that never fail: for characters outside the encoding, for readers that have gone."""

from __future__ import annotations

import errno
import io
import sys
from typing import Any

GONE = (errno.EPIPE, errno.EIO)  # a pipe without a reader, a closed terminal


class _Lasting(io.FileIO):
    """A stream that drops its output when the reader is gone."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in GONE:
                raise
            return memoryview(data).nbytes


def make_lasting() -> None:
    """Let both streams escape characters outside their encoding as `\\xe9`, and outlive their readers."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
        # the streams of a process; tests and notebooks have classes of their own
        if type(stream) is io.TextIOWrapper and type(getattr(stream.buffer, "raw", stream.buffer)) is io.FileIO:
            stream.flush()
            raw: Any = _Lasting(stream.fileno(), "w", closefd=False)
            buffer = raw if stream.write_through else io.BufferedWriter(raw)
            modes: dict[str, Any] = {"line_buffering": stream.line_buffering, "write_through": stream.write_through}
            setattr(sys, name, io.TextIOWrapper(buffer, stream.encoding, stream.errors, **modes))
