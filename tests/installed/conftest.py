"""What tests of several machines share."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from machines import STARTED, words
from support import TINY_PRETRAIN, launch


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe, and a run of two processes that nothing happened to."""
    home = tmp_path_factory.mktemp("cluster")
    (home / "tiny.yaml").write_text(TINY_PRETRAIN, encoding="utf-8")
    assert launch("pretrain", words(home, home / "quiet"), world=2) == [0, 0]
    return home


@pytest.fixture(autouse=True)
def _nothing_is_left_running() -> Iterator[None]:
    """End what a test that failed has started: torchrun ends its processes, which are in sessions of their own."""
    yield
    for number in (signal.SIGTERM, signal.SIGKILL):
        for process in (process for process in STARTED if process.poll() is None):
            os.killpg(process.pid, number)
        for process in STARTED:
            with suppress(subprocess.TimeoutExpired):
                process.wait(20)
    STARTED.clear()
