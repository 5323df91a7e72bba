"""Names in any script or encoding: they are shown, written and read back, whatever the terminal and the locale."""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path

import pytest
from PIL import Image
from support import TINY_PRETRAIN, launch

from unlabeled.__main__ import main
from unlabeled.streams import make_lasting

WINDOWS = b"caf\xe9"  # in Windows-1252, and no UTF-8
CLASSES = (WINDOWS, "né".encode(), "日本".encode())


def pictures(home: Path, bad: bytes = b"") -> str:
    for number, name in enumerate(CLASSES):
        folder = os.path.join(os.fsencode(home), name)
        os.makedirs(folder)
        for i in range(4):
            with open(os.path.join(folder, b"p\xe9%d.png" % i), "wb") as file:
                Image.new("RGB", (16, 16), (40 * i, 80 * number, 0)).save(file, "PNG")
        with open(os.path.join(folder, b"bad\xe9.png"), "wb") as file:
            file.write(bad)
    (home / "scan.jp2").touch()
    Image.new("RGB", (16, 16)).save(home / "stray.png")
    return str(home)


def test_names_that_are_no_utf8_go_through_a_run_and_its_features(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = pictures(tmp_path / "d", b"no picture")
    recipe = TINY_PRETRAIN.replace(
        "{name: shapes, train_size: 42, val_size: 20, size: 16}",
        f"{{name: files, path: {data}, stray: keep, max_bad_fraction: 0.5}}",
    )
    (tmp_path / "tiny.yaml").write_text(
        recipe.replace("epochs: 3, batch_size: 8", "epochs: 1, batch_size: 4"), encoding="utf-8"
    )
    assert launch("pretrain", [str(tmp_path / "tiny.yaml"), f"run.output={tmp_path / 'run'}"]) == [0]
    lines = (tmp_path / "run" / "bad_samples.jsonl").read_text(encoding="utf-8").splitlines()
    expected = {f"{data}/{name}/bad\\xe9.png" for name in ("caf\\xe9", "né", "日本")}
    assert {json.loads(line)["key"] for line in lines} == expected

    out = tmp_path / "features"
    assert main(["embed", str(tmp_path / "run" / "export"), data, str(out), "--device", "cpu", "--workers", "0"]) == 0
    bad = [json.loads(line) for line in (out / "bad.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {one["key"] for one in bad} == expected
    manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["classes"] == ["caf\\xe9", "né", "日本"] and manifest["written"] == 13
    assert manifest["skipped"] == {".jp2": 1} and "1 file is not read: 1 .jp2" in capsys.readouterr().err


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_terminal_of_any_encoding_shows_any_name(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    written = {name: io.BytesIO() for name in ("stdout", "stderr")}
    for name, buffer in written.items():
        monkeypatch.setattr(sys, name, io.TextIOWrapper(buffer, encoding, write_through=True))
    make_lasting()
    for stream in (sys.stdout, sys.stderr):
        print("日本 caf\udce9", file=stream)
    shown = {"utf-8": "日本".encode()}.get(encoding, rb"\u65e5\u672c") + rb" caf\udce9"
    assert all(buffer.getvalue().strip() == shown for buffer in written.values())


def test_commands_let_the_terminal_show_any_name(monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = io.BytesIO()
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(buffer, "ascii", write_through=True))
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), "ascii", write_through=True))
    assert main(["evaluate", "/absent/日本", "--data", "shapes"]) == 2
    assert rb"/absent/\u65e5\u672c" in buffer.getvalue()
