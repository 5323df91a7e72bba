"""Exports on disk: every changed byte is seen, and whoever reads or kills at any moment finds a whole one."""

from __future__ import annotations

import os
import shutil
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from begun import begin_with, load_method

from unlabeled import files
from unlabeled.backbone.config import EncoderConfig
from unlabeled.backbone.folder import IMAGENET, export_encoder, read_weights
from unlabeled.backbone.weights import load_encoder, preprocessing_of
from unlabeled.data.masks.random import Config as RandomMask
from unlabeled.data.view.views import View
from unlabeled.errors import UserError
from unlabeled.pretrain.decoders.self import Config as SelfDecoder
from unlabeled.pretrain.methods.mae import MAE, Config
from unlabeled.serve.deploy import deploy
from unlabeled.train.state import split_heads

WEIGHTS = ("model.safetensors", "heads.safetensors")


def tiny(value: float | None = None) -> MAE:
    """A method; with a value all of its encoder's biases have it."""
    torch.manual_seed(0)
    encoder = EncoderConfig(model="vit_tiny_patch16_224", patch_size=4, width=16, depth=1, heads=2)
    decoder = SelfDecoder(width=8, depth=1, heads=2)
    made = Config(view=View(size=16, mask=RandomMask()), encoder=encoder, decoder=decoder).build()
    if value is not None:
        made.encoder.vit.norm.bias.data.fill_(value)
    return made


def write(folder: Path, value: float | None = None) -> None:
    encoder, heads = split_heads(tiny(value))
    export_encoder(folder, encoder, IMAGENET, "# card\n", heads)


def value_of(folder: Path) -> float:
    """The one that an export was written with; an error where it is not whole."""
    load_method(tiny(), folder)
    assert preprocessing_of(folder) is not None
    bias = load_encoder(folder).vit.norm.bias
    assert bias.eq(bias[0]).all()
    return bias[0].item()


@pytest.fixture
def export(tmp_path: Path) -> Path:
    write(tmp_path / "export", 1)
    return tmp_path / "export"


@pytest.mark.parametrize("name", WEIGHTS)
def test_every_flipped_byte_of_weights_is_refused(export: Path, name: str) -> None:
    good = (export / name).read_bytes()
    for at in {*range(0, len(good), 41), *range(200), len(good) - 1}:
        data = bytearray(good)
        data[at] ^= 1 << at % 8
        (export / name).write_bytes(data)
        with pytest.raises(UserError, match=rf"{name} cannot be read: {name} is not what was written.*Copy the whole"):
            read_weights(export / name)
    with pytest.raises(UserError, match="is not what was written"):
        load_method(tiny(), export)
    if name == "model.safetensors":
        for read in (load_encoder, lambda folder: deploy(folder, export.parent / "program", "torch")):
            with pytest.raises(UserError, match="is not what was written"):
                read(export)


@pytest.mark.parametrize("text", ["", "{}", "null", "5", "[]", '{"model.safetensors": 3}', "\xff"])
def test_a_manifest_that_is_none_is_refused(export: Path, text: str) -> None:
    (export / "MANIFEST.json").write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match=r"cannot be read: (no readable MANIFEST|model.safetensors is not what was)"):
        load_encoder(export)


def test_truncated_and_missing_files_are_refused(export: Path) -> None:
    os.truncate(export / "heads.safetensors", 100)
    with pytest.raises(UserError, match="is not what was written"):
        load_method(tiny(), export)
    (export / "heads.safetensors").unlink()
    assert "new: decoder (heads: there are none)" in begin_with(tiny(), export)
    (export / "heads.safetensors").mkdir()
    with pytest.raises(UserError, match=r"heads\.safetensors cannot be read"):
        load_method(tiny(), export)
    (export / "heads.safetensors").rmdir()
    (export / "MANIFEST.json").unlink()
    os.mkfifo(export / "heads.safetensors")  # of which nobody sees the end
    with pytest.raises(UserError, match=r"heads\.safetensors is no file"):
        load_method(tiny(), export)


def test_exports_from_before_there_were_manifests_load(export: Path) -> None:
    (export / "MANIFEST.json").unlink()
    assert value_of(export) == 1
    (export / "model.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(UserError, match="cannot be read: no safetensors: a header of"):
        load_encoder(export)


def test_a_tensor_twice_is_refused(export: Path) -> None:
    (export / "MANIFEST.json").unlink()
    data = (export / "model.safetensors").read_bytes()
    size = int.from_bytes(data[:8], "little")
    entry = b'{"norm.bias":{"dtype":"F32","shape":[3],"data_offsets":[0,12]},'
    header = entry + data[9 : 8 + size]
    (export / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + data[8 + size :])
    found = safetensors.torch.load_file(export / "model.safetensors")
    assert found["norm.bias"].eq(1).all(), "the library takes the last without a word"
    with pytest.raises(UserError, match=r"the key 'norm.bias' stands there 2 times"):
        load_encoder(export)


def test_a_changed_config_is_said(export: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert load_encoder(export) and not caplog.text
    text = (export / "config.json").read_text(encoding="utf-8")
    (export / "config.json").write_text(text.replace("0.485", "0.484"), encoding="utf-8")
    prepared = preprocessing_of(export)
    assert prepared is not None and prepared.mean[0] == 0.484
    assert "config.json is not as it was written: what it says now is taken" in caplog.text


def test_the_same_weights_are_the_same_bytes(export: Path, tmp_path: Path) -> None:
    write(tmp_path / "again", 1)
    names = sorted(path.name for path in export.iterdir())
    assert names == ["MANIFEST.json", "README.md", "config.json", *sorted(WEIGHTS)]
    assert all((export / name).read_bytes() == (tmp_path / "again" / name).read_bytes() for name in names)


def without_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on file systems and systems that cannot exchange two names."""
    monkeypatch.setattr(files, "_exchange", lambda *_: False)


@pytest.mark.parametrize("exchange", [True, False])
def test_a_reader_at_any_moment_finds_a_whole_one(
    export: Path, exchange: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not exchange:
        without_exchange(monkeypatch)
    done = threading.Semaphore(0)

    def read() -> list[float]:
        found: list[float] = []
        while len(set(found)) < 5:
            found.append(value_of(export))
            if exchange:
                timm.create_model(f"local-dir:{export}", pretrained=True)
            done.release()
        return found

    with ThreadPoolExecutor() as pool:
        reader, value = pool.submit(read), 1.0
        while not reader.done():
            value += 1
            write(export, value)
            done.acquire(timeout=1)
        found = reader.result()
    assert found == sorted(found)
    assert [path.name for path in export.parent.iterdir()] == ["export"]


def test_names_are_exchanged_in_one_step(export: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (export.parent / "one").mkdir()
    (export.parent / "two").mkdir()
    if not files._exchange(export.parent / "one", export.parent / "two"):
        pytest.skip("this file system cannot")
    monkeypatch.setattr(Path, "rename", None)
    write(export, 2)
    assert value_of(export) == 2


def killed_at(place: Callable[[Any], None], folder: Path) -> None:
    """Write in a process that is killed where `place` says."""
    child = os.fork()
    if child == 0:
        try:
            place(lambda *_: os.kill(os.getpid(), signal.SIGKILL))
            write(folder, 2)
        finally:
            os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL


def before(owner: Any, name: str, call: int) -> Callable[[Any], None]:
    """Strike instead of the so manieth call of a function."""

    def arm(strike: Callable[..., None]) -> None:
        function, calls = getattr(owner, name), [0]

        def counted(*arguments: Any) -> Any:
            calls[0] += 1
            return strike() if calls[0] == call else function(*arguments)

        setattr(owner, name, counted)

    return arm


PLACES = {
    "first file": before(os, "fsync", 1),
    "fourth file": before(os, "fsync", 4),
    "written": before(os, "fsync", 6),
    "first rename": before(Path, "rename", 1),
    "second rename": before(Path, "rename", 2),
    "renamed": before(os, "fsync", 7),
    "removal": before(shutil, "rmtree", 1),
}


@pytest.mark.parametrize(
    ("place", "exchange"),
    [(place, False) for place in PLACES] + [(place, True) for place in PLACES if "rename" not in place.split()],
)
def test_killed_at_any_stage_there_is_a_whole_one(
    export: Path, place: str, exchange: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not exchange:
        without_exchange(monkeypatch)
    killed_at(PLACES[place], export)
    assert value_of(export) == (2 if place in ("renamed", "removal") else 1)
    write(export, 3)
    assert value_of(export) == 3
    assert [path.name for path in export.parent.iterdir()] == ["export"], "leftovers are swept"


def test_a_link_to_another_disk_is_followed(export: Path, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    export.rename(tmp_path / "disk" / "it")
    export.symlink_to("disk/it")
    write(export, 2)
    assert export.is_symlink() and value_of(tmp_path / "disk" / "it") == 2
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["it"]


def test_what_cannot_be_written_leaves_the_old_one(export: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"cannot write .*: No space left on device"):
        write(export, 2)
    monkeypatch.undo()
    assert value_of(export) == 1 and [path.name for path in export.parent.iterdir()] == ["export"]
