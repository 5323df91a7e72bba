"""Memory that runs out while an image is read is not the image's fault: what is learnt must not depend on it."""

from __future__ import annotations

import errno

from unlabeled.errors import Interrupted

# of C++, torch, Python, numpy, Pillow, libjpeg and libtiff
WORDS = (
    "bad_alloc",
    "can't allocate memory",
    "can't start new thread",
    "cannot allocate memory",
    "insufficient memory",
    "not enough memory",
    "out of memory",
    "unable to allocate",
)
ADVICE = (
    "Out of memory? Lower run.workers, or data.max_pixels, which bounds what one picture takes (8 to 40 bytes per "
    "pixel). The same command goes on."
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    said = str(error).lower()
    return any(word in said for word in WORDS)


def raise_if_out_of_memory(error: BaseException, key: str) -> None:
    """Raise Interrupted where `error` means that an image could not be read for want of memory."""
    if is_out_of_memory(error):
        raise Interrupted(
            f"no memory was left to read {key or 'a picture'}. {ADVICE} If it is always this picture, it is damaged: "
            "remove it."
        ) from error
