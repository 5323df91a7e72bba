"""Folders and tars of pictures: what is found, in which order, under which labels, and what is refused."""

from __future__ import annotations

import io
import os
import pickle
import socket
import tarfile
import time
from collections.abc import Callable
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pictured import pack as pack_in_format
from PIL import Image
from pydantic import ValidationError

from unlabeled.data.archive.index import Index, IndexBuilder
from unlabeled.data.archive.pictures import Pictures
from unlabeled.data.archive.tar import scan_tars
from unlabeled.data.opened import Opened
from unlabeled.data.sources.files import Config as Files
from unlabeled.errors import BadSample, UserError

SHARED = Path(__file__).parents[2] / ".." / "shared" / "datasets"

pack = partial(pack_in_format, format=tarfile.USTAR_FORMAT)


def picture(number: int = 0) -> bytes:
    """A JPEG whose size and colour depend on the number."""
    buffer = io.BytesIO()
    Image.new("RGB", (8 + number, 8), (5 * number % 256, 100, 200)).save(buffer, "JPEG")
    return buffer.getvalue()


def fill(root: Path, names: list[str]) -> Path:
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(picture(number))
    return root


def names(source: Pictures, root: Path) -> list[str]:
    return [os.path.relpath(source.key(i), root) for i in range(len(source))]


def open_train(path: Path, **fields: Any) -> Pictures:
    return Opened(Files(path=str(path), **fields)).train


SPLIT = ["train/dog/b.jpg", "train/cat/c.JPEG", "train/cat/a.jpg", "train/dog/deep/er/d.jpg", "val/dog/x.jpg"]


def test_a_folder_is_read_in_order_of_its_paths_bytes(tmp_path: Path) -> None:
    odd = ["a/x.jpg", "a-b/x.jpg", "a.jpg", "a0.jpg", "B.jpg", "a/x/y.png", "é.jpg", "a/x.y/z.tiff"]
    fill(tmp_path, odd)
    os.close(os.open(os.fsencode(tmp_path) + b"/not-utf8-\xff.jpg", os.O_CREAT))
    found = names(open_train(tmp_path, stray="keep"), tmp_path)
    assert found == [*sorted(odd[:6] + odd[7:], key=os.fsencode), "not-utf8-\\xff.jpg", "é.jpg"]


def test_classes_are_the_first_folders_in_order_of_name(tmp_path: Path) -> None:
    source = open_train(fill(tmp_path, SPLIT), train="train")
    assert source.classes == ("cat", "dog")
    assert names(source, tmp_path / "train") == ["cat/a.jpg", "cat/c.JPEG", "dog/b.jpg", "dog/deep/er/d.jpg"]
    assert source.labels.tolist() == [0, 0, 1, 1] and source.labels.dtype == np.int64
    assert [tuple(source.image(i).shape) for i in range(4)] == [(3, 8, 10), (3, 8, 9), (3, 8, 8), (3, 8, 11)]


@pytest.mark.parametrize("packed", [False, True])
def test_pictures_beside_class_folders_are_named_and_left_out_only_when_told(packed: bool, tmp_path: Path) -> None:
    home = fill(tmp_path / "x", [*SPLIT, "train/stray.jpg", "train/zoo.jpg"])
    if packed:
        with tarfile.open(tmp_path / "x.tar", "w") as tar:
            tar.add(home, "")
        home = tmp_path / "x.tar"
    with pytest.raises(
        UserError, match=r"x(\.tar)?/train' has .* beside them: 'stray\.jpg', 'zoo\.jpg'\. .*data\.stray=skip"
    ):
        open_train(home, train="train")
    skipped = open_train(home, train="train", stray="skip")
    assert names(skipped, home / "train") == ["cat/a.jpg", "cat/c.JPEG", "dog/b.jpg", "dog/deep/er/d.jpg"]
    assert (
        skipped.classes == ("cat", "dog")
        and skipped.labels.tolist() == [0, 0, 1, 1]
        and skipped.skipped == {"beside the folders": 2}
    )
    assert [skipped.image(i).shape[2] for i in range(4)] == [10, 9, 8, 11]
    kept = open_train(home, train="train", stray="keep")
    assert len(kept) == 6 and kept.classes == ("cat", "dog") and kept.labels.tolist() == [0, 0, 1, 1, -1, -1]


def test_pictures_without_any_folder_are_unlabelled(tmp_path: Path) -> None:
    source = open_train(fill(tmp_path, ["a.jpg", "b.jpg"]))
    assert source.classes == () and source.labels.tolist() == [-1, -1]


def test_composed_and_decomposed_names_are_one_class(tmp_path: Path) -> None:
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    fill(tmp_path, [f"t/{composed}/1.jpg", f"t/{decomposed}/2.jpg", "t/tea/3.jpg", f"v/{decomposed}/1.jpg"])
    data = Files(path=str(tmp_path), train="t", val="v")
    assert Opened(data).train.classes == Opened(data).val.classes == (composed, "tea")
    assert Opened(data).train.labels.tolist() == [0, 0, 1] and Opened(data).val.labels.tolist() == [0]


def test_what_is_hidden_or_no_picture_is_counted(tmp_path: Path) -> None:
    fill(
        tmp_path,
        ["a/1.jpg", "a/._1.jpg", ".git/2.jpg", ".hidden.png", "a/3.jpg.txt", "a/model.pkl", "README"],
    )
    os.mkfifo(tmp_path / "pipe.jpg")
    source = open_train(tmp_path)
    assert names(source, tmp_path) == ["a/1.jpg"] and source.skipped == {
        "hidden": 3,
        ".txt": 1,
        ".pkl": 1,
        "without an ending": 1,
        "pipes, sockets and devices": 1,
    }

    members = {
        "a/1.jpg": b"",
        "a/._1.jpg": b"",
        ".git/2.jpg": b"",
        "a/model.pkl": b"cos\nsystem\n",
        "b/3.json": b"",
    }
    tar = open_train(pack(tmp_path / "x.tar", members))
    assert len(tar) == 1 and tar.skipped == {"hidden": 2, ".pkl": 1, ".json": 1}
    assert open_train(tmp_path / "x.tar", train="a").skipped == {"hidden": 1, ".pkl": 1}


def test_a_symlinked_folder_is_read_once(tmp_path: Path) -> None:
    fill(tmp_path, ["data/a/1.jpg", "data/b/2.jpg", "elsewhere/3.jpg"])
    (tmp_path / "data/a/loop").symlink_to(tmp_path / "data")
    (tmp_path / "data/a/self").symlink_to(".")
    (tmp_path / "data/c").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data/d").symlink_to(tmp_path / "elsewhere")
    source = open_train(tmp_path / "data")
    assert names(source, tmp_path / "data") == ["a/1.jpg", "b/2.jpg", "c/3.jpg"]


def test_a_tar_is_its_folder(tmp_path: Path) -> None:
    fill(tmp_path / "folder", SPLIT)
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        tar.add(tmp_path / "folder", ".")  # names start with "./", order is the file system's
    for split in ("train", "val"):
        files = {"train": "train", "val": "val"}
        a = Opened(Files(path=str(tmp_path / "folder"), **files)).split(split)
        b = Opened(Files(path=str(tmp_path / "x.tar"), **files)).split(split)
        assert names(a, tmp_path / "folder") == names(b, tmp_path / "x.tar")
        assert a.classes == b.classes and a.labels.tolist() == b.labels.tolist()
        assert all(torch.equal(a.image(i), b.image(i)) for i in range(len(a)))
        assert a.fingerprint() == b.fingerprint()


def test_the_fingerprint_knows_names_sizes_and_labels_but_not_the_place(tmp_path: Path) -> None:
    prints = [open_train(fill(tmp_path / str(i), SPLIT), train="train").fingerprint() for i in range(2)]
    assert prints[0] == prints[1]
    (tmp_path / "0/train/cat/a.jpg").rename(tmp_path / "0/train/cat/b.jpg")
    (tmp_path / "1/train/cat/a.jpg").write_bytes(picture(0) + b"longer")
    prints += [open_train(tmp_path / str(i), train="train").fingerprint() for i in range(2)]
    (tmp_path / "1/train/cow").mkdir()
    (tmp_path / "1/train/cat/a.jpg").rename(tmp_path / "1/train/cow/a.jpg")
    prints.append(open_train(tmp_path / "1", train="train").fingerprint())
    assert len(set(prints)) == 4


def test_val_is_numbered_as_train(tmp_path: Path) -> None:
    fill(tmp_path, ["t/ant/1.jpg", "t/bee/2.jpg", "t/cat/3.jpg", "v/cat/1.jpg", "v/bee/2.jpg"])
    val = Opened(Files(path=str(tmp_path), train="t", val="v")).val
    assert val.classes == ("ant", "bee", "cat") and val.labels.tolist() == [1, 2]


def test_val_keeps_its_own_classes_where_train_has_none(tmp_path: Path) -> None:
    fill(tmp_path, ["t/1.jpg", "v/cat/1.jpg", "v/bee/2.jpg"])
    val = Opened(Files(path=str(tmp_path), train="t", val="v")).val
    assert val.classes == ("bee", "cat") and val.labels.tolist() == [0, 1]


def test_val_may_lie_elsewhere(tmp_path: Path) -> None:
    fill(tmp_path / "a", ["cat/0.png", "dog/0.png"])
    fill(tmp_path / "b", ["x/dog/1.png", "y/cat/2.png"])
    data = Files(path=str(tmp_path / "a"), val_path=str(tmp_path / "b"), val="x")
    assert data.has_val and [Opened(data).val.key(0), *Opened(data).val.labels] == [str(tmp_path / "b/x/dog/1.png"), 1]
    everything = Files(path=str(tmp_path / "a"), val_path=str(tmp_path / "a"))
    assert everything.has_val and len(Opened(everything).val) == 2


def test_a_class_that_train_lacks_is_named(tmp_path: Path) -> None:
    fill(tmp_path, ["t/ant/1.jpg", "v/ant/1.jpg", "v/wolf/2.jpg", "loose/1.jpg"])
    with pytest.raises(UserError, match="'wolf'"):
        _ = Opened(Files(path=str(tmp_path), train="t", val="v")).val
    with pytest.raises(UserError, match="no labels"):
        _ = Opened(Files(path=str(tmp_path), train="t", val="loose")).val
    with pytest.raises(UserError, match="val is null"):
        _ = Opened(Files(path=str(tmp_path), train="t")).val


def test_nothing_to_open_is_said_clearly(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        open_train(tmp_path / "missing")
    with pytest.raises(UserError, match="does not exist"):
        open_train(tmp_path / "shard-*.tar")
    (tmp_path / "notes.txt").write_text("no picture", encoding="utf-8")
    with pytest.raises(
        UserError, match=r"no pictures in .*; 1 file is not read: 1 \.txt\. Expected files ending in \.jpg"
    ):
        open_train(tmp_path)
    with pytest.raises(UserError, match="no tar archive"):
        open_train(tmp_path / "notes.txt")


def test_a_wrong_prefix_names_those_that_exist(tmp_path: Path) -> None:
    fill(tmp_path / "folder", SPLIT)
    pack(tmp_path / "x.tar", dict.fromkeys(["train/a/1.jpg", "val/a/1.jpg", "train_masks/a/1.jpg"], b""))
    with pytest.raises(UserError, match="under 'trian'; it has 'train', 'val'"):
        open_train(tmp_path / "folder", train="trian")
    with pytest.raises(UserError, match="under 'tr'; it has 'train', 'train_masks', 'val'"):
        open_train(tmp_path / "x.tar", train="tr")
    assert len(open_train(tmp_path / "x.tar", train="train/")) == 1


@pytest.mark.parametrize(
    "fields",
    [
        {"train": "../other"},
        {"train": "/abs"},
        {"val": "val"},
        {"train": "a", "val": "a/b"},
        {"max_pixels": 0},
        {"max_bad_fraction": float("nan")},
        {"std": (0.0, 1.0, 1.0)},
        {"mean": (float("inf"), 0.0, 0.0)},
        {"pth": "x"},
    ],
)
def test_impossible_fields_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Files(path="x", **fields)


def test_shards_are_read_in_order_of_name(tmp_path: Path) -> None:
    pack(tmp_path / "s-1.tar", {"train/b/1.jpg": picture(3), "train/a/1.jpg": picture(2)})
    pack(tmp_path / "s-0.tar", {"train/b/1.jpg": picture(0), "train/b/2.jpg": picture(1), "val/a/9.jpg": b""})
    source = open_train(tmp_path / "s-*.tar", train="train")
    expected = [
        "s-0.tar/train/b/1.jpg",
        "s-0.tar/train/b/2.jpg",
        "s-1.tar/train/a/1.jpg",
        "s-1.tar/train/b/1.jpg",
    ]
    assert names(source, tmp_path) == expected
    assert source.labels.tolist() == [1, 1, 0, 1]
    assert [source.image(i).shape[2] for i in range(4)] == [8, 9, 10, 11]


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_lie_where_tarfile_finds_them(tmp_path: Path, format: int) -> None:
    long = ["d" * 90 + "/" + "f" * 60 + ".jpg"]  # needs ustar's prefix, GNU's long name or a PAX path
    if format != tarfile.USTAR_FORMAT:
        long += ["x" * 300 + ".jpg", "d/" * 200 + "ü.jpg"]
    path = pack(tmp_path / "x.tar", {f: picture(i) for i, f in enumerate(["z.jpg", *long, "a.jpg"])}, format=format)
    _, [(index, _)] = scan_tars([str(path)], [""])
    with tarfile.open(path) as tar:
        expected = sorted((os.fsencode(m.name), m.offset_data, m.size) for m in tar)
    assert [(index.name(i), index.starts[i], index.sizes[i]) for i in range(len(index))] == expected
    assert open_train(path, stray="keep").read(0) == picture(len(long) + 1)


def test_sizes_too_large_for_octal_are_understood(tmp_path: Path) -> None:
    path = tmp_path / "big.tar"
    with open(path, "wb") as file:  # sparse on the disk
        for name, size in (("a.jpg", 9 << 30), ("b.jpg", 5)):
            info = tarfile.TarInfo(name)
            info.size = size
            file.write(info.tobuf(tarfile.GNU_FORMAT))
            file.seek(-(-size // 512) * 512, os.SEEK_CUR)
        file.write(bytes(1024))
    _, [(index, _)] = scan_tars([str(path)], [""])
    assert index.sizes.tolist() == [9 << 30, 5] and index.starts.tolist() == [512, (9 << 30) + 1024]


def test_real_archives_are_read_as_tarfile_reads_them() -> None:
    path = SHARED / "weizmann_horses_seg.tar"
    if not path.exists():
        pytest.skip(f"{path} is not here")
    _, [(index, _)] = scan_tars([str(path)], [""])
    with tarfile.open(path) as tar:
        expected = sorted((os.fsencode(m.name), m.offset_data, m.size) for m in tar if m.isreg())
    assert [(index.name(i), index.starts[i], index.sizes[i]) for i in range(len(index))] == expected


def hostile(name: str, kind: bytes = tarfile.REGTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, "../../etc/passwd"
    return info


@pytest.mark.parametrize(
    ("info", "problem"),
    [
        (hostile("/etc/cron.d/x.jpg"), "absolute"),
        (hostile("a/../../x.jpg"), "climbs out"),
        (hostile("../x.pkl"), "climbs out"),
        (hostile("a/x.jpg", tarfile.SYMTYPE), "is a link to"),
        (hostile("a/x.jpg", tarfile.LNKTYPE), "is a link to"),
        (hostile("a/x.jpg", tarfile.CHRTYPE), "neither"),
        (hostile("a/x.jpg", tarfile.BLKTYPE), "neither"),
        (hostile("a/x.jpg", tarfile.FIFOTYPE), "neither"),
        (hostile("a/x.jpg", tarfile.GNUTYPE_SPARSE), "neither"),
    ],
)
def test_unsafe_members_are_refused_by_shard_and_name(tmp_path: Path, info: tarfile.TarInfo, problem: str) -> None:
    path = pack(tmp_path / "x.tar", {"good.jpg": picture()})
    with tarfile.open(path, "a") as tar:
        tar.addfile(info)
    with pytest.raises(UserError, match=problem) as error:
        open_train(path)
    assert "x.tar" in str(error.value) and info.name in str(error.value) and "at byte 1536" in str(error.value)
    assert sorted(os.listdir(tmp_path)) == ["x.tar"]


def damaged(change: Callable[[bytearray], bytearray]) -> Callable[[Path], Path]:
    """A tar of two pictures of under 1 kB, headers at 0 and 1536, end mark at 3072, then changed."""

    def make(folder: Path) -> Path:
        path = pack(folder / "x.tar", {"a.jpg": picture(1), "b.jpg": picture(2)})
        path.write_bytes(change(bytearray(path.read_bytes())))
        return path

    return make


def overwrite(at: int, data: bytes) -> Callable[[bytearray], bytearray]:
    return lambda tar: tar[:at] + data + tar[at + len(data) :]


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (damaged(lambda tar: tar[:2100]), "truncated .* at byte 1536"),
        (damaged(lambda tar: tar[:1700]), "truncated.* byte 1536"),
        (damaged(lambda tar: tar[:3072]), "truncated.* byte 3072"),
        (damaged(lambda tar: tar[:0]), "no tar archive"),
        (damaged(overwrite(1540, b"!")), "corrupt.* byte 1536"),
        (damaged(lambda tar: tar + tar), "goes on after its end mark at byte 3072"),
        (damaged(overwrite(1536, b"a")), "corrupt"),
        (lambda folder: pack(folder / "x.tar", {}), "no pictures"),
    ],
)
def test_a_damaged_archive_is_refused_by_shard_and_offset(
    tmp_path: Path, make: Callable[[Path], Path], problem: str
) -> None:
    path = make(tmp_path)
    with pytest.raises(UserError, match=problem) as error:
        open_train(path)
    assert "x.tar" in str(error.value)


@pytest.mark.parametrize("record", [b"0 path=x\n", b"99999 path=x\n", b"11 size=-1\n", b"path", b"\0" * 20])
def test_broken_pax_records_are_refused(tmp_path: Path, record: bytes) -> None:
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        info = hostile("pax", tarfile.XHDTYPE)
        info.size = len(record)
        tar.addfile(info, io.BytesIO(record))
        tar.addfile(tarfile.TarInfo("a.jpg"))
    with pytest.raises(UserError, match="corrupt: no PAX records at byte 512"):
        open_train(path)


def test_a_second_member_of_the_same_name_is_refused(tmp_path: Path) -> None:
    path = pack(tmp_path / "x.tar", {"a/1.jpg": picture(), "b.jpg": picture(), "./a/1.jpg": picture()})
    with pytest.raises(UserError, match=r"x\.tar.* second member 'a/1\.jpg' at byte 3072"):
        open_train(path)


@pytest.mark.parametrize("compression", ["gz", "bz2", "xz"])
def test_a_compressed_archive_is_refused(tmp_path: Path, compression: str) -> None:
    with tarfile.open(tmp_path / "x.tar", f"w:{compression}") as tar:  # type: ignore[call-overload]
        tar.addfile(tarfile.TarInfo("a.jpg"))
    with pytest.raises(UserError, match="is compressed with"):
        open_train(tmp_path / "x.tar")


def expect_bad(source: Pictures, i: int, reason: str) -> None:
    with pytest.raises(BadSample, match=reason) as bad:
        source.image(i)
    assert bad.value.key == source.key(i)


def test_files_that_fail_after_indexing_are_bad_samples(tmp_path: Path) -> None:
    fill(tmp_path, [f"{i}.jpg" for i in range(7)])
    (tmp_path / "1.jpg").write_bytes(b"")
    (tmp_path / "2.jpg").write_bytes(picture()[:-40])
    (tmp_path / "7.jpg").symlink_to("nowhere")
    (tmp_path / "8.jpg").symlink_to("/proc/self/mem")  # there, and unreadable even for root
    source = open_train(tmp_path)
    (tmp_path / "3.jpg").unlink()
    (tmp_path / "4.jpg").write_bytes(picture(9) + b"longer")
    (tmp_path / "5.jpg").unlink()
    (tmp_path / "5.jpg").mkdir()
    reasons = ["empty", "truncated", "No such file", "has changed", "Is a directory"]
    for i, reason in enumerate(reasons, start=1):
        expect_bad(source, i, reason)
    expect_bad(source, 7, "No such file")
    expect_bad(source, 8, "cannot be read")
    assert source.image(0).shape == (3, 8, 8) and source.image(6).shape == (3, 8, 14)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_a_bad_sample(tmp_path: Path) -> None:
    fill(tmp_path, ["a.jpg"])
    (tmp_path / "a.jpg").chmod(0)
    expect_bad(open_train(tmp_path), 0, "Permission denied")


def test_an_archive_that_changes_after_indexing_gives_bad_samples(tmp_path: Path) -> None:
    path = pack(tmp_path / "x.tar", {"a.jpg": picture(1), "b.jpg": picture(2)})
    source = open_train(path)
    assert source.image(1).shape == (3, 8, 10)
    pack(path, {"b.jpg": picture(2), "a.jpg": picture(1)})  # the same size, and offsets that no longer fit
    os.utime(path, (time.time() + 9, time.time() + 9))
    expect_bad(source, 1, "has changed")
    missing = pickle.loads(pickle.dumps(open_train(pack(tmp_path / "y.tar", {"a.jpg": picture()}))))
    (tmp_path / "y.tar").unlink()
    expect_bad(missing, 0, "No such file")


def test_running_out_of_descriptors_is_not_the_pictures_fault(tmp_path: Path) -> None:
    import resource

    source = open_train(fill(tmp_path, ["a.jpg"]))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    held = socket.socket()
    resource.setrlimit(resource.RLIMIT_NOFILE, (held.fileno(), hard))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            source.read(0)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        held.close()


def _sum(source: Pictures, i: int) -> int:
    return int(source.image(i).sum())


def test_processes_read_a_tar_at_once(tmp_path: Path) -> None:
    source = open_train(pack(tmp_path / "x.tar", {f"{i}.jpg": picture(i) for i in range(9)}))
    expected = [_sum(source, i) for i in range(9)]  # this process has the archive open now
    with get_context("fork").Pool(2) as pool:
        assert pool.starmap(_sum, [(source, i) for i in range(9)] * 5) == expected * 5
    copy = pickle.loads(pickle.dumps(source))  # as a spawned worker receives it
    assert [_sum(copy, i) for i in range(9)] == expected


def test_more_shards_than_descriptors_held(tmp_path: Path) -> None:
    for i in range(140):
        pack(tmp_path / f"{i:03}.tar", {"a.jpg": picture(i)})
    source = open_train(tmp_path / "*.tar")
    before = len(os.listdir("/proc/self/fd"))
    assert [source.image(i).shape[2] for i in [*range(140), 0, 139]] == [8 + i for i in [*range(140), 0, 139]]
    assert len(os.listdir("/proc/self/fd")) <= before + 128


def test_a_picture_stays_under_200_bytes() -> None:
    builder = IndexBuilder()
    for i in range(200_000):
        builder.add_member(b"n%08d/a_photograph_of_something_%08d.jpg" % (i // 1000, i), 0, 4096 * i, 4000)
    index = builder.build()
    classes, labels = index.folders()
    assert len(index) == 200_000 and len(classes) == 200
    assert index.name(199_999) == b"n00000199/a_photograph_of_something_00199999.jpg"
    columns = [getattr(index, column) for column in Index.COLUMNS]
    assert sum(column.nbytes for column in [*columns, labels]) < 200 * len(index)


# ---------------------------------------------------------------- files beside pictures, as WebDataset has them

SHARD = {
    "000/a.jpg": picture(0),
    "000/a.cls": b"7\n",
    "000/a.json": b'{"caption": "x", "kind": "dog"}',
    "000/b.left.jpg": picture(1),
    "000/b.cls": b"10",
    "000/b.json": b'{"kind": "cat"}',
    "000/c.png": picture(2),
}


@pytest.mark.parametrize(
    ("labels", "classes", "numbers"),
    [("cls", ("7", "10"), [0, 1, -1, 0]), ("json:kind", ("cat", "dog"), [1, 0, -1, 1]), ("folders", ("000",), [0] * 4)],
)
def test_labels_lie_beside_pictures(labels: str, classes: tuple[str, ...], numbers: list[int], tmp_path: Path) -> None:
    pack(tmp_path / "s-0.tar", SHARD)
    pack(tmp_path / "s-1.tar", {"000/a.jpg": picture(3), "000/a.cls": b"7", "000/a.json": b'{"kind": "dog"}'})
    source = open_train(tmp_path / "s-*.tar", labels=labels)
    assert source.classes == classes and source.labels.tolist() == numbers
    assert [Path(source.key(i)).name for i in range(4)] == ["a.jpg", "b.left.jpg", "c.png", "a.jpg"]
    assert source.image(3).shape[-1] == 8 + 3


def test_labels_beside_pictures_that_cannot_be_read(tmp_path: Path) -> None:
    pack(tmp_path / "x.tar", {**SHARD, "000/a.json": b"[1]"})
    with pytest.raises(UserError, match=r"x\.tar': '000/a\.json' holds no kind"):
        open_train(tmp_path / "x.tar", labels="json:kind")
    pack(tmp_path / "y.tar", {**SHARD, "000/a.cls": b"\xff"})
    with pytest.raises(UserError, match=r"'000/a\.cls' holds no text"):
        open_train(tmp_path / "y.tar", labels="cls")
    pack(tmp_path / "z.tar", {**SHARD, "000/a.cls": bytes(2_000_000)})
    with pytest.raises(UserError, match="has 2,000,000 bytes; expected a label"):
        open_train(tmp_path / "z.tar", labels="cls")
    fill(tmp_path / "folder", ["a.jpg"])
    with pytest.raises(UserError, match="is for tars"):
        open_train(tmp_path / "folder", labels="cls")
    with pytest.raises(ValidationError, match="labels"):
        Files(path="x.tar", labels="json:")
