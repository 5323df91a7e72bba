"""Images as data URIs, for a page that is one file."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from PIL import Image

from unlabeled.report.visuals import Frame

TYPES = {
    b"\x89PNG\r\n\x1a\n": "image/png",
    b"\xff\xd8\xff": "image/jpeg",
    b"GIF8": "image/gif",
    b"RIFF": "image/webp",
}
LARGE = 200_000  # bytes; a larger PNG becomes a JPEG if that is smaller
QUALITY = 88  # of that JPEG
FRAMES = 24  # at most of a series
SERIES = 5_000_000  # characters of all series of a page, about


def image(folder: Path, file: str) -> str | None:
    """The data URI of an image in a folder; None = missing, unreadable, outside the folder, or no image."""
    try:
        path = (folder / file).resolve()
        if not path.is_relative_to(folder.resolve()):
            return None
        found = path.stat()
        return _read(path, found.st_mtime_ns, found.st_size)
    except (OSError, ValueError, RuntimeError, SyntaxError, Image.DecompressionBombError):  # Pillow has many errors
        return None


def thinned(frames: Sequence[Frame]) -> list[Frame]:
    """At most `FRAMES` images of a series: every second, fourth, ... and the last one, so that most of them stay the
    same as the series grows."""
    step = 1 << max(0, math.ceil(math.log2(len(frames) / (FRAMES - 1)))) if len(frames) > FRAMES else 1
    return [frame for i, frame in enumerate(frames) if i % step == 0 or i == len(frames) - 1]


def series(folder: Path, frames: Sequence[Frame], limit: int) -> list[tuple[Frame, str | None]]:
    """The images of a series that fit into `limit` bytes, as data URIs."""
    shown = [(frame, image(folder, frame.file)) for frame in thinned(frames)]
    while len(shown) > 2 and sum(len(uri or "") for _, uri in shown) > limit:
        shown = [*shown[:-1:2], shown[-1]]
    return shown


@lru_cache(maxsize=256)
def _read(path: Path, modified: int, size: int) -> str | None:
    """Read an image once for each of its versions."""
    content = path.read_bytes()
    kind = next((kind for start, kind in TYPES.items() if content.startswith(start)), None)
    if kind is None:
        return None
    if kind == "image/png" and size > LARGE:
        content, kind = min((content, kind), (_jpeg(content), "image/jpeg"), key=lambda one: len(one[0]))
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _jpeg(content: bytes) -> bytes:
    """The same image as JPEG; one with transparency or of a palette as it is."""
    with Image.open(io.BytesIO(content)) as opened:
        if opened.mode not in ("L", "RGB"):
            return content
        file = io.BytesIO()
        opened.save(file, "JPEG", quality=QUALITY)
    return file.getvalue()
