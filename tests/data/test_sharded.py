"""Indexes by shard give the images that one index of all tars gives, and few of them are open."""

from __future__ import annotations

import io
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from pictured import pack
from PIL import Image

from unlabeled.data.archive import listing, sharded
from unlabeled.data.archive.listing import IndexFolder
from unlabeled.data.archive.sharded import Sharded
from unlabeled.data.batch.loader import ViewDataset
from unlabeled.data.batch.sampler import Position
from unlabeled.data.opened import Opened
from unlabeled.data.source import Source
from unlabeled.data.sources.files import Config as Files
from unlabeled.data.sources.mixture import Config as Mixture
from unlabeled.data.view.views import View
from unlabeled.errors import BadSample, UserError

LONG_AGO = 1_000_000_000


def picture(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((9, 8, 3), value % 251, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def pack_long_ago(file: Path, members: dict[str, bytes]) -> None:
    os.utime(pack(file, members), (LONG_AGO, LONG_AGO))


@pytest.fixture
def tars(tmp_path: Path) -> Path:
    """Five tars with 4, 1, 0, 6 and 3 images of classes that are not the same in each, and files of labels."""
    number = 0
    (tmp_path / "tars").mkdir()
    for shard, classes in enumerate((["b", "b", "a10", "a2"], ["c"], [], ["a2"] * 3 + ["d"] * 3, ["b", "d", "a10"])):
        members: dict[str, bytes] = {"read.me": b""}
        for label in classes:
            members[f"train/{label}/{number:03d}.png"] = picture(number)
            members[f"train/{label}/{number:03d}.cls"] = str(number % 3).encode()
            number += 1
        pack_long_ago(tmp_path / "tars" / f"{shard}.tar", members)
    return tmp_path / "tars"


def opened(folder: Path, index: Path | None = None, **fields: object) -> Source:
    """As a new program opens it."""
    data = {"path": str(folder / "*.tar"), "train": "train", **fields}
    return Opened(Files.model_validate(data), IndexFolder(index)).train


def same(one: Source, other: Source) -> None:
    assert (len(one), one.classes) == (len(other), other.classes)
    for i in range(len(one)):
        assert (one.key(i), one.name(i), one.label(i)) == (other.key(i), other.name(i), other.label(i))
        assert one.read(i) == other.read(i) and (one.image(i) == other.image(i)).all()
    assert one.labels.tolist() == other.labels.tolist() == [one.label(i) for i in range(len(one))]
    assert one.marks is not None and other.marks is not None and one.marks.tolist() == other.marks.tolist()


@pytest.mark.parametrize("fields", [{}, {"labels": "cls"}, {"train": "train/a2"}, {"stray": "keep", "train": ""}])
def test_it_is_the_index_of_all_tars(tars: Path, tmp_path: Path, fields: dict[str, str]) -> None:
    whole = opened(tars, **fields)
    for index in (None, tmp_path / "index", tmp_path / "index"):
        same(whole, opened(tars, index, by_shard={}, **fields))
    assert list((tmp_path / "index").rglob("*.safetensors"))


def test_pinned_classes(tars: Path, tmp_path: Path) -> None:
    (tmp_path / "classes").write_text("d\nc\nb\na2\na10\nnobody\n", encoding="utf-8")
    fields = {"classes": str(tmp_path / "classes")}
    same(opened(tars, **fields), opened(tars, by_shard={}, **fields))


def test_shards_begin_where_tars_do(tars: Path) -> None:
    assert opened(tars, by_shard={}).shards.tolist() == [0, 4, 5, 5, 11, 14]
    assert opened(tars).shards.tolist() == [0, 4, 5, 11, 14]


def test_a_mixture_of_both_kinds(tars: Path) -> None:
    def mixed(**fields: object) -> Source:
        parts = [
            {"name": "files", "path": str(tars / "*.tar"), "train": train, **fields} for train in ("train/a2", "train")
        ]
        return Opened(Mixture.model_validate({"sources": parts, "weights": [1, 1]})).train

    one, other = mixed(), mixed(by_shard={})
    labels = [other.label(i) for i in range(len(other))]
    assert "labels" not in other.__dict__, "not put together for one image"
    assert one.labels.tolist() == labels == other.labels.tolist()
    assert one.classes == other.classes and one.shards[-1] == other.shards[-1] == 28


def test_samples_are_the_same(tars: Path) -> None:
    views = [View(size=8, scale=(0.2, 1.0))]
    datasets = [ViewDataset(source, views, 4, seed=0) for source in (opened(tars), opened(tars, by_shard={"open": 1}))]
    for position in (Position(0, 13), Position(1, 0), Position(1, 4)):
        one, other = (dataset.__getitems__([position])[0] for dataset in datasets)
        assert (one.crops[0].pixels == other.crops[0].pixels).all()
        assert (one.label, one.index) == (other.label, other.index)
    assert "labels" not in datasets[1].source.__dict__


def test_few_indexes_are_open(tars: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, read = opened(tars, tmp_path / "index", by_shard={"open": 2}), []
    real = listing.read
    monkeypatch.setattr(listing, "read", lambda file, asked: read.append(file.name) or real(file, asked))
    for i in (0, 1, 3, 4, 0, 13, 12):
        source.read(i)
    assert len(read) == 3, "0 and 4 are of two tars, 13 of a third"
    source.read(4)
    assert len(read) == 4, "the index longest unused was closed"


def test_the_next_start_and_other_processes_scan_nothing(
    tars: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = opened(tars, tmp_path / "index", by_shard={})
    monkeypatch.setattr(sharded, "scan_places", _no_scan)
    again = opened(tars, tmp_path / "index", by_shard={})
    assert again.fingerprint() == first.fingerprint()
    same(first, again)
    same(first, pickle.loads(pickle.dumps(again)))
    (tmp_path / "index" / "by_shard" / "train.json").write_text("{", encoding="utf-8")
    assert opened(tars, tmp_path / "index", by_shard={}).fingerprint() == first.fingerprint(), "made of the shards' own"


def _no_scan(*_: object) -> None:
    raise AssertionError("looked for pictures again")


def test_a_damaged_index_is_made_anew(tars: Path, tmp_path: Path) -> None:
    first = opened(tars, tmp_path / "index", by_shard={})
    files = sorted((tmp_path / "index").rglob("*.safetensors"))
    files[0].write_bytes(files[0].read_bytes()[:-1] + b"?")
    files[1].unlink()
    same(first, opened(tars, tmp_path / "index", by_shard={}))


def test_a_tar_that_changes_is_read_anew_or_refused(tars: Path, tmp_path: Path) -> None:
    first = opened(tars, tmp_path / "index", by_shard={})
    print_, size = first.fingerprint(), len(first)
    pack_long_ago(tars / "1.tar", {"train/c/new.png": picture(99), "train/c/newer.png": picture(98)})
    os.utime(tars / "1.tar", (LONG_AGO + 1, LONG_AGO + 1))
    with pytest.raises(BadSample, match=r"has changed since it was indexed"):
        first.read(4)
    now = opened(tars, tmp_path / "index", by_shard={})
    assert len(now) == size + 1 and now.fingerprint() != print_
    same(opened(tars), now)
    with pytest.raises(UserError, match=r"1\.tar' has changed since it was indexed"):
        pickle.loads(pickle.dumps(first)).read(4)  # its index is no longer kept


def test_indexes_are_copied_to_the_machines_own_disk(tars: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"
    opened(tars, tmp_path / "index", by_shard={})
    source = opened(tars, tmp_path / "index", by_shard={"folder": str(own), "open": 1})
    assert not list(own.rglob("*.safetensors")), "not before it is opened"
    source.read(0)
    [copied] = own.rglob("*.safetensors")
    shutil.rmtree(tmp_path / "index" / "by_shard" / "train")
    source.read(4)
    source.read(0)
    assert copied.exists()


@pytest.mark.parametrize(("stray", "count"), [("skip", 14), ("keep", 16)])
def test_tars_without_classes_beside_others(tars: Path, stray: str, count: int) -> None:
    pack_long_ago(tars / "7.tar", {"train/x.png": picture(1), "train/y.png": picture(2)})
    with pytest.raises(UserError, match=r"others without, such as '.*7.tar'. Set data.stray"):
        opened(tars, by_shard={})
    same(opened(tars, stray=stray), opened(tars, stray=stray, by_shard={}))
    assert len(opened(tars, stray=stray, by_shard={})) == count


def test_what_it_is_not_for(tars: Path) -> None:
    with pytest.raises(UserError, match=r"data.by_shard is for tars, and .* is a folder. Set data.by_shard=null"):
        Opened(Files.model_validate({"path": str(tars), "by_shard": {}})).pictures("train")
    with pytest.raises(UserError, match=r"no pictures in .* under 'nowhere'"):
        opened(tars, train="nowhere", by_shard={})


def test_sizes_of_many_images_are_not_put_together(tars: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharded, "MARKED", 13)
    source = opened(tars, by_shard={})
    assert isinstance(source, Sharded) and source.marks is None
