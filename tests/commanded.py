"""A command of `unlabeled` in a process of its own that need not import torch and timm again."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from support import CONTEXT


def command(words: Sequence[str], folder: Path, seconds: float = 240) -> tuple[int | None, str]:
    """Run `unlabeled WORDS` in a folder; (exit code, what it printed). The code is None where it hangs."""
    with tempfile.NamedTemporaryFile("r", errors="replace") as said:
        process = CONTEXT.Process(target=_command, args=(list(words), str(folder), said.name))
        process.start()
        process.join(seconds)
        process.kill()
        return process.exitcode if process.exitcode != -9 else None, said.read()


def _command(words: list[str], folder: str, said: str) -> None:
    import torch

    from unlabeled.__main__ import main

    file = os.open(said, os.O_WRONLY | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.chdir(folder)
    sys.argv = ["unlabeled", *words]
    torch.set_num_threads(1)
    sys.exit(main())
