"""Tables, arrays, Hugging Face and torchvision data sets, mixtures: what was put in comes out."""

from __future__ import annotations

import csv
import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from unlabeled.data.opened import Opened
from unlabeled.data.sources.arrays import Config as Arrays
from unlabeled.data.sources.files import Config as Files
from unlabeled.data.sources.mixture import Config as Mixture
from unlabeled.data.sources.table import Config as Table
from unlabeled.data.sources.torchvision import Config as TorchVision
from unlabeled.errors import BadSample, UserError

datasets = pytest.importorskip("datasets")
parquet = pytest.importorskip("pyarrow.parquet")


def pixels(number: int, side: int = 8) -> np.ndarray:
    """Noise [side, side, 3] that depends on the number."""
    return np.random.default_rng(number).integers(256, size=(side, side, 3), dtype=np.uint8)


def png(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels(number)).save(buffer, "PNG")
    return buffer.getvalue()


def shown(source: Any, i: int) -> np.ndarray:
    """A picture of a source [H, W, 3]."""
    return source.image(i).permute(1, 2, 0).numpy()


def fill(root: Path, count: int) -> list[str]:
    """Pictures `p/0.png` and so on."""
    (root / "p").mkdir(parents=True, exist_ok=True)
    for number in range(count):
        (root / f"p/{number}.png").write_bytes(png(number))
    return [f"p/{number}.png" for number in range(count)]


def same_after_pickling(source: Any) -> None:
    again = pickle.loads(pickle.dumps(source))
    assert torch.equal(again.image(1), source.image(1)) and again.fingerprint() == source.fingerprint()


# ---------------------------------------------------------------- tables

ROWS = [("2", "cat", "train"), ("0", "dog", "train"), ("1", "cat", "test"), ("3", "", "train")]


def write_table(folder: Path, kind: str) -> Path:
    fill(folder, 4)
    rows = [(f"p/{number}.png", label, part) for number, label, part in ROWS]
    file = folder / f"table.{kind}"
    if kind == "parquet":
        columns = zip(*rows, strict=True)
        table = __import__("pyarrow").table(dict(zip(("file", "kind", "part"), map(list, columns), strict=True)))
        parquet.write_table(table, file)
        return file
    with file.open("w", newline="", encoding="utf-8-sig") as opened:
        writer = csv.writer(opened, delimiter="\t" if kind == "tsv" else ",")
        writer.writerows([("file", "kind", "part"), *rows])
    return file


@pytest.mark.parametrize("kind", ["csv", "tsv", "parquet"])
def test_a_table_lists_pictures_labels_and_splits(kind: str, tmp_path: Path) -> None:
    file = write_table(tmp_path, kind)
    config = Table(path=str(file), image="file", label="kind", split="part", val="test")
    train, val = Opened(config).train, Opened(config).val
    assert train.classes == val.classes == ("cat", "dog")
    assert train.labels.tolist() == [0, 1, -1] and val.labels.tolist() == [0]
    for i, number in enumerate((2, 0, 3)):
        assert np.array_equal(shown(train, i), pixels(number))
    assert train.key(1) == str(tmp_path / "p/0.png")
    same_after_pickling(train)


def test_paths_may_be_absolute_or_below_another_folder(tmp_path: Path) -> None:
    fill(tmp_path / "pictures", 2)
    (tmp_path / "t.csv").write_text(f"path\np/1.png\n{tmp_path}/pictures/p/0.png\nabsent.png\n", encoding="utf-8")
    source = Opened(Table(path=str(tmp_path / "t.csv"), root=str(tmp_path / "pictures"))).train
    assert source.classes == () and source.labels.tolist() == [-1, -1, -1]
    assert np.array_equal(shown(source, 0), pixels(1)) and np.array_equal(shown(source, 1), pixels(0))
    with pytest.raises(BadSample, match=r"absent\.png: cannot be read"):
        source.image(2)


@pytest.mark.parametrize(
    ("text", "fields", "problem"),
    [
        ("file\na.png\n", {}, r"has no column 'path'; it has \['file'\]"),
        ('path\n""\n', {}, "row 1 has nothing under 'path'"),
        ("path,l\na.png\n", {"label": "l"}, "line 2 has 1 values"),
        ("path,s\na.png,x\n", {"split": "s"}, r"no row of .* has s='train'; found \['x'\]"),
        ("", {}, "is empty"),
    ],
)
def test_tables_that_cannot_be_used(text: str, fields: dict[str, str], problem: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=problem):
        _ = Opened(Table(path=str(tmp_path / "t.csv"), **fields)).train  # type: ignore[arg-type]


def test_a_table_that_is_not_there_or_no_parquet(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read: No such file"):
        _ = Opened(Table(path=str(tmp_path / "t.csv"))).train
    (tmp_path / "t.parquet").write_text("path", encoding="utf-8")
    with pytest.raises(UserError, match="is no Parquet file"):
        _ = Opened(Table(path=str(tmp_path / "t.parquet"))).train


# ---------------------------------------------------------------- arrays


def test_arrays_of_every_layout(tmp_path: Path) -> None:
    stack = np.stack([pixels(number) for number in range(5)])
    np.save(tmp_path / "rgb.npy", stack)
    np.save(tmp_path / "first.npy", stack.transpose(0, 3, 1, 2))
    np.save(tmp_path / "grey.npy", stack[..., 0])
    np.save(tmp_path / "deep.npy", (stack[..., :1].astype(np.int32) * 257 - 100).clip(0).astype(np.uint16))
    np.save(tmp_path / "y.npy", np.array([10, 9, 10, 9, 9]))

    def opened(name: str, **fields: Any) -> Any:
        return Opened(Arrays(train=str(tmp_path / name), train_labels=str(tmp_path / "y.npy"), **fields)).train

    source = opened("rgb.npy")
    assert source.classes == ("9", "10") and source.labels.tolist() == [1, 0, 1, 0, 0]
    for i in range(5):
        assert np.array_equal(shown(source, i), stack[i])
        assert np.array_equal(shown(opened("first.npy", layout="NCHW"), i), stack[i])
        for name in ("grey.npy", "deep.npy"):
            assert np.array_equal(shown(opened(name), i), stack[i, ..., :1].repeat(3, -1))
    same_after_pickling(source)
    assert len(pickle.dumps(source)) < 1000, "pixels stay in the file"
    assert source.fingerprint() != opened("grey.npy").fingerprint()


def test_arrays_that_cannot_be_used(tmp_path: Path) -> None:
    np.save(tmp_path / "long.npy", np.zeros((2, 4, 4, 3), np.int64))
    np.save(tmp_path / "five.npy", np.zeros((2, 4, 4, 5), np.uint8))
    np.save(tmp_path / "objects.npy", np.array([object()]), allow_pickle=True)
    np.save(tmp_path / "x.npy", np.zeros((2, 4, 4, 3), np.uint8))
    with (tmp_path / "several.npy").open("wb") as file:
        np.savez(file, a=np.zeros(2))
    for name, shape in {"huge": 10**20, "true": True}.items():
        head = str({"descr": "|u1", "fortran_order": False, "shape": (2, shape)}).encode()
        (tmp_path / f"{name}.npy").write_bytes(b"\x93NUMPY\1\0" + len(head).to_bytes(2, "little") + head)
    for name, data in {"empty": b"", "zip": b"PK\3\4", "half": b"\x93NUMPY\1\0\2\0(("}.items():
        (tmp_path / f"{name}.npy").write_bytes(data)
    problems = {
        **dict.fromkeys(
            ("huge.npy", "true.npy", "empty.npy", "zip.npy", "half.npy", "several.npy"), "is no plain .npy file"
        ),
        "long.npy": "holds int64",
        "five.npy": "in the layout NHWC has 5 bands, expected 3",
        "objects.npy": "is no plain .npy file",
        "absent.npy": "cannot be read",
    }
    for name, problem in problems.items():
        with pytest.raises(UserError, match=problem):
            _ = Opened(Arrays(train=str(tmp_path / name))).train
    np.save(tmp_path / "y.npy", np.zeros(3))
    with pytest.raises(UserError, match=r"has labels \[3\] for 2 pictures"):
        _ = Opened(Arrays(train=str(tmp_path / "x.npy"), train_labels=str(tmp_path / "y.npy"))).train
    np.save(tmp_path / "y.npy", np.zeros(2, [("a", "i4")]))
    with pytest.raises(UserError, match="expected numbers or text"):
        _ = Opened(Arrays(train=str(tmp_path / "x.npy"), train_labels=str(tmp_path / "y.npy"))).train
    np.save(tmp_path / "y.npy", np.array([1, 2], np.longdouble))
    assert Opened(Arrays(train=str(tmp_path / "x.npy"), train_labels=str(tmp_path / "y.npy"))).train.classes == (
        "1",
        "2",
    )


# ---------------------------------------------------------------- Hugging Face


def hugging_face(folder: Path) -> Any:
    """Six rows in two splits: pictures as bytes, one of them missing."""
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["dog", "cat"])})
    cells: list[Any] = [{"bytes": png(number), "path": None} for number in range(5)]

    def rows(cells: list[Any], labels: list[int]) -> Any:
        return datasets.Dataset.from_dict({"image": cells, "label": labels}, features=features)

    parts = {"train": rows([*cells[:3], None], [1, 0, 1, 0]), "test": rows(cells[3:], [0, 1])}
    datasets.DatasetDict(parts).save_to_disk(folder / "saved")
    parts["test"].to_parquet(folder / "parquet" / "test-00000-of-00001.parquet")
    return datasets


def config_of(path: Path, **fields: Any) -> Any:
    from unlabeled.data.sources.huggingface import Config as HuggingFace

    return HuggingFace(path=str(path), label="label", **fields)


def test_hugging_face_from_disk(tmp_path: Path) -> None:
    hugging_face(tmp_path)
    config = config_of(tmp_path / "saved", val="test")
    train, val = Opened(config).train, Opened(config).val
    assert train.classes == ("dog", "cat") and train.labels.tolist() == [1, 0, 1, 0] and val.labels.tolist() == [0, 1]
    assert all(np.array_equal(shown(train, i), pixels(i)) for i in range(3))
    assert np.array_equal(shown(val, 1), pixels(4))
    with pytest.raises(BadSample, match="holds no picture here"):
        train.image(3)
    same_after_pickling(train)
    assert train.fingerprint() != val.fingerprint()


def test_hugging_face_from_parquet_and_from_a_folder_of_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hugging_face(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    source = Opened(config_of(tmp_path / "parquet", train="test")).train
    assert source.classes == ("dog", "cat") and np.array_equal(shown(source, 0), pixels(3))
    for name in ("b", "a"):
        (tmp_path / "folder" / "train" / name).mkdir(parents=True)
        for number in range(2):
            (tmp_path / "folder" / "train" / name / f"{number}.png").write_bytes(png(number))
    source = Opened(config_of(tmp_path / "folder")).train
    assert source.classes == ("a", "b") and sorted(source.labels.tolist()) == [0, 0, 1, 1]
    assert np.array_equal(shown(source, 1), pixels(1))


def test_hugging_face_that_cannot_be_had(tmp_path: Path) -> None:
    hugging_face(tmp_path)
    with pytest.raises(UserError, match=r"has no split 'dev'; it has \['test', 'train'\]"):
        _ = Opened(config_of(tmp_path / "saved", train="dev")).train
    with pytest.raises(UserError, match="has no column 'picture'"):
        _ = Opened(config_of(tmp_path / "saved", image="picture")).train
    with pytest.raises(UserError, match="cannot be had"):
        _ = Opened(config_of(tmp_path / "absent")).train


# ---------------------------------------------------------------- torchvision


def mnist(root: Path) -> dict[str, np.ndarray]:
    """The files of MNIST with pictures of noise, two digits in each split."""
    stacks = {}
    (root / "MNIST" / "raw").mkdir(parents=True)
    for split, digits in (("train", [7, 3, 7]), ("t10k", [3, 7])):
        stacks[split] = np.stack([pixels(n, 28)[..., 0] for n in range(len(digits))])
        for kind, values in (("images-idx3", stacks[split]), ("labels-idx1", np.array(digits, np.uint8))):
            header = np.array([0x800 + values.ndim, *values.shape], ">i4").tobytes()
            (root / "MNIST" / "raw" / f"{split}-{kind}-ubyte").write_bytes(header + values.tobytes())
    return stacks


def test_torchvision_keeps_its_labels_and_class_names(tmp_path: Path) -> None:
    stacks = mnist(tmp_path)
    config = TorchVision(dataset="MNIST", root=str(tmp_path), train={"train": True}, val={"train": False})
    train, val = Opened(config).train, Opened(config).val
    assert train.labels.tolist() == [7, 3, 7] and val.labels.tolist() == [3, 7] and train.classes[7] == "7 - seven"
    for i in range(3):
        assert np.array_equal(shown(train, i), stacks["train"][i, ..., None].repeat(3, -1))
    same_after_pickling(train)


def test_torchvision_that_cannot_be_had(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="Did you mean 'CIFAR10'"):
        TorchVision(dataset="cifar10", root=str(tmp_path))
    with pytest.raises(UserError, match=r"MNIST in .* cannot be had: Dataset not found"):
        _ = Opened(TorchVision(dataset="MNIST", root=str(tmp_path))).train
    with pytest.raises(UserError, match="unexpected keyword argument 'split'"):
        _ = Opened(TorchVision(dataset="MNIST", root=str(tmp_path), train={"split": "train"})).train


# ---------------------------------------------------------------- mixtures


def folders(root: Path) -> tuple[Files, Files]:
    """Two pictures of a cat and six of a dog and a cat, each with one to evaluate on."""
    for name, classes in (("few", {"cat": 2}), ("many", {"dog": 3, "cat": 3})):
        for label, count in classes.items():
            fill(root / name / "train" / label, count)
        fill(root / name / "val" / "cat", 1)
    few, many = (Files(path=str(root / name), train="train", val="val") for name in ("few", "many"))
    return few, many


def test_a_mixture_without_weights_is_all_pictures_once(tmp_path: Path) -> None:
    mixture = Mixture(sources=folders(tmp_path))
    train, val = Opened(mixture).train, Opened(mixture).val
    assert train.classes == val.classes == ("cat", "dog")
    assert train.labels.tolist() == [0, 0, 0, 0, 0, 1, 1, 1] and val.labels.tolist() == [0, 0]
    keys = [str(Path(train.key(i)).relative_to(tmp_path)) for i in range(8)]
    assert keys[:3] == ["few/train/cat/p/0.png", "few/train/cat/p/1.png", "many/train/cat/p/0.png"]
    assert len(set(keys)) == 8 and np.array_equal(shown(train, 7), pixels(2))
    same_after_pickling(train)


@pytest.mark.parametrize(
    ("weights", "counts"),
    [((1, 1), (6, 6)), ((3, 1), (18, 6)), ((1, 3), (2, 6)), ((1, 6), (2, 12)), ((0.1, 0.1), (6, 6))],
)
def test_weights_are_shares_of_an_epoch_that_misses_nothing(
    weights: tuple[float, ...], counts: tuple[int, int], tmp_path: Path
) -> None:
    train = Opened(Mixture(sources=folders(tmp_path), weights=weights)).train
    parts = [Path(train.key(i)).relative_to(tmp_path).parts[0] for i in range(len(train))]
    assert (parts.count("few"), parts.count("many")) == counts
    assert len({train.key(i) for i in range(len(train))}) == 8
    labels = [train.classes[label] for label in train.labels]
    assert labels == [Path(train.key(i)).parts[-3] for i in range(len(train))]


def test_mixtures_that_cannot_be_used(tmp_path: Path) -> None:
    few, many = folders(tmp_path)
    with pytest.raises(ValidationError, match="expected a weight per source, found 1 for 2"):
        Mixture(sources=(few, many), weights=(1.0,))
    own = Files(path=str(tmp_path / "few"), mean=(0, 0, 0))
    with pytest.raises(ValidationError, match="source 1 sets mean, which belongs to the mixture"):
        Mixture(sources=(few, own))
    with pytest.raises(UserError, match="expected a source of the mixture that has one"):
        _ = Opened(Mixture(sources=(Files(path=str(tmp_path / "few")),))).val
