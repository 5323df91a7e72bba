"""Prepared pictures are the source's, smaller; whatever interrupts the work, the same command goes on."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support import TINY_PRETRAIN, checkpoint_bytes, launch

from unlabeled.__main__ import main
from unlabeled.data.archive import listing
from unlabeled.data.archive import prepare as module
from unlabeled.data.archive.index import Index
from unlabeled.data.archive.prepare import Packed, prepare, shrink
from unlabeled.data.archive.prepared import ASKED, index_file
from unlabeled.data.archive.storing import Settings
from unlabeled.data.decoding.decode import decode
from unlabeled.data.opened import Opened
from unlabeled.data.source import MAX_PIXELS, Source
from unlabeled.data.sources.files import Config as Files
from unlabeled.errors import BadSample, UserError
from unlabeled.sharing.shards import Sharing

COUNT = 11
SIZES = [(40 + 7 * number, 90 - 5 * number) for number in range(COUNT)]
SMALL = Settings(short_side=32, shard=3)
BROKEN = {4: b"no picture", 7: b""}


@pytest.fixture
def pictures(tmp_path: Path) -> Files:
    """A folder of two classes; two files are broken."""
    for number, size in enumerate(SIZES):
        file = tmp_path / "pictures" / "ab"[number % 2] / f"{number:02d}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(BROKEN.get(number, jpeg(number, *size)))
    return Files(path=str(tmp_path / "pictures"), max_bad_fraction=0.5)


def jpeg(number: int, width: int, height: int) -> bytes:
    small = np.random.default_rng(number).integers(256, size=(4, 5, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(small).resize((width, height)).save(buffer, "JPEG")
    return buffer.getvalue()


def done(data: Files, folder: Path, settings: Settings = SMALL, **shared: Any) -> Source:
    """All of it, opened as a recipe does."""
    folder.mkdir(exist_ok=True)
    list(prepare(data, folder, settings, Sharing(**shared)))
    return Opened(data.model_copy(update={"cache": str(folder)})).train


def images(source: Source) -> list[torch.Tensor | str]:
    return [image(source, i) for i in range(len(source))]


def image(source: Source, i: int) -> torch.Tensor | str:
    """A picture, or why there is none."""
    try:
        return source.image(i)
    except BadSample as error:
        return error.reason


def tars(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.suffix in (".tar", ".jsonl")}


def test_what_is_prepared_is_the_source_made_smaller(pictures: Files, tmp_path: Path) -> None:
    source, made = Opened(pictures).original("train"), done(pictures, tmp_path / "cache")
    assert made.classes == source.classes == ("a", "b") and np.array_equal(made.labels, source.labels)
    assert [made.key(i) for i in range(COUNT)] == [source.key(i) for i in range(COUNT)]
    bad = 0
    for small, whole in zip(images(made), images(source), strict=True):
        if isinstance(whole, str):
            assert small == whole
            bad += 1
        else:
            assert isinstance(small, torch.Tensor) and torch.equal(small, shrink(whole, 32))
            assert min(small.shape[1:]) == min(32, *whole.shape[1:])
    assert bad == len(BROKEN)


def test_shrinking_keeps_the_aspect_and_never_enlarges() -> None:
    picture = torch.zeros(3, 100, 333, dtype=torch.uint8)
    assert shrink(picture, 50).shape == (3, 50, 166) and shrink(picture, 100) is picture


def test_jpegs_are_smaller_and_close(pictures: Files, tmp_path: Path) -> None:
    raw = done(pictures, tmp_path / "raw")
    lossy = done(pictures, tmp_path / "jpeg", SMALL.model_copy(update={"format": "jpeg"}))
    for exact, close in zip(images(raw), images(lossy), strict=True):
        if isinstance(exact, torch.Tensor) and isinstance(close, torch.Tensor):
            assert exact.shape == close.shape and (exact.float() - close.float()).abs().mean() < 4
    assert raw.fingerprint() != lossy.fingerprint() != Opened(pictures).original("train").fingerprint()


def test_workers_do_not_change_it(pictures: Files, tmp_path: Path) -> None:
    done(pictures, tmp_path / "one")
    done(pictures, tmp_path / "two", workers=2)
    assert tars(tmp_path / "one") == tars(tmp_path / "two")


def killed_while_packing() -> None:
    """Kill the second process when it has made a tar, and before its note."""
    packing = module.Preparation._check

    def check(self: module.Preparation, *arguments: Any) -> None:
        packing(self, *arguments)
        if os.environ.get("RANK") == "1":
            os.kill(os.getpid(), signal.SIGKILL)

    module.Preparation._check = check  # type: ignore[method-assign]


def test_any_number_of_processes_makes_the_same(
    pictures: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fields = {"train": "a", "val": "b", "max_bad_fraction": 0.5}
    list(prepare(Files(path=pictures.path, **fields), tmp_path / "one", SMALL, Sharing()))  # type: ignore[arg-type]
    recipe, shapes = tmp_path / "tiny.yaml", "{name: shapes, train_size: 42, val_size: 20, size: 16}"
    data = json.dumps({"name": "files", "path": pictures.path, **fields})
    recipe.write_text(TINY_PRETRAIN.replace(shapes, data), encoding="utf-8")
    command = [str(recipe), f"data.cache={tmp_path / 'several'}", "--shard=3", "--short-side=32", "--workers=1"]
    assert launch("prepare", command, world=2, hook=killed_while_packing) == [69, -9]
    assert len(list((tmp_path / "several").glob("train-*.tar"))) == 1
    assert launch("prepare", command, world=3) == [0, 0, 0]
    assert tars(tmp_path / "several") == tars(tmp_path / "one") and len(tars(tmp_path / "one")) == 6
    for split in ("train", "val"):
        one, several = (listing.read(index_file(tmp_path / name, split), ASKED) for name in ("one", "several"))
        assert one is not None and several is not None and several.fingerprint == one.fingerprint
        assert several.files == one.files
        for name in Index.COLUMNS:
            assert np.array_equal(getattr(several.pictures, name), getattr(one.pictures, name))
    assert capsys.readouterr().err.count("train with it") == 1, "one process speaks"


def test_an_engine_that_is_not_installed_is_named(
    pictures: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"not installed. Run `pip install ray`"):
        done(pictures, tmp_path / "cache", SMALL, engine="ray")


def test_what_was_interrupted_goes_on(pictures: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done(pictures, tmp_path / "whole")
    cut = tmp_path / "cut"
    cut.mkdir()
    packing = prepare(pictures, cut, SMALL, Sharing())
    assert [next(packing).pictures for _ in range(3)] == [0, 3, 6]
    packing.close()
    with pytest.raises(UserError, match=r"lacks train\.safetensors"):
        _ = Opened(pictures.model_copy(update={"cache": str(cut)})).train
    (cut / "train-00001.tar").write_bytes(b"cut short")
    packed: list[int] = []
    pack = module.Preparation.pack
    monkeypatch.setattr(module.Preparation, "pack", lambda self, n: packed.append(n) or pack(self, n))
    counts = [found.pictures for found in prepare(pictures, cut, SMALL, Sharing())]
    assert packed == [1, 2, 3] and counts == [3, 6, 9, 11] and tars(cut) == tars(tmp_path / "whole")
    assert list(prepare(pictures, cut, SMALL, Sharing())) == [Packed("train", COUNT, COUNT, [])]


@pytest.mark.parametrize("finished", [True, False])
def test_tars_that_are_damaged_or_lost_are_named_and_made_again(
    pictures: Files, tmp_path: Path, finished: bool, caplog: pytest.LogCaptureFixture
) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    if finished:
        done(pictures, cache)
    else:
        packing = prepare(pictures, cache, SMALL, Sharing())
        assert [next(packing).pictures for _ in range(5)][-1] == COUNT
        packing.close()
    good = tars(cache)
    data = bytearray(good["train-00001.tar"])
    data[1500] ^= 1  # a pixel
    (cache / "train-00001.tar").write_bytes(data)
    (cache / "train-00002.tar").write_bytes(b"cut short")
    (cache / "train-00003.tar").unlink()
    done(pictures, cache)
    assert {name: tars(cache)[name] for name in good} == good and not list(cache.glob("train-*.json"))
    assert caplog.text.count("is not what was written (size or SHA-256 differ): it is made again") == 2
    assert list(prepare(pictures, cache, SMALL, Sharing())) == [Packed("train", COUNT, COUNT, [])]


def test_a_tar_that_becomes_another_is_refused(
    pictures: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done(pictures, tmp_path / "cache")
    (tmp_path / "cache" / "train-00001.tar").unlink()
    monkeypatch.setattr(module, "shrink", lambda picture, _: picture[:, :16, :16])
    with pytest.raises(UserError, match=r"train-00001\.tar is not what it was, though it was made again"):
        done(pictures, tmp_path / "cache")


def test_what_was_written_is_read_back(pictures: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def rot(_: int) -> None:
        file = next((tmp_path / "cache").glob("*.writing"))
        data = bytearray(file.read_bytes())
        data[1500] ^= 1
        file.write_bytes(data)

    monkeypatch.setattr(module, "_to_disk", rot)
    with pytest.raises(UserError, match="does not hold what was written to it"):
        done(pictures, tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*.tar"))


def test_other_pictures_other_settings_and_lost_tars_are_refused(pictures: Files, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    done(pictures, cache)
    with pytest.raises(UserError, match="short_side was 32 and is 64"):
        done(pictures, cache, SMALL.model_copy(update={"short_side": 64}))
    elsewhere = pictures.model_copy(update={"path": "/elsewhere", "cache": str(cache)})
    with pytest.raises(UserError, match=r"path was '.*pictures' and is '/elsewhere'"):
        _ = Opened(elsewhere).train
    (tmp_path / "pictures" / "a" / "new.jpg").write_bytes(jpeg(99, 50, 50))
    with pytest.raises(UserError, match="the pictures themselves have changed"):
        done(Files.model_validate(pictures.model_dump()), cache)
    (cache / "train-00002.tar").unlink()
    with pytest.raises(UserError, match=r"train-00002\.tar cannot be read"):
        _ = Opened(pictures.model_copy(update={"cache": str(cache)})).train


def test_bands_of_16_bits_are_stored_as_they_are_trained_on(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    for number in range(3):
        tile = np.random.default_rng(number).integers(10_000, size=(30, 20, 5), dtype=np.uint16)
        np.save(tmp_path / "x" / f"{number}.npy", tile)
    data = Files(path=str(tmp_path / "x"), mean=(0.5,) * 5, std=(0.2,) * 5, value_range=(0, 10_000))
    made = done(data, tmp_path / "cache", SMALL.model_copy(update={"short_side": 16}))
    for small, whole in zip(images(made), images(Opened(data).original("train")), strict=True):
        assert isinstance(small, torch.Tensor) and isinstance(whole, torch.Tensor)
        assert small.shape == (5, 24, 16) and torch.equal(small, shrink(whole, 16))
    with pytest.raises(UserError, match="value_range was"):
        _ = Opened(data.model_copy(update={"cache": str(tmp_path / "cache"), "value_range": None})).train
    with pytest.raises(UserError, match="a JPEG has 1 or 3 channels, the pictures have 5"):
        done(data, tmp_path / "jpeg", Settings(format="jpeg"))


def test_a_jpeg_cache_decodes_to_what_was_stored(pictures: Files, tmp_path: Path) -> None:
    made = done(pictures, tmp_path / "cache", SMALL.model_copy(update={"format": "jpeg", "quality": 100}))
    whole = decode(jpeg(0, *SIZES[0]), MAX_PIXELS)
    assert (made.image(0).float() - shrink(whole, 32).float()).abs().max() < 40


def test_a_run_from_a_cache(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Pictures that are small already: the same bits as without it, resumed, the originals gone, the cache moved."""
    data = tmp_path / "data"
    for number in range(10):
        (data / "x").mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(number).integers(256, size=(20, 24, 3), dtype=np.uint8)).save(
            data / "x" / f"{number}.png"
        )
    shapes = "{name: shapes, train_size: 42, val_size: 20, size: 16}"
    (tmp_path / "tiny.yaml").write_text(
        TINY_PRETRAIN.replace(shapes, f"{{path: {data}, name: files}}"), encoding="utf-8"
    )
    recipe, cache = str(tmp_path / "tiny.yaml"), tmp_path / "cache"
    assert main(["prepare", recipe]) == 2 and "data.cache is null" in capsys.readouterr().err
    assert main(["prepare", recipe, f"data.cache={cache}", "--shard", "4", "--workers", "2"]) == 0
    assert f"train with it: data.cache={cache}" in capsys.readouterr().err
    assert launch("pretrain", [recipe, f"run.output={tmp_path}/plain"]) == [0]
    shutil.rmtree(data)
    cached = [recipe, f"run.output={tmp_path}/cached", "run.checkpoint_every=1"]
    assert launch("pretrain", [*cached, f"data.cache={cache}"], kill={"step": 2}) == [-9]
    cache.rename(tmp_path / "moved")
    assert launch("pretrain", [*cached, f"data.cache={tmp_path}/moved", "run.workers=2"]) == [0]
    assert checkpoint_bytes(tmp_path / "cached", 3) == checkpoint_bytes(tmp_path / "plain", 3)
