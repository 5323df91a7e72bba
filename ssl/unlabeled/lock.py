"""One writer per folder."""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import IO

from unlabeled.errors import UserError


def claim(folder: Path, field: str) -> IO[str]:
    """Make a folder and lock it for as long as this process lives or the result is open.

    Args:
        folder: to write to.
        field: of the recipe that names it.

    Raises:
        UserError: it cannot be written to, or another process has it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / ".lock", "w", encoding="utf-8")  # noqa: SIM115 - held until the process ends
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}. Choose another {field}.") from error
    try:
        # lockf, not flock: loader workers must not inherit it and hold it for seconds after a killed run
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        raise UserError(
            f"another run is writing to {folder}. Wait for it, stop it, or choose another {field}."
        ) from error
    return lock
