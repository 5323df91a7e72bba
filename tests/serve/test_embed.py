"""Features on disk are the encoder's, whoever computed them, and however often it was interrupted."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from support import CONTEXT, free_port
from torch import Tensor

from unlabeled.__main__ import main
from unlabeled.backbone.config import EncoderConfig
from unlabeled.backbone.folder import Preprocessing, export_encoder
from unlabeled.backbone.weights import load_encoder
from unlabeled.data.batch.loader import Normalize
from unlabeled.data.opened import Opened
from unlabeled.data.sources.files import Config as Files
from unlabeled.data.view.views import center_crop
from unlabeled.serve.embed import Embedding, Settings
from unlabeled.serve.shards import Shard

COUNT, BAD = 23, (4, 11)
PREPARED = Preprocessing((0.5, 0.4, 0.3), (0.2, 0.3, 0.4), crop_pct=0.9, interpolation="bilinear")
SMALL = ("--shard", "5", "--batch-size", "3", "--workers", "0", "--device", "cpu")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of two classes, two of them broken, and an export."""
    home, random = tmp_path_factory.mktemp("embed"), np.random.default_rng(0)
    for number in range(COUNT):
        file = home / "pictures" / "ab"[number % 2] / f"{number:02d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(256, size=(20 + number, 24, 3), dtype=np.uint8)).save(file)
        if number in BAD:
            file.write_bytes(b"no picture")
    torch.manual_seed(0)
    config = EncoderConfig(model="vit_tiny_patch16_224", patch_size=4, width=16, depth=2, heads=2)
    export_encoder(home / "export", config.build((16, 16)), PREPARED, "card", {})
    return home


def embed(home: Path, out: Path, *options: str) -> int:
    return main(["embed", str(home / "export"), str(home / "pictures"), str(out), *SMALL, *options])


def shards(out: Path) -> list[Shard]:
    manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["complete"]
    tokens = manifest["shapes"].get("tokens", [None, 0, 0])
    return [read(out / name, (tokens[1], tokens[2])) for name in manifest["files"]]


def read(file: Path, token_shape: tuple[int, int]) -> Shard:
    if file.suffix == ".parquet":
        table = pytest.importorskip("pyarrow.parquet").read_table(file)
        tokens = rows(table["tokens"]).unflatten(1, token_shape) if "tokens" in table.column_names else None
        index, label = (torch.from_numpy(table[name].to_numpy().copy()) for name in ("index", "label"))
        return Shard(index, table["key"].to_pylist(), label, rows(table["features"]), tokens)
    with safe_open(file, "pt") as opened:
        found = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - it is no dict
        return Shard(keys=json.loads(opened.metadata()["keys"]), **{"tokens": None, **found})


def rows(column: Any) -> Tensor:
    flat, width = column.combine_chunks().flatten().to_numpy(zero_copy_only=False), column.type.list_size
    return torch.from_numpy(np.array(flat).reshape(len(column), width))


def whole(out: Path) -> Shard:
    parts = shards(out)
    columns = [torch.cat([getattr(part, name) for part in parts]) for name in ("index", "label", "features")]
    tokens = None if parts[0].tokens is None else torch.cat([part.tokens for part in parts if part.tokens is not None])
    index, label, features = columns
    return Shard(index, [key for part in parts for key in part.keys], label, features, tokens)


def by_hand(home: Path, pool: str) -> tuple[list[int], list[str], list[int], Tensor, Tensor]:
    """One picture after the other."""
    source = Opened(Files(path=str(home / "pictures"), mean=PREPARED.mean, std=PREPARED.std)).train
    encoder, normalize = (
        load_encoder(home / "export").eval(),
        Normalize(PREPARED.mean, PREPARED.std, torch.device("cpu")),
    )
    good = [i for i in range(COUNT) if int(Path(source.key(i)).stem) not in BAD]
    features, tokens = [], []
    for i in good:
        with torch.no_grad():
            found = encoder(normalize(center_crop(source.image(i), (16, 16), 0.9, "bilinear"))[None])
        patches = found.patches[0]
        mean, largest = patches.sum(0) / len(patches), torch.stack(list(patches)).max(0).values
        parts = {"cls": [found.prefix[0, 0]], "mean": [mean], "mean_max": [mean, largest]}
        features.append(torch.cat({**parts, "cls_mean": [found.prefix[0, 0], mean]}[pool]))
        tokens.append(patches)
    keys = [source.key(i) for i in good]
    return good, keys, source.labels[good].tolist(), torch.stack(features), torch.stack(tokens)


@pytest.mark.parametrize("format", ["safetensors", "parquet"])
@pytest.mark.parametrize(
    "pool, dtype", [("cls", "float32"), ("mean", "float16"), ("mean_max", "float32"), ("cls_mean", "float32")]
)
def test_as_the_encoder_says(home: Path, tmp_path: Path, format: str, pool: str, dtype: str) -> None:
    if format == "parquet":
        pytest.importorskip("pyarrow")
    assert embed(home, tmp_path, "--format", format, "--pool", pool, "--dtype", dtype, "--tokens") == 0
    found = whole(tmp_path)
    index, keys, labels, features, tokens = by_hand(home, pool)
    assert found.index.tolist() == index and found.keys == keys and found.label.tolist() == labels
    tolerance = {"float32": 1e-5, "float16": 2e-3}[dtype]
    assert found.features.dtype == getattr(torch, dtype) and found.tokens is not None
    torch.testing.assert_close(found.features.float(), features, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(found.tokens.float(), tokens, rtol=tolerance, atol=tolerance)


def process(rank: int, world: int, autocast: Any = nullcontext) -> Any:
    """What `make_accelerator` gives a process, without any others."""
    device = torch.device("cpu")
    return SimpleNamespace(
        process_index=rank, num_processes=world, is_main_process=True, device=device, autocast=autocast
    )


def test_mixed_precision_rounds(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rounding = {"no": nullcontext, "bf16": partial(torch.autocast, "cpu", torch.bfloat16)}
    monkeypatch.setattr(
        "unlabeled.work.embed.make_accelerator", lambda _, precision, *rest: process(0, 1, rounding[precision])
    )
    assert embed(home, tmp_path / "whole") == 0 and embed(home, tmp_path / "mixed", "--precision", "bf16") == 0
    exact, rounded = (whole(tmp_path / name).features for name in ("whole", "mixed"))
    assert 1e-4 < (exact - rounded).abs().max() < 0.1


def test_the_manifest_says_what_it_is(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert embed(home, tmp_path) == 0
    manifest = json.loads((tmp_path / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["shapes"] == {"features": [None, 16]} and manifest["classes"] == ["a", "b"]
    assert manifest["asked"]["preprocessing"]["mean"] == list(PREPARED.mean)
    assert manifest["asked"]["pictures"]["count"] == COUNT
    assert (manifest["written"], manifest["bad"], len(manifest["files"])) == (COUNT - 2, 2, 5)
    assert {"torch", "timm"} <= manifest["versions"].keys()
    bad = [json.loads(line)["key"] for line in (tmp_path / "bad.jsonl").read_text(encoding="utf-8").splitlines()]
    assert sorted(Path(key).stem for key in bad) == ["04", "11"]
    said = capsys.readouterr().err
    assert "features of 21 pictures in 5 files, 2 cannot be used" in said and "done in" in said and "skipped" in said
    assert f"next: unlabeled search {tmp_path} --like" in said
    assert not list(tmp_path.glob("*.writing")) and not list(tmp_path.glob("features-*.json"))


def _member(arguments: Sequence[str], rank: int, world: int, port: int, strike: int | None) -> None:
    torch.set_num_threads(1)
    if world > 1:
        ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world)}
        os.environ |= {**ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    if strike is not None:
        _kill_before(strike)
    raise SystemExit(main(list(arguments)))


def _kill_before(shard: int) -> None:
    """SIGKILL ourselves with the file of a shard half written."""
    write = Shard.write

    def armed(self: Shard, file: Path) -> None:
        if file.stem == f"features-{shard:05d}":
            file.with_name(f"{file.name}.writing").write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)
        write(self, file)

    Shard.write = armed  # type: ignore[method-assign]


def launch(home: Path, out: Path, *options: str, world: int = 1, strike: int | None = None) -> list[Any]:
    arguments = ["embed", str(home / "export"), str(home / "pictures"), str(out), *SMALL, *options]
    port = free_port()
    processes = [CONTEXT.Process(target=_member, args=(arguments, rank, world, port, strike)) for rank in range(world)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    return [process.exitcode for process in processes]


def files(out: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in out.glob("features-*")}


def test_two_processes_write_the_same_bytes(home: Path, tmp_path: Path) -> None:
    assert launch(home, tmp_path / "one") == [0]
    assert launch(home, tmp_path / "two", world=2) == [0, 0]
    assert len(files(tmp_path / "one")) == 5 and files(tmp_path / "one") == files(tmp_path / "two")
    assert (tmp_path / "one" / "bad.jsonl").read_bytes() == (tmp_path / "two" / "bad.jsonl").read_bytes()


def test_each_process_makes_its_share_of_the_files(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unlabeled.work.embed.make_accelerator", lambda *_: process(1, 2))
    monkeypatch.setattr(Embedding, "finish", lambda _: None)
    for missing in ([1, 3], [1, 2, 3]):  # of five files the second and the fourth, then of the other three one
        assert embed(home, tmp_path) == 0
        assert [int(file.stem[-5:]) for file in sorted(tmp_path.glob("features-*.safetensors"))] == missing


def test_an_encoder_is_in_evaluation(home: Path, tmp_path: Path) -> None:
    encoder, source = load_encoder(home / "export").train(), Opened(Files(path=str(home / "pictures"))).train
    Embedding(encoder, source, PREPARED.mean, PREPARED.std, Settings(), tmp_path)
    assert not encoder.training


def test_killed_in_the_middle_it_goes_on(home: Path, tmp_path: Path) -> None:
    assert launch(home, tmp_path / "whole") == [0]
    out = tmp_path / "cut"
    assert launch(home, out, strike=3) == [-9]
    assert len(files(out)) == 2 * 3 + 1, "three files with their notes, and half of one"
    assert not json.loads((out / "manifest.json").read_text(encoding="utf-8"))["complete"]
    before = (out / "features-00001.safetensors").stat().st_mtime_ns
    assert launch(home, out, world=2) == [0, 0]
    assert (out / "features-00001.safetensors").stat().st_mtime_ns == before, "what is done is not done again"
    assert files(out) == files(tmp_path / "whole")


def test_a_lost_file_is_made_again(home: Path, tmp_path: Path) -> None:
    assert embed(home, tmp_path) == 0
    before = files(tmp_path)
    (tmp_path / "features-00002.safetensors").unlink()
    (tmp_path / "features-00003.safetensors").write_bytes(b"cut short")
    assert embed(home, tmp_path) == 0
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--pool", "mean"), "pool was 'cls' and is 'mean'"),
        (("--dtype", "float16"), "dtype was 'float32' and is 'float16'"),
        (("--crop-pct", "1"), "preprocessing.crop_pct was 0.9 and is 1.0"),
        (("--size", "24"), "preprocessing.size was [16, 16] and is [24, 24]"),
        (("--shard", "6"), "shard was 5 and is 6"),
        (("--prefix", "a"), "pictures.count was 23 and is 12"),
    ],
)
def test_other_features_are_refused(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], message: str
) -> None:
    assert embed(home, tmp_path) == 0
    before = files(tmp_path)
    assert embed(home, tmp_path, *options) == 2
    assert message in capsys.readouterr().err and files(tmp_path) == before


@pytest.mark.parametrize("complete", [True, False])
@pytest.mark.parametrize("format", ["safetensors", "parquet"])
def test_a_damaged_file_is_named_and_made_again(
    home: Path, tmp_path: Path, format: str, complete: bool, caplog: pytest.LogCaptureFixture
) -> None:
    assert embed(home, tmp_path, "--format", format) == 0
    good = files(tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text(encoding="utf-8"))
    for name, noted in manifest["files"].items():
        assert noted["sha256"] == hashlib.sha256(good[name]).hexdigest()
    if not complete:  # cut off when the last file was written
        for name, noted in manifest["files"].items():
            (tmp_path / name).with_suffix(".json").write_text(json.dumps(noted), encoding="utf-8")
        text = json.dumps({**manifest, "complete": False, "files": {}})
        (tmp_path / "manifest.json").write_text(text, encoding="utf-8")
    caplog.clear()
    for number, at in ((0, 10), (1, -1), (2, -40)):  # in the header and in the numbers
        file = tmp_path / f"features-{number:05d}.{format}"
        data = bytearray(good[file.name])
        data[at] ^= 1
        file.write_bytes(data)
    (tmp_path / f"features-00003.{format}").write_bytes(bytes(len(good[f"features-00003.{format}"])))
    assert embed(home, tmp_path, "--format", format) == 0
    assert files(tmp_path) == good
    assert caplog.text.count("is not what was written (size or SHA-256 differ): it is made again") == 4
    assert json.loads((tmp_path / "manifest.json").read_text(encoding="utf-8"))["files"] == manifest["files"]


@pytest.mark.parametrize(
    "text", ["", "null", "5", "[]", "{}", '{"asked": 3, "files": {}}', '{"asked": {}, "files": 3}']
)
def test_a_manifest_that_is_none_is_refused(
    home: Path, tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "manifest.json").write_text(text, encoding="utf-8")
    assert embed(home, tmp_path) == 2
    assert "is no manifest of features" in capsys.readouterr().err


def test_notes_that_are_none_are_made_again(home: Path, tmp_path: Path) -> None:
    assert embed(home, tmp_path) == 0
    good = files(tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text(encoding="utf-8"))
    names, before = list(manifest["files"]), manifest["files"].copy()
    manifest["files"] |= {names[0]: 3, names[1]: {**before[names[1]], "bad": [[1, 2, 3]]}}
    manifest["files"] |= {names[2]: {**before[names[2]], "sha256": "0"}, names[3]: {"size": before[names[3]]["size"]}}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    (tmp_path / names[4]).with_suffix(".json").write_bytes(b"\xff")
    assert embed(home, tmp_path) == 0
    assert files(tmp_path) == good
    assert json.loads((tmp_path / "manifest.json").read_text(encoding="utf-8"))["files"] == before


def test_the_split_that_was_read_is_written(home: Path, tmp_path: Path) -> None:
    def split(out: str, data: str | Path, *options: str) -> Any:
        assert main(["embed", str(home / "export"), str(data), str(tmp_path / out), *SMALL, *options]) == 0
        return json.loads((tmp_path / out / "manifest.json").read_text(encoding="utf-8"))["split"]

    assert split("all", home / "pictures") is None
    assert split("b", home / "pictures", "--prefix", "b") == "b"
    recipe = tmp_path / "recipe.yaml"
    data = f"{{name: files, path: {home}/pictures, train: b}}"
    recipe.write_text(f"name: it\nencoder: nowhere\ndata: {data}\ntask: {{view: {{size: 16}}}}\n", encoding="utf-8")
    # the same pictures by another name: what is written is what was read last
    assert split("b", recipe) == "train"
    assert split("shapes", "shapes", "--split", "val", "data.val_size=6", "data.train_size=6") == "val"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--size", "18"), "--size 18: vit_tiny_patch16_224 has patches of 4 pixels, which do not divide it. Use 16"),
        (("--size", "0"), "--size 0: expected at least 1"),
        (("--batch-size", "0"), "--batch-size 0: expected at least 1"),
        (("--crop-pct", "2"), "--crop-pct: expected a number greater than 0 and no more than 1, found 2.0"),
    ],
)
def test_impossible_options_are_refused(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], message: str
) -> None:
    assert embed(home, tmp_path, *options) == 2
    assert message in capsys.readouterr().err


def test_another_encoder_is_refused(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert embed(home, tmp_path / "out") == 0
    encoder = load_encoder(home / "export")
    torch.nn.init.ones_(encoder.vit.norm.bias)
    export_encoder(tmp_path / "other", encoder, PREPARED, "card", {})
    assert main(["embed", str(tmp_path / "other"), str(home / "pictures"), str(tmp_path / "out"), *SMALL]) == 2
    assert "encoder.weights was" in capsys.readouterr().err


def test_the_data_of_a_recipe(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Either split, unlabelled pictures too; normalised otherwise than the encoder it is refused."""
    recipe = tmp_path / "recipe.yaml"
    data = (
        f"data: {{name: files, path: {home}/pictures, train: a, val: b, mean: [0.5, 0.4, 0.3], std: [0.2, 0.3, STD]}}"
    )
    arguments = ["embed", str(home / "export"), str(recipe), str(tmp_path / "out"), *SMALL]
    recipe.write_text(
        f"name: it\nencoder: nowhere\n{data.replace('STD', '0.5')}\ntask: {{view: {{size: 16}}}}\n", encoding="utf-8"
    )
    assert main([*arguments, "--split", "train"]) == 2
    assert "trained with std [0.2, 0.3, 0.4]" in capsys.readouterr().err
    assert main([*arguments, "--split", "train", "data.std=[0.2, 0.3, 0.4]"]) == 0
    found = whole(tmp_path / "out")
    assert len(found.keys) == 11 and found.label.unique().tolist() == [-1]


def test_parquet_without_pyarrow(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    assert embed(home, tmp_path, "--format", "parquet") == 2
    assert "pip install pyarrow" in capsys.readouterr().err
