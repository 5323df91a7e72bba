"""Sources with boxes: what COCO's JSON and YOLO's text files say, how it is kept, and what is wrong with bad ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from boxed import Drawn, write_coco, write_yolo

from unlabeled.data.archive.listing import IndexFolder
from unlabeled.data.label.boxes import BatchBoxes, Boxes, BoxTable
from unlabeled.data.label.subset import Part
from unlabeled.data.opened import Opened
from unlabeled.data.source import SOURCES, Source, SourceConfig
from unlabeled.errors import UserError


def coco(home: Path, **more: Any) -> SourceConfig:
    found = SOURCES.kind("coco")(path=str(home), train="train", train_boxes="train.json", **more)
    assert isinstance(found, SourceConfig)
    return found


def yolo(home: Path, **more: Any) -> SourceConfig:
    found = SOURCES.kind("yolo")(path=str(home), **more)
    assert isinstance(found, SourceConfig)
    return found


KINDS: dict[str, tuple[Callable[..., SourceConfig], Callable[..., list[Drawn]]]] = {
    "coco": (coco, write_coco),
    "yolo": (yolo, write_yolo),
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def made(kind: str, home: Path, count: int = 6, **more: Any) -> tuple[SourceConfig, list[Drawn]]:
    config, write = KINDS[kind]
    return config(home, **more), write(home, "train", count)


def assert_boxes(source: Source, drawn: list[Drawn], order: tuple[str, ...] = ("red", "green")) -> None:
    assert source.boxed and len(source) == len(drawn)
    for i, (pixels, boxes) in enumerate(drawn):
        image = source.image(i)
        assert np.array_equal(image.permute(1, 2, 0).numpy(), pixels)
        found = source.boxes(i, image.shape[-2], image.shape[-1])
        assert torch.allclose(found.corners, torch.tensor([box[:4] for box in boxes]).float(), atol=1e-4)
        names = [source.classes[number] for number in found.classes.tolist()]
        assert names == [("red", "green")[box[4]] for box in boxes] and not found.crowd.any()
        sizes = [(box[2] - box[0]) * (box[3] - box[1]) for box in boxes]
        assert found.areas.tolist() == pytest.approx(sizes)
        largest = boxes[max(range(len(boxes)), key=lambda k: (sizes[k], k))][4]
        assert source.classes[int(source.labels[i])] == ("red", "green")[largest]
    assert source.classes == order


@every_kind
def test_boxes_classes_and_labels(kind: str, tmp_path: Path) -> None:
    config, drawn = made(kind, tmp_path)
    assert_boxes(Opened(config).train, drawn)


@every_kind
def test_classes_may_come_in_another_order(kind: str, tmp_path: Path) -> None:
    (tmp_path / "order.txt").write_text("green\nred\n", encoding="utf-8")
    config, drawn = made(kind, tmp_path, classes=str(tmp_path / "order.txt"))
    assert_boxes(Opened(config).train, drawn, ("green", "red"))


@every_kind
def test_parts_and_other_classes_keep_their_boxes(kind: str, tmp_path: Path) -> None:
    config, _ = made(kind, tmp_path)
    source = Opened(config).train
    part = Part(source, np.array([1, 4]))
    assert part.boxed and torch.equal(part.boxes(1, 32, 32).corners, source.boxes(4, 32, 32).corners)
    other = source.relabelled(source.labels, ("blue", "green", "red"))
    for i in range(len(source)):
        names = [[one.classes[n] for n in one.boxes(i, 32, 32).classes.tolist()] for one in (source, other)]
        assert names[0] == names[1]
    fewer = source.relabelled(source.labels, ("green",))
    greens = [(source.boxes(i, 32, 32).classes == 1).sum() for i in range(len(source))]
    assert [len(fewer.boxes(i, 32, 32).classes) for i in range(len(source))] == greens


@every_kind
def test_what_is_found_is_kept_until_it_changes(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, drawn = made(kind, tmp_path)
    monkeypatch.setattr("unlabeled.data.archive.listing.SETTLED", -(10**12))
    folder = tmp_path / "index"
    first = Opened(config, IndexFolder(folder)).train.fingerprint()
    assert (folder / "train.safetensors").is_file()
    name = "unlabeled.data.sources.coco.read" if kind == "coco" else "unlabeled.data.sources.yolo.scan"
    with monkeypatch.context() as patched:
        patched.setattr(name, lambda *_: pytest.fail("it is scanned again"))
        kept = Opened(config, IndexFolder(folder)).train
        assert_boxes(kept, drawn)
        assert kept.fingerprint() == first
    # another box is another data set, whatever the images
    if kind == "coco":
        content = json.loads((tmp_path / "train.json").read_text(encoding="utf-8"))
        content["annotations"][0]["bbox"][2] += 1
        (tmp_path / "train.json").write_text(json.dumps(content), encoding="utf-8")
    else:
        file = tmp_path / "labels/train/000.txt"
        words = file.read_text(encoding="utf-8").split()
        words[3] = str(float(words[3]) + 1 / 32)
        file.write_text(" ".join(words[:5]), encoding="utf-8")
    changed = Opened(config, IndexFolder(folder)).train
    assert changed.fingerprint() != first
    sides = [one.boxes(0, 32, 32).corners[0, 2:] - one.boxes(0, 32, 32).corners[0, :2] for one in (changed, kept)]
    assert (sides[0] - sides[1]).tolist() == pytest.approx([1.0, 0.0], abs=1e-4)


def test_crowds_missing_images_and_images_without_boxes(tmp_path: Path) -> None:
    write_coco(tmp_path, "train", 3)
    content = json.loads((tmp_path / "train.json").read_text(encoding="utf-8"))
    content["annotations"] = [
        {"id": 1, "image_id": 11, "category_id": 3, "bbox": [1, 2, 3, 4], "iscrowd": 1, "area": 5.5},
        {"id": 2, "image_id": 11, "category_id": 7, "bbox": [0, 0, 1, 1]},
    ]
    content["images"].append({"id": "x", "file_name": "gone.png"})
    (tmp_path / "train.json").write_text(json.dumps(content), encoding="utf-8")
    source = Opened(coco(tmp_path)).train
    found = source.boxes(1, 32, 32)
    assert found.crowd.tolist() == [True, False] and found.areas.tolist() == [5.5, 1.0]
    assert source.labels.tolist() == [-1, 0, -1, -1] and len(source.boxes(0, 32, 32).classes) == 0
    with pytest.raises(Exception, match=r"gone.png: cannot be read|gone.png"):
        source.image(3)


WRONG_JSON: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "no list": (lambda c: c.pop("annotations"), "holds ['categories', 'images']; expected an object with the lists"),
    "two corners": (
        lambda c: c["annotations"][1].update(bbox=[20, 20, -3, 5]),
        "annotations[1].bbox is [20, 20, -3, 5]: width or height is below 0",
    ),
    "three sides": (
        lambda c: c["annotations"][0].update(bbox=[1, 2, 3]),
        "annotations[0].bbox is [1, 2, 3]; expected [left, top, width, height]",
    ),
    "not finite": (
        lambda c: c["annotations"][0].update(bbox=[1, 2, 3, float("nan")]),
        "annotations[0].bbox is [1, 2, 3, nan]",
    ),
    "unknown class": (
        lambda c: c["annotations"][0].update(category_id=99),
        "annotations[0].category_id is 99; expected an `id` of categories",
    ),
    "unknown image": (
        lambda c: c["annotations"][0].update(image_id=99),
        "annotations[0].image_id is 99; expected an `id` of images",
    ),
    "image twice": (lambda c: c["images"][1].update(id=10), "images[1].id is 10, as that of images[0]"),
    "no name": (lambda c: c["categories"][0].pop("name"), "categories[0].name is null; expected a name"),
    "no images": (lambda c: c.update(images=[], annotations=[]), "lists no images"),
    "area": (lambda c: c["annotations"][0].update(area="big"), "annotations[0].area is 'big'"),
}


@pytest.mark.parametrize("wrong", WRONG_JSON)
def test_wrong_json_is_named(wrong: str, tmp_path: Path) -> None:
    write_coco(tmp_path, "train", 3)
    content = json.loads((tmp_path / "train.json").read_text(encoding="utf-8"))
    change, said = WRONG_JSON[wrong]
    change(content)
    (tmp_path / "train.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(UserError) as raised:
        _ = Opened(coco(tmp_path)).train
    assert said in str(raised.value) and "train.json" in str(raised.value)


def test_json_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train.json' cannot be read: No such file"):
        _ = Opened(coco(tmp_path)).train
    (tmp_path / "train.json").write_text('{"images": [\n1,,2]}', encoding="utf-8")
    with pytest.raises(UserError, match=r"train.json': line 2, column 3: .*; expected JSON"):
        _ = Opened(coco(tmp_path)).train
    write_coco(tmp_path, "train", 2)
    with pytest.raises(UserError, match=r"has none of the 2 pictures that .*train.json' lists, such as '000.png'"):
        _ = Opened(SOURCES.kind("coco")(path=str(tmp_path), train_boxes="train.json")).train  # type: ignore[arg-type]


WRONG_TEXT = {
    "0 0.5 0.5 0.2": "has 4 values, '0 0.5 0.5 0.2'; expected `class x y width height`",
    "red 0.5 0.5 0.2 0.2": "class is 'red'; expected a whole number from 0",
    "2 0.5 0.5 0.2 0.2": "class is 2; expected 0 to 1, of the names ['red', 'green']",
    "0 16 0.5 0.2 0.2": "x is '16'; expected a share of the picture's width or height, 0 to 1, not pixels",
    "0 0.5 0.5 0.2 nan": "height is 'nan'; expected a share",
    "0 0.5 0.5 0.2 wide": "height is 'wide'; expected a share",
}


@pytest.mark.parametrize("line", WRONG_TEXT)
def test_wrong_lines_are_named(line: str, tmp_path: Path) -> None:
    write_yolo(tmp_path, "train", 3)
    (tmp_path / "labels/train/001.txt").write_text(f"0 0.5 0.5 0.1 0.1\n\n{line}\n", encoding="utf-8")
    with pytest.raises(UserError) as raised:
        _ = Opened(yolo(tmp_path)).train
    assert f"001.txt': line 3{'' if 'values' in WRONG_TEXT[line] else ':'} {WRONG_TEXT[line]}" in str(raised.value)


def test_folders_that_are_no_yolo_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"images/train' is no folder. Set data.path and data.train"):
        _ = Opened(yolo(tmp_path)).train
    (tmp_path / "images" / "train").mkdir(parents=True)
    with pytest.raises(UserError, match=r"labels/train' is no folder; expected the text files"):
        _ = Opened(yolo(tmp_path)).train
    (tmp_path / "labels" / "train").mkdir(parents=True)
    with pytest.raises(UserError, match=r"images/train' holds no pictures"):
        _ = Opened(yolo(tmp_path)).train
    (tmp_path / "pictures").mkdir()
    with pytest.raises(UserError, match=r"has no folder `images` in its path"):
        _ = Opened(yolo(tmp_path, train="pictures")).train
    write_yolo(tmp_path, "train", 1)
    (tmp_path / "data.yaml").write_text("names: {0: red, 2: green}\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"data.yaml': names is .*; expected a list, or numbers from 0"):
        _ = Opened(yolo(tmp_path)).train


def test_classes_without_names_are_called_by_their_numbers(tmp_path: Path) -> None:
    write_yolo(tmp_path, "train", 9)
    (tmp_path / "data.yaml").unlink()
    source = Opened(yolo(tmp_path)).train
    assert source.classes == ("0", "1")
    (tmp_path / "labels/train/001.txt").unlink()
    assert len(Opened(yolo(tmp_path)).train.boxes(1, 32, 32).classes) == 0


def test_a_batch_gives_every_image_its_boxes() -> None:
    rows = [[(0, 0, 2, 2, 1, 0, 4), (1, 1, 3, 3, 0, 1, 4)], [], [(5, 5, 6, 7, -1, 0, 2), (2, 2, 4, 4, 2, 0, 4)]]
    table = BoxTable.of(rows)
    images = [table.boxes(i, 8, 8) for i in range(3)]
    assert [one.classes.tolist() for one in images] == [[1, 0], [], [2]] and table.largest().tolist() == [1, -1, 2]
    batch = BatchBoxes.of(images)
    assert batch.counts == (2, 0, 1) and [len(corners) for corners, _ in batch.each()] == [2, 0, 1]
    assert torch.equal(batch.first(2).corners, images[0].corners)
    again = batch.repeated(5)
    assert again.counts == (2, 0, 1, 2, 0) and torch.equal(again.each()[3][0], images[0].corners)
    both = Boxes.joined([images[0], images[2]])
    assert both.corners.tolist() == [[0, 0, 2, 2], [1, 1, 3, 3], [2, 2, 4, 4]] and both.crowd.tolist()[1]
    assert BoxTable.of([[(0.25, 0.5, 0.5, 1, 0, 0, 0.125)]], relative=True).boxes(0, 8, 16).corners.tolist() == [
        [4, 4, 8, 8]
    ]
    assert table.digest() != BoxTable.of(rows[::-1]).digest()
