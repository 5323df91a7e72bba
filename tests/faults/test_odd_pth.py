"""Hundreds of `.pth` files that are not what they should be: each ends in one `UserError`, at no cost."""

from __future__ import annotations

import io
import pickle
import resource
import struct
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import naive_dinov3
import numpy as np
import pytest
import test_importers as official
import torch
from torch import Tensor

from unlabeled.backbone import importing
from unlabeled.backbone.importing import MOST_BLOCKS, importer_names, read
from unlabeled.errors import UserError

FAMILY_NAMES = importer_names()
TRANSFORMERS = sorted({*official.PLACE, "dinov3"})
# families of CNNs alone: how the names of their encoders begin
CNNS = {"barlowtwins": "", "simsiam": "module.encoder.", "spark": "", "swav": "module.", "vicreg": ""}


def refused(name: str, file: Path, heads: int | None = 3, what: Any = None) -> str:
    """The message of the error that a file ends in."""
    began = time.process_time()
    try:
        read(name, file, heads=heads)
    except UserError as error:
        said = str(error)
    else:
        raise AssertionError(f"taken for an official checkpoint: {what}")
    assert len(said) < 3000 and time.process_time() - began < 4
    return said


def saved(value: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


@pytest.fixture(autouse=True, scope="module")
def no_memory() -> Iterator[None]:
    """Nothing here takes more memory than the files are large."""
    import timm

    timm.create_model("resnet18")  # what is loaded at the first use is nobody's fault
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 150_000  # kB


# ---------------------------------------------------------------- files that are no checkpoints


def archive(entries: dict[str, bytes], how: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", how) as file:
        for name, data in entries.items():
            file.writestr(name, data)
    return buffer.getvalue()


def packed() -> bytes:
    """A checkpoint whose weights are 8 MB of zeros, packed into some kilobytes."""
    with zipfile.ZipFile(io.BytesIO(saved({"model": torch.zeros(1 << 21)}))) as whole:
        return archive({name: whole.read(name) for name in whole.namelist()}, zipfile.ZIP_DEFLATED)


def tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        file.addfile(tarfile.TarInfo("storages"))
    return buffer.getvalue()


def scripted() -> bytes:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), buffer)
    return buffer.getvalue()


def arrays() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, a=np.zeros(3))
    return buffer.getvalue()


def nested(depth: int) -> Any:
    value: Any = torch.zeros(1)
    for _ in range(depth):
        value = {"model": value}
    return value


WHOLE = saved({"model": torch.zeros(1000)})
FILES: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "text": lambda: b"not weights\n" * 100,
    "html": lambda: b"<!doctype html><html>404</html>",
    "json": lambda: b'{"model": {}}',
    "zeros": lambda: bytes(1 << 20),
    "ones": lambda: b"\xff" * 1000,
    "png": lambda: b"\x89PNG\r\n\x1a\n" + bytes(100),
    "lfs": lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
    "safetensors": lambda: struct.pack("<Q", 2) + b"{}",
    "zip": lambda: archive({"a.txt": b"x"}),
    "zip of nothing": lambda: archive({}),
    "zip with a broken pickle": lambda: archive({"a/data.pkl": b"\x80\x02garbage", "a/version": b"3\n"}),
    "zip with an empty pickle": lambda: archive({"a/data.pkl": b"", "a/version": b"3\n"}),
    "zip of many parts": lambda: archive({f"a{i}": b"" for i in range(20_001)}),
    "zip of version 9": lambda: archive({"a/data.pkl": pickle.dumps({}, 2), "a/version": b"9\n"}),
    "npz": arrays,
    "tar": tar,
    "script": scripted,
    "packed": packed,
    **{f"cut at {at}": lambda at=at: WHOLE[:at] for at in (1, 50, 500, len(WHOLE) - 30)},  # type: ignore[misc]
    **{
        f"flipped at {at}": lambda at=at: WHOLE[:at] + bytes([WHOLE[at] ^ 64]) + WHOLE[at + 1 :]  # type: ignore[misc]
        for at in range(60, 400, 20)
    },
    "old format, cut": lambda: saved({"model": torch.zeros(9)}, _use_new_zipfile_serialization=False)[:-20],
    "old magic alone": lambda: pickle.dumps(0x1950A86A20F9469CFC6C, 2),
    **{
        f"{type(value).__name__} {str(value)[:8]}": lambda value=value: saved(value)  # type: ignore[misc]
        for value in (None, 5, 5.5, "x", b"x", [], (), [torch.zeros(1)], {1, 2}, torch.zeros(3), torch.nn.Linear(1, 1))
    },
    **{
        f"dict of {type(value).__name__}": lambda value=value: saved({"model": value, "state_dict": value})  # type: ignore[misc]
        for value in (None, 5, "x", [], {}, torch.zeros(3), {5: torch.zeros(1)}, {"a": 5}, {"a": {"b": torch.zeros(1)}})
    },
    "deep": lambda: saved(nested(100)),
    "no strings": lambda: saved({5: 6, None: 7, (1, 2): torch.zeros(1)}),
    "pickled module": lambda: pickle.dumps(torch.nn.Linear(1, 1)),
    "plain pickle": lambda: pickle.dumps({"model": {"a": 1}}),
    "of functions": lambda: pickle.dumps({"model": print}),
    "bytearray": lambda: b"\x80\x02c__builtin__\nbytearray\n\x8a\x05\x00\x00\x00\x00\x10\x85R.",
}


@pytest.mark.parametrize("kind", sorted(FILES))
def test_files_that_are_no_checkpoints(kind: str, tmp_path: Path) -> None:
    file = tmp_path / "odd.pth"
    file.write_bytes(FILES[kind]())
    name = FAMILY_NAMES[sorted(FILES).index(kind) % len(FAMILY_NAMES)]
    heads = None if name in CNNS else 3
    said = refused(name, file, heads)
    assert "odd.pth" in said or "not a" in said or "the checkpoint holds" in said


def test_folders_and_nothing(tmp_path: Path) -> None:
    for file in (tmp_path, tmp_path / "absent.pth"):
        assert "no file" in refused("mae", file)


# ---------------------------------------------------------------- checkpoints with one thing wrong


def quantised(tensor: Tensor) -> Tensor:
    return torch.quantize_per_tensor(tensor.float(), 0.1, 0, torch.qint8)


SPOILT: dict[str, Callable[[Tensor], Any]] = {
    "an int": lambda t: 5,
    "text": lambda t: "weights",
    "nothing": lambda t: None,
    "a list": lambda t: t.tolist(),
    "a dict": lambda t: {"data": t},
    "whole numbers": lambda t: t.long(),
    "yes and no": lambda t: t > 0,
    "complex": lambda t: t.to(torch.complex64),
    "one number": lambda t: t.sum(),
    "an axis more": lambda t: t.unsqueeze(0),
    "an axis less": lambda t: t[0],
    "empty": lambda t: t[:0],
    "larger": lambda t: torch.cat([t, t]),
    "sparse": lambda t: t.to_sparse(),
    "quantised": quantised,
    "without memory": lambda t: t.to("meta"),
    "one number a trillion times": lambda t: torch.zeros(1).expand(*[1 << (40 // t.ndim)] * t.ndim),
    "not a number": lambda t: t * float("nan"),
    "infinite": lambda t: t / 0,
}


def weights_of(name: str, checkpoint: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """The encoder's weights in an official file, and how their names begin."""
    key, prefix = ("", "") if name == "dinov3" else official.PLACE[name]
    return (checkpoint[key] if key else checkpoint), prefix


@pytest.fixture(scope="module")
def checkpoints() -> dict[str, dict[str, Any]]:
    made = {name: make(model) for name, (make, model) in official.models().items()}
    return {**made, "dinov3": naive_dinov3.weights(width=48, heads=3)}


def copy(checkpoint: dict[str, Any]) -> dict[str, Any]:
    return {key: dict(value) if isinstance(value, dict) else value for key, value in checkpoint.items()}


def names_to_spoil(weights: dict[str, Any], prefix: str) -> list[str]:
    wanted = ("patch_embed.proj.weight", "pos_embed", "attn.qkv.weight", "norm.weight", "bias_table")
    return [
        next(n for n in weights if n.startswith(prefix) and n.endswith(end))
        for end in wanted
        if any(n.startswith(prefix) and n.endswith(end) for n in weights)
    ]


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_one_tensor_of_another_kind(name: str, checkpoints: dict[str, Any], tmp_path: Path) -> None:
    names = names_to_spoil(*weights_of(name, checkpoints[name]))
    for number, (kind, spoil) in enumerate(SPOILT.items()):
        # each kind of fault in another weight of every family
        for spoilt in {names[number % len(names)], names[(number + TRANSFORMERS.index(name)) % len(names)]}:
            checkpoint = copy(checkpoints[name])
            weights, _ = weights_of(name, checkpoint)
            weights[spoilt] = spoil(weights[spoilt])
            torch.save(checkpoint, tmp_path / "odd.pth")
            refused(name, tmp_path / "odd.pth", what=(kind, spoilt))


def test_every_family_is_tried() -> None:
    assert sorted([*TRANSFORMERS, *CNNS]) == FAMILY_NAMES


@pytest.mark.parametrize("name", CNNS)
def test_one_tensor_of_a_cnn_of_another_kind(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Handed over without a file, which would be 45 MB each time."""
    prefix, file = CNNS[name], tmp_path / "odd.pth"
    whole = {f"{prefix}{key}": tensor for key, tensor in official.resnet().state_dict().items()}
    whole |= official.tensors({"module.encoder.fc.0.weight": (4, 512)}) if name == "simsiam" else {}
    read_pth: dict[str, Any] = {}
    monkeypatch.setattr(importing, "read_pth", lambda _: dict(read_pth))
    for number, spoil in enumerate(SPOILT.values()):
        spoilt = prefix + ("conv1.weight", "bn1.weight", "layer3.1.bn2.bias")[number % 3]
        read_pth = {**whole, spoilt: spoil(whole[spoilt])}
        refused(name, file, heads=None, what=(number, spoilt))
    for stranger in ("x" * 1_000_000, "\x1b[2J\n\u202e", ""):
        read_pth = {**whole, stranger: torch.zeros(1)}
        assert "\x1b" not in refused(name, file, heads=None)


NUMBERS = ("1073741824", "-1", "01", "²", "1.5", "", " 1", "9" * 5000, "3")


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_blocks_of_odd_numbers(name: str, checkpoints: dict[str, Any], tmp_path: Path) -> None:
    for number in NUMBERS:
        for how in ("renamed", "added"):
            checkpoint = copy(checkpoints[name])
            weights, prefix = weights_of(name, checkpoint)
            old = f"{prefix}blocks.1.1." if name == "dinov2" else f"{prefix}blocks.1."
            for key in [key for key in weights if key.startswith(old)]:
                new = key.replace(old, f"{old[:-2]}{number}.", 1)
                weights[new] = weights.pop(key) if how == "renamed" else weights[key]
            torch.save(checkpoint, tmp_path / "odd.pth")
            assert "not a" in refused(name, tmp_path / "odd.pth", what=(number, how))


def test_blocks_without_end(checkpoints: dict[str, Any], tmp_path: Path) -> None:
    weights = {**checkpoints["mae"]["model"], **{f"blocks.{i}.x": torch.zeros(1) for i in range(300)}}
    torch.save({"model": weights}, tmp_path / "odd.pth")
    assert f"at most {MOST_BLOCKS}" in refused("mae", tmp_path / "odd.pth")


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_names_of_any_length(name: str, checkpoints: dict[str, Any], tmp_path: Path) -> None:
    for stranger in ("x" * 1_000_000, "\x1b[2J\n\u202e", ""):
        checkpoint = copy(checkpoints[name])
        weights, prefix = weights_of(name, checkpoint)
        weights[prefix + stranger] = torch.zeros(1)
        torch.save(checkpoint, tmp_path / "odd.pth")
        assert "\x1b" not in refused(name, tmp_path / "odd.pth")


@pytest.mark.parametrize("name", ["dino", "ibot"])
def test_losses_that_are_none(name: str, checkpoints: dict[str, Any], tmp_path: Path) -> None:
    loss = f"{name}_loss"
    huge = torch.zeros(1).expand(1 << 40)
    for odd in ([], 5, None, "x", torch.zeros(3), {"center": "x"}, {"center": [1]}, {"center": huge}, {5: huge}):
        torch.save({**checkpoints[name], loss: odd}, tmp_path / "odd.pth")
        refused(name, tmp_path / "odd.pth")


def test_heads_that_cannot_be(checkpoints: dict[str, Any], tmp_path: Path) -> None:
    torch.save(checkpoints["mae"], tmp_path / "mae.pth")
    for heads in (0, -3, 7, 10**12):
        assert "heads" in refused("mae", tmp_path / "mae.pth", heads=heads)


def test_one_storage_under_ten_thousand_names(tmp_path: Path) -> None:
    one = torch.zeros(1 << 20)
    torch.save({"model": {f"blocks.{i}.x": one for i in range(10_000)}}, tmp_path / "odd.pth")
    assert "its tensors are 41,943,040,000 bytes" in refused("mae", tmp_path / "odd.pth")
