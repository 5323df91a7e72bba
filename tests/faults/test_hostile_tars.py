"""Tars that claim more than they hold, and members that nobody may decode."""

from __future__ import annotations

import io
import pickle
import resource
import tarfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from unlabeled.__main__ import main
from unlabeled.data.opened import Opened
from unlabeled.data.sources.files import Config as Files
from unlabeled.errors import UserError


def pack(file: Path, members: dict[str, bytes], headers: tuple[tuple[bytes, bytes], ...] = ()) -> Path:
    """A tar of members, behind extension headers (their kind, what they hold)."""
    with tarfile.open(file, "w", format=tarfile.USTAR_FORMAT) as tar:
        for kind, data in headers:
            info = tarfile.TarInfo("extension")
            info.type, info.size = kind, len(data)
            tar.addfile(info, io.BytesIO(data))
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return file


def picture() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "PNG")
    return buffer.getvalue()


class Payload:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (Path.touch, (self.marker,))  # type: ignore[return-value]


@pytest.mark.parametrize("labels", ["folders", "pkl", "pth", "json:y", "cls"])
def test_pickles_beside_pictures_are_never_decoded(labels: str, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    payload = pickle.dumps(Payload(marker))
    beside = {f"a.{ending}": payload for ending in ("pkl", "pickle", "pth", "pyd", "npz", "json", "cls")}
    file = pack(tmp_path / "x.tar", {"a.png": picture(), "b.npy": b"\x93NUMPY" + payload, **beside})
    with suppress(UserError):
        source = Opened(Files(path=str(file), labels=labels)).train
        assert source.key(0).endswith("a.png") and source.image(0).shape == (3, 4, 4)
    assert not marker.exists()
    # it would have run where somebody decodes it
    pickle.loads(payload)
    assert marker.exists()


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGLINK, tarfile.XGLTYPE])
def test_a_name_of_gigabytes_is_not_read(kind: bytes, tmp_path: Path) -> None:
    info = tarfile.TarInfo("extension")
    info.type, info.size = kind, 4 << 30
    with (tmp_path / "x.tar").open("wb") as file:
        file.write(info.tobuf(tarfile.GNU_FORMAT))
        file.truncate(5 << 30)
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match="at byte 0 a name or its like claims 4,294,967,296 bytes"):
        _ = Opened(Files(path=str(tmp_path / "x.tar"))).train
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - held < 50_000  # kB


@pytest.mark.parametrize(
    "record", [b"5014 size=" + b"9" * 5003 + b"\n", b"9" * 5000 + b" path=x\n", b"-5 path=x\n", b"0 path=x\n", b" =\n"]
)
def test_records_that_are_none(record: bytes, tmp_path: Path) -> None:
    file = pack(tmp_path / "x.tar", {"a.png": picture()}, ((tarfile.XHDTYPE, record),))
    with pytest.raises(UserError, match="no PAX records at byte 512"):
        _ = Opened(Files(path=str(file))).train


def test_many_records_take_no_time(tmp_path: Path) -> None:
    records = b"".join(b"%d k%06d=\n" % (len(b"12 k000000=\n"), i) for i in range(80_000)) + b"12 path=c/d\n"
    file = pack(tmp_path / "x.tar", {"a.png": picture()}, ((tarfile.XHDTYPE, records),))
    began = time.process_time()
    with pytest.raises(UserError, match="no pictures"):
        _ = Opened(Files(path=str(file))).train
    assert time.process_time() - began < 8


def test_labels_beyond_reason(tmp_path: Path) -> None:
    for text, said in {
        "7" * 5000: "a label of 5,000 characters, '777",
        "x" * 900_000: "a label of 900,000 characters, 'xxx",
        "x" * 2_000_000: "has 2,000,000 bytes; expected a label",
    }.items():
        file = pack(tmp_path / "x.tar", {"a.png": picture(), "a.cls": text.encode()})
        with pytest.raises(UserError, match=said) as error:
            _ = Opened(Files(path=str(file), labels="cls")).train
        assert len(str(error.value)) < 500
    for text in ("[" * 100_000, '{"y":' * 100_000, '{"y": ' + "1" * 10_000 + "}", '{"y": {}}', "null", "\ufffe"):
        file = pack(tmp_path / "x.tar", {"a.png": picture(), "a.json": text.encode()})
        with pytest.raises(UserError, match=r"a\.json") as error:
            _ = Opened(Files(path=str(file), labels="json:y")).train
        assert len(str(error.value)) < 500


@pytest.mark.parametrize("text", ["[" * 100_000, "null", "5", "[]", '{"protocol": 5}', "\x00", ""])
def test_a_result_that_is_none(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "result.json").write_text(text, encoding="utf-8")
    assert main(["report", str(tmp_path)]) == 2
    assert "is no result of `unlabeled finetune`" in capsys.readouterr().err
