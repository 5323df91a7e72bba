"""Memory that runs out in a loader ends the run with advice; no picture is skipped for it."""

from __future__ import annotations

import errno
import io
import re
import resource
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from injected import at
from PIL import Image
from support import TINY_PRETRAIN, checkpoint_bytes, launch
from torch.utils.data import Dataset

from unlabeled.data.batch.loader import make_loader
from unlabeled.data.batch.workers import Batches
from unlabeled.data.decoding import decode
from unlabeled.errors import Interrupted

STOPPED, SIDE = 75, 6000
ROOM = 200 << 20  # bytes: enough for a thread and anything but the large picture


def leave_little_room() -> None:
    """From now on this process gets so much more memory, and then errors."""
    used = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, resource.RLIM_INFINITY))


def test_a_picture_for_which_there_is_no_memory_is_not_skipped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "pictures").mkdir()
    for i in range(3):
        Image.fromarray(np.full((20, 20, 3), 40 * i, np.uint8)).save(tmp_path / "pictures" / f"{i}.png")
    Image.new("RGB", (SIDE, SIDE), "red").save(tmp_path / "pictures" / "large.png", compress_level=1)
    (tmp_path / "tiny.yaml").write_text(TINY_PRETRAIN + "seed: 1\n", encoding="utf-8")
    data = f"data={{name: files, path: {tmp_path}/pictures, train: '', val: null}}"
    few = ["train.epochs=1", "train.batch_size=1", "run.workers=1", "optim.warmup_epochs=0"]
    arguments = [str(tmp_path / "tiny.yaml"), data, f"run.output={tmp_path}/run", *few]
    # once a worker has the thread that sends, for which there must be memory too
    short = partial(at, "unlabeled.data.batch.loader:ViewDataset.__getitem__", leave_little_room, 2, in_children=True)
    assert launch("pretrain", arguments, hook=short) == [STOPPED]
    said = capsys.readouterr().err
    assert re.search(r"no memory was left to read \S*large.png\. .*run.workers.*data.max_pixels", said)
    assert "Traceback" not in said and not (tmp_path / "run" / "bad_samples.jsonl").exists()
    assert launch("pretrain", arguments) == [0]
    assert launch("pretrain", [*arguments, f"run.output={tmp_path}/whole"]) == [0]
    assert checkpoint_bytes(tmp_path / "run", 4) == checkpoint_bytes(tmp_path / "whole", 4)


class Fails(Dataset[Any]):
    """Raises what it is given."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __getitem__(self, i: int) -> Any:
        raise self.error


WITHOUT_MEMORY = [
    MemoryError(),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory"),
    RuntimeError("std::bad_alloc"),
    RuntimeError("decode_jpeg, decode_jpeg.cpp:80, Insufficient memory (case 4)"),
]


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("error", WITHOUT_MEMORY, ids=lambda error: repr(error)[:30])
def test_whoever_runs_out_of_memory_a_run_is_stopped_with_advice(error: Exception, workers: int) -> None:
    loader = make_loader(
        Fails(error), [[0]], workers=workers, device=torch.device("cpu"), timeout=20, collate=lambda samples: samples
    )
    with Batches(loader) as batches, pytest.raises(Interrupted, match=r"run\.workers.*data\.max_pixels"):
        next(batches)


@pytest.mark.parametrize("error", WITHOUT_MEMORY, ids=lambda error: repr(error)[:30])
@pytest.mark.parametrize("part", ["_pixels", "_jpeg", "_upright"])
def test_decoding_never_blames_the_picture(error: Exception, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise error

    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "JPEG" if part == "_jpeg" else "PNG")
    monkeypatch.setattr(decode, part, fail)
    with pytest.raises(Interrupted, match="no memory was left to read a picture of mine"):
        decode.decode(file.getvalue(), 100, "a picture of mine")
