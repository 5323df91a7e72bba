"""Checkpoints are whole or refused, whatever happened to their files; what is refused costs no other one."""

from __future__ import annotations

import json
import os
import shutil
import signal
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from support import on_processes

from unlabeled import manifest
from unlabeled.errors import UserError
from unlabeled.manifest import Damaged, describe, parse_tensors
from unlabeled.train.checkpoint import Checkpoints, load

YEAR = 365 * 24 * 3600


def tensors(step: int) -> dict[str, dict[str, torch.Tensor]]:
    return {"model": {"a": torch.full((3,), float(step)), "b": torch.arange(4)}, "optimizer": {}}


class Run:
    """Checkpoints of so many steps, and what they say."""

    def __init__(self, folder: Path, *steps: int, keep_last: int = 100, keep_every: int | None = None) -> None:
        self.said: list[str] = []
        self.checkpoints = Checkpoints(folder, keep_last, keep_every, self.said.append)
        for step in steps:
            self.save(step)

    def save(self, step: int) -> Path:
        return self.checkpoints.save(step, tensors(step), {"step": step})

    def newest(self) -> int | None:
        found = self.checkpoints.newest()
        return None if found is None else found.state["step"]

    def names(self) -> list[str]:
        return sorted(os.listdir(self.checkpoints.folder))


def flip(file: Path, at: int = -1, bit: int = 0) -> None:
    data = bytearray(file.read_bytes())
    data[at] ^= 1 << bit
    file.write_bytes(data)


def rewrite(folder: Path, name: str, data: bytes) -> None:
    """Change a file and what the manifest says of it."""
    (folder / name).write_bytes(data)
    said = json.loads((folder / "MANIFEST.json").read_text(encoding="utf-8"))
    (folder / "MANIFEST.json").write_text(json.dumps({**said, name: describe(data)}), encoding="utf-8")


def packed(header: str, data: bytes = bytes(8)) -> bytes:
    return struct.pack("<Q", len(header)) + header.encode() + data


def entry(name: str, start: int, end: int) -> str:
    return f'"{name}":{{"dtype":"U8","shape":[{end - start}],"data_offsets":[{start},{end}]}}'


# what may be done to the folder of a checkpoint, and a word of what is said then
DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a flipped byte": (lambda f: flip(f / "model.safetensors"), "model.safetensors is not what was written"),
    "a truncated file": (lambda f: os.truncate(f / "model.safetensors", 50), "model.safetensors is not what"),
    "a longer file": (lambda f: (f / "state.json").open("ab").write(b" "), "state.json is not what was written"),
    "an empty file": (lambda f: os.truncate(f / "state.json", 0), "state.json is not what was written"),
    "a missing file": (lambda f: (f / "optimizer.safetensors").unlink(), "missing files ['optimizer.safetensors']"),
    "an extra file": (lambda f: (f / "more").touch(), "unexpected files ['more']"),
    "no manifest": (lambda f: (f / "MANIFEST.json").unlink(), "no readable MANIFEST.json"),
    "an empty manifest": (lambda f: os.truncate(f / "MANIFEST.json", 0), "no readable MANIFEST.json"),
    "half a manifest": (lambda f: os.truncate(f / "MANIFEST.json", 90), "no readable MANIFEST.json"),
    "null": (lambda f: (f / "MANIFEST.json").write_text("null", encoding="utf-8"), "no readable MANIFEST.json"),
    "5": (lambda f: (f / "MANIFEST.json").write_text("5", encoding="utf-8"), "no readable MANIFEST.json"),
    "a list": (lambda f: (f / "MANIFEST.json").write_text("[]", encoding="utf-8"), "no readable MANIFEST.json"),
    "deep": (lambda f: (f / "MANIFEST.json").write_text("[" * 99999, encoding="utf-8"), "no readable MANIFEST.json"),
    "no sizes": (lambda f: rewrite(f, "MANIFEST.json", b'{"model.safetensors": 3}'), "missing files"),
    "a folder for a file": (lambda f: instead(f / "model.safetensors", Path.mkdir), "model.safetensors is not what"),
    "a folder for the manifest": (lambda f: instead(f / "MANIFEST.json", Path.mkdir), "MANIFEST.json is no file"),
    "a manifest without end": (lambda f: os.truncate(f / "MANIFEST.json", 1 << 40), "no readable MANIFEST.json"),
    "a manifest on a broken disk": (
        # of all files the one that answers with EIO
        lambda f: instead(f / "MANIFEST.json", lambda p: p.symlink_to("/proc/self/mem")),
        "Input/output error",
    ),
    "a pipe": (lambda f: instead(f / "MANIFEST.json", os.mkfifo), "MANIFEST.json is no file"),
    "a link to nothing": (lambda f: instead(f / "state.json", lambda p: p.symlink_to("gone")), "state.json cannot be"),
    "a link to itself": (lambda f: instead(f / "state.json", lambda p: p.symlink_to(p)), "state.json cannot be read"),
    "a file for the folder": (lambda f: instead(f, Path.touch), "no readable MANIFEST.json"),
    "a folder that is a link to nothing": (lambda f: instead(f, lambda p: p.symlink_to("gone")), "no readable MANIF"),
    "no step": (lambda f: rewrite(f, "state.json", b"{}"), "state.json has no step"),
    "a step below 0": (lambda f: rewrite(f, "state.json", b'{"step": -1}'), "state.json has no step"),
    "a step that is none": (lambda f: rewrite(f, "state.json", b'{"step": true}'), "state.json has no step"),
    "a step in words": (lambda f: rewrite(f, "state.json", b'{"step": "9"}'), "state.json has no step"),
    "another step": (lambda f: rewrite(f, "state.json", b'{"step": 8}'), "state.json is of step 8"),
    "a state that is a list": (lambda f: rewrite(f, "state.json", b"[9]"), "state.json has no step"),
    "a state that is no JSON": (lambda f: rewrite(f, "state.json", b"\xff"), "not JSON"),
    "a step twice": (lambda f: rewrite(f, "state.json", b'{"step": 9, "step": 9}'), "'step' stands there 2 times"),
    "a tensor twice": (
        lambda f: rewrite(f, "model.safetensors", packed(f"{{{entry('a', 0, 8)},{entry('a', 0, 8)}}}")),
        "'a' stands there 2 times",
    ),
}


def instead(path: Path, make: Callable[[Path], Any]) -> None:
    """Something else of the same name."""
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    make(path)


@pytest.mark.parametrize("kind", DAMAGE)
def test_any_damage_leads_to_the_one_before(kind: str, tmp_path: Path) -> None:
    damage, reason = DAMAGE[kind]
    run = Run(tmp_path, 3, 6, 9)
    damage(run.checkpoints.path(9))
    assert run.newest() == 6
    refused, fallback, aside = run.said
    assert f"{run.checkpoints.path(9)} is refused: " in refused and reason in refused
    assert fallback == f"falling back to {run.checkpoints.path(6)}"
    assert "set aside as refused-step-00000009" in aside
    assert run.names() == ["refused-step-00000009", "step-00000003", "step-00000006"]


def test_every_flipped_bit_of_a_manifest_is_seen(tmp_path: Path) -> None:
    folder = Run(tmp_path, 3).checkpoints.path(3)
    good = (folder / "MANIFEST.json").read_bytes()
    for at in range(len(good)):
        for bit in (7, at % 7)[: 1 + (at % 4 == 0)]:
            flip(folder / "MANIFEST.json", at, bit)
            try:
                load(folder)
            except Damaged:
                continue
            finally:
                flip(folder / "MANIFEST.json", at, bit)
            raise AssertionError(f"bit {bit} of byte {at} is not seen: {good[at]:c}")


def test_a_disk_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, opened = Run(tmp_path, 3, 6), Path.open

    def broken(path: Path, *how: Any, **named: Any) -> Any:
        if "step-00000006" in str(path) and path.name == "model.safetensors":
            raise OSError(5, "Input/output error")
        return opened(path, *how, **named)

    monkeypatch.setattr(Path, "open", broken)
    assert run.newest() == 3 and "Input/output error" in run.said[0]


@pytest.mark.parametrize("keep_last", [1, 2])
def test_damage_costs_no_good_one(keep_last: int, tmp_path: Path) -> None:
    """A run goes on from before the damaged ones, and is stopped before it comes to their steps."""
    Run(tmp_path, 3, 9, 10, 11, keep_last=100)
    for step in (9, 10, 11):
        flip(tmp_path / f"step-{step:08d}" / "model.safetensors")
    run = Run(tmp_path, keep_last=keep_last)
    assert run.newest() == 3
    assert run.save(4).is_dir() and run.checkpoints.steps() == [3, 4][-keep_last:]
    assert run.newest() == 4


def test_the_same_step_may_be_refused_twice(tmp_path: Path) -> None:
    run = Run(tmp_path, 3)
    for _ in range(2):
        flip(run.save(6) / "state.json")
        assert run.newest() == 3
    assert run.names() == ["refused-step-00000006", "refused-step-00000006-1", "step-00000003"]


def test_later_steps_are_never_counted(tmp_path: Path) -> None:
    """Such as could not be set aside."""
    Run(tmp_path, 20, 21)
    run = Run(tmp_path, 4, 5, keep_last=1)
    assert run.checkpoints.steps() == [5, 20, 21]
    run.save(21)
    assert run.names() == ["refused-step-00000021", "step-00000021"]


def test_where_none_is_good_all_stay(tmp_path: Path) -> None:
    run = Run(tmp_path, 3, 6)
    for step in (3, 6):
        flip(run.checkpoints.path(step) / "state.json")
    for _ in range(2):  # the second start must not take it for a new run
        with pytest.raises(UserError, match="none of the 2 checkpoints in "):
            run.newest()
    assert run.checkpoints.steps() == [3, 6]


def test_what_is_pruned(tmp_path: Path) -> None:
    run = Run(tmp_path, keep_last=2, keep_every=4)
    run.checkpoints.best = 3
    for step in range(1, 11):
        run.save(step)
    assert run.checkpoints.steps() == [3, 4, 8, 9, 10]
    assert run.names() == [f"step-{step:08d}" for step in (3, 4, 8, 9, 10)]


def test_what_cannot_be_removed_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path, 3, keep_last=1)

    def stuck(_: Path) -> None:
        raise OSError(16, "Device or resource busy")

    monkeypatch.setattr(shutil, "rmtree", stuck)
    assert run.save(6).is_dir()
    assert "cannot be removed: Device or resource busy" in run.said[0]
    assert run.checkpoints.steps() == [6], "what is half removed looks like no checkpoint"


def _killed_before(call: int, folder: Path) -> bool:
    """Save step 9 in a process that is killed before so manieth change of the disk; whether there were so many."""
    if (child := os.fork()) == 0:
        left = [call]

        def counted(function: Callable[..., Any], *arguments: Any, **more: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **more)

        try:
            for owner, name in ((os, "fsync"), (os, "mkdir"), (os, "rename"), (os, "unlink"), (os, "rmdir")):
                setattr(owner, name, partial(counted, getattr(owner, name)))
            Run(folder, keep_last=2).save(9)
            os._exit(0)
        finally:
            os._exit(1)
    status = os.waitpid(child, 0)[1]
    assert status in (0, signal.SIGKILL)
    return status != 0


def test_killed_at_any_stage_of_a_save(tmp_path: Path) -> None:
    """Before it is renamed the one before loads, after that the new one; what is left is swept by the next start."""
    found, call = [], 1
    while True:
        folder = tmp_path / str(call)
        Run(folder, 3, 6)
        killed = _killed_before(call, folder)
        run = Run(folder, keep_last=2)
        found.append(run.newest())
        assert not run.said, "nothing half written goes by the name of a checkpoint"
        assert run.names() in (
            ["step-00000003", "step-00000006"],
            ["step-00000003", "step-00000006", "step-00000009"],
            ["step-00000006", "step-00000009"],
        )
        if not killed:
            break
        call += 1
    assert found == [6] * found.count(6) + [9] * found.count(9) and found.count(6) >= 7 and found.count(9) >= 4


def test_the_newest_is_by_step_whatever_the_clock_said(tmp_path: Path) -> None:
    run = Run(tmp_path, 3, 6, 9, keep_last=3)
    now = run.checkpoints.path(9).stat().st_mtime
    for back, step in enumerate((3, 6, 9)):  # the clock was set back a year before every save
        for path in (run.checkpoints.path(step), *run.checkpoints.path(step).iterdir()):
            os.utime(path, (now - back * YEAR, now - back * YEAR))
    assert run.newest() == 9
    run.save(12)
    assert run.checkpoints.steps() == [6, 9, 12]


def test_names_that_are_no_steps(tmp_path: Path) -> None:
    run = Run(tmp_path, 3)
    for name in ("step-", "step-²", "step-7", "step-x", "step--0000001", "notes"):
        (tmp_path / name).mkdir()
    assert run.newest() == 3 and run.checkpoints.steps() == [3] and not run.said


def moved(path: Path, to: Path) -> None:
    """Put a folder elsewhere, and a link in its place."""
    shutil.move(path, to)
    path.symlink_to(to)


def test_a_checkpoint_may_be_a_link(tmp_path: Path) -> None:
    run, disk = Run(tmp_path / "run", 3, 6, 9, keep_last=2), tmp_path / "disk"
    moved(run.checkpoints.path(9), disk)
    assert run.newest() == 9 and not run.said
    run.save(12)
    run.save(15)
    assert run.names() == ["step-00000012", "step-00000015"]
    assert load(disk).state["step"] == 9, "the link is removed, not what it leads to"


def test_the_folder_of_checkpoints_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "checkpoints").symlink_to("disk")
    run = Run(tmp_path / "checkpoints", 3, 6, keep_last=1)
    assert run.newest() == 6 and sorted(os.listdir(tmp_path / "disk")) == ["step-00000006"]
    (tmp_path / "disk").rename(tmp_path / "unmounted")
    for what in (run.newest, partial(run.save, 7)):  # not taken for a run that has just begun
        with pytest.raises(UserError, match=r"checkpoints cannot be read: No such file"):
            what()


def test_links_to_nothing_among_old_ones_are_left(tmp_path: Path) -> None:
    run = Run(tmp_path, 6, keep_last=1)
    run.checkpoints.path(3).symlink_to("unmounted")
    (tmp_path / ".writing-step-00000001").symlink_to("unmounted")
    (tmp_path / ".removing-step-00000002").touch()
    assert run.newest() == 6 and not run.said
    run.checkpoints.path(9).symlink_to("unmounted")
    run.save(9)
    assert run.names() == ["refused-step-00000009", "step-00000003", "step-00000009"]


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(packed(f"{{{entry('a', 0, 4)},{entry('a', 4, 8)}}}"), id="a key twice"),
        pytest.param(packed(f'{{"__metadata__":{{"k":"1","k":"2"}},{entry("a", 0, 8)}}}'), id="metadata twice"),
        pytest.param(packed(f"{{{entry('a', 0, 6)},{entry('b', 4, 8)}}}"), id="overlap"),
        pytest.param(packed(f"{{{entry('a', 0, 8)},{entry('b', 0, 8)}}}"), id="the same bytes"),
        pytest.param(packed(f"{{{entry('a', 0, 3)},{entry('b', 4, 8)}}}"), id="a hole"),
        pytest.param(packed(f"{{{entry('a', 2, 8)}}}"), id="a hole before the first"),
        pytest.param(packed(f"{{{entry('a', 0, 6)}}}"), id="a hole after the last"),
        pytest.param(packed(f"{{{entry('a', 0, 9)}}}"), id="beyond the end"),
        pytest.param(packed(f"{{{entry('a', 8, 0)}}}"), id="backwards"),
        pytest.param(struct.pack("<Q", 1 << 63) + b"{}", id="a header of 2^63 bytes"),
        pytest.param(struct.pack("<Q", (1 << 64) - 1) + b"{}", id="a header of 2^64 bytes"),
        pytest.param(struct.pack("<Q", 3) + b"{}", id="a header cut short"),
        pytest.param(b"\1\0", id="no header"),
        pytest.param(b"", id="nothing"),
        pytest.param(packed("[]"), id="a list"),
        pytest.param(packed("[" * 99999), id="deep"),
        pytest.param(packed('{"a":{"dtype":"U9","shape":[8],"data_offsets":[0,8]}}'), id="no such type"),
        pytest.param(packed('{"a":{"dtype":"U8","shape":[9],"data_offsets":[0,8]}}'), id="another shape"),
        pytest.param(packed('{"a":{"dtype":"U8","shape":[4294967296,4294967296],"data_offsets":[0,8]}}'), id="2^64"),
        pytest.param(packed('{"a":{"dtype":"U8","shape":[0,9223372036854775808],"data_offsets":[0,0]}}', b""), id="0"),
        pytest.param(packed('{"a":{"dtype":"U8","shape":[-8],"data_offsets":[0,8]}}'), id="a negative shape"),
    ],
)
def test_a_safetensors_file_that_is_none(data: bytes) -> None:
    with pytest.raises(Damaged):
        parse_tensors(data)


def _one_cannot_read(folder: Path, rank: int) -> Any:
    """Process 1's disk fails on step 9; what both go on from, and who speaks and renames."""
    if rank == 1:
        read = manifest.read_plain
        manifest.read_plain = lambda file: read(Path("/nowhere") if "step-00000009" in str(file) else file)
    said: list[str] = []
    found = Checkpoints(folder, 2, None, said.append, writes=rank == 0).newest()
    assert found is not None
    return found.state["step"], said


def test_all_processes_go_on_from_the_same(tmp_path: Path) -> None:
    run = Run(tmp_path, 3, 6, 9)
    (one, said), (two, _) = on_processes(partial(_one_cannot_read, tmp_path))
    assert one == two == 6
    assert "step-00000009 is refused: by another process: no readable MANIFEST.json" in said[0]
    assert run.names() == ["refused-step-00000009", "step-00000003", "step-00000006"]


def _own_disk(folder: Path, rank: int) -> str:
    try:
        Checkpoints(folder / str(rank), 2, None, print, writes=rank == 0).newest()
    except UserError as error:
        return str(error)
    return "agreed"


def test_processes_without_a_shared_disk_are_told(tmp_path: Path) -> None:
    Run(tmp_path / "0", 3)
    assert all("must lie on a shared file system" in said for said in on_processes(partial(_own_disk, tmp_path)))
