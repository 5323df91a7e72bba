"""A run over every kind of bad, odd and stray file at once: bad ones are skipped and named, odd ones are learnt from,
what is no picture is counted."""

from __future__ import annotations

import io
import json
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support import TINY_PRETRAIN, launch

NOISE = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
PICTURE = Image.fromarray(NOISE)
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 16\nshowpage\n"
GONE, CHANGED = "gone.png", "changed.png"
LONG_AGO = 1_000_000_000


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def claims_100_megapixels() -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 10_000, 10_000, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def odd() -> dict[str, bytes]:
    """Pictures that a naive reader would get wrong, or that stop it."""
    exif = Image.Exif()
    exif[0x0112] = 6
    wide = Image.fromarray(NOISE[..., 0].astype(np.uint16) * 257)
    return {
        "wide.png": encoded(wide, "PNG"),
        "grey.png": encoded(PICTURE.convert("L"), "PNG"),
        "grey_alpha.png": encoded(PICTURE.convert("LA"), "PNG"),
        "inks.jpg": encoded(PICTURE.convert("CMYK"), "JPEG"),
        "alpha.png": encoded(PICTURE.convert("RGBA"), "PNG"),
        "palette.gif": encoded(PICTURE.convert("P"), "GIF"),
        "one_bit.png": encoded(PICTURE.convert("1"), "PNG"),
        "animated.gif": encoded(PICTURE.convert("P"), "GIF", save_all=True, append_images=[PICTURE.convert("P")]),
        "turned.jpg": encoded(PICTURE, "JPEG", exif=exif),
        "turned.JFIF": encoded(PICTURE, "JPEG", exif=exif),
    }


BAD = {
    "truncated.jpg": (encoded(PICTURE, "JPEG")[:-200], "truncated"),
    "empty.jpg": (b"", "the file is empty"),
    "text.png": (b"no picture at all", "not a picture in one of"),
    "eps.jpg": (EPS, "not a picture in one of"),
    "bomb.png": (claims_100_megapixels(), "10000x10000 pixels are more than"),
}
STRAYS = (".hidden.png", "._turned.jpg", "notes.txt", "model.pkl")


def fill(folder: Path) -> Path:
    plain = {f"{i}.png": encoded(PICTURE.rotate(i), "PNG") for i in range(10)}
    pictures = {**plain, **odd(), **{name: data for name, (data, _) in BAD.items()}, GONE: plain["0.png"]}
    folder.mkdir()
    for name, data in {**pictures, CHANGED: plain["1.png"], **dict.fromkeys(STRAYS, b"x")}.items():
        (folder / name).write_bytes(data)
    (folder / "unreadable.jpg").symlink_to("/proc/self/mem")
    (folder / "loop").symlink_to(folder)
    settle(folder)
    return folder


def settle(folder: Path) -> None:
    """As if nothing in it had been touched for years: the index of a folder is kept by its date."""
    for path in [*folder.iterdir(), folder]:
        os.utime(path, (LONG_AGO, LONG_AGO), follow_symlinks=False)


def arguments(home: Path, data: Path, allowed: float) -> list[str]:
    where = f"{{name: files, path: {data}, max_bad_fraction: {allowed}}}"
    recipe = TINY_PRETRAIN.replace("{name: shapes, train_size: 42, val_size: 20, size: 16}", where)
    (home / "r.yaml").write_text(recipe.replace("batch_size: 8", "batch_size: 7"), encoding="utf-8")
    return [str(home / "r.yaml"), f"run.output={home / 'run'}", "run.checkpoint_every=1"]


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs a file that nobody can read")
def test_a_run_skips_what_is_bad_learns_from_what_is_odd_and_counts_the_rest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = fill(tmp_path / "data")
    started = arguments(tmp_path, data, 0.5)
    assert launch("pretrain", started, kill={"step": 1}) == [-9]
    said = capsys.readouterr().err
    assert "28 from files" in said and "4 files are not read: 2 hidden, 1 .pkl, 1 .txt" in said
    # the index is kept, as the folder looks as it did; the pictures do not
    (data / GONE).unlink()
    (data / CHANGED).write_bytes(b"something longer or shorter than before")
    settle(data)
    assert launch("pretrain", started) == [0]
    lines = [
        json.loads(line) for line in (tmp_path / "run" / "bad_samples.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    reasons = {Path(line["key"]).name: line["reason"] for line in lines}
    expected = {name: reason for name, (_, reason) in BAD.items()}
    expected |= {"unreadable.jpg": "cannot be read", GONE: "No such file", CHANGED: "has changed since it was indexed"}
    assert len(lines) == len(reasons) and reasons.keys() == expected.keys()
    assert [(name, reasons[name]) for name, reason in expected.items() if reason not in reasons[name]] == []
    assert f"{len(expected)} bad pictures" in capsys.readouterr().err


def test_too_many_bad_pictures_stop_a_run_and_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert launch("pretrain", arguments(tmp_path, fill(tmp_path / "data"), 0.1)) == [2]
    said = capsys.readouterr().err
    assert "of 28 pictures cannot be used, more than data.max_bad_fraction 0.1 allows" in said
    assert str(tmp_path / "run" / "bad_samples.jsonl") in said and "Traceback" not in said
