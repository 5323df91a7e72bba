"""The doctor counts images whose boxes are outside, empty or doubled."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from boxed import write_coco

from unlabeled.data.opened import Opened
from unlabeled.data.source import SOURCES
from unlabeled.doctor.facts import split_facts
from unlabeled.doctor.pictures import survey
from unlabeled.doctor.verdict import _suspicious


def test_wrong_boxes_are_counted_and_named(tmp_path: Path) -> None:
    write_coco(tmp_path, "train", 6)
    content = json.loads((tmp_path / "train.json").read_text(encoding="utf-8"))
    wrong = {10: [20, 5, 14, 4], 11: [-0.5, 0, 32.9, 32], 12: [3, 3, 0.5, 9], 13: [4, 4, 8, 8], 14: [4, 4, 8, 8]}
    for image, box in wrong.items():
        content["annotations"].append({"id": 100 + image, "image_id": image, "category_id": 7, "bbox": box})
    content["annotations"].append({"id": 200, "image_id": 13, "category_id": 7, "bbox": [4, 4, 8, 8]})
    content["annotations"].append({"id": 201, "image_id": 14, "category_id": 3, "bbox": [4, 4, 8, 8]})
    (tmp_path / "train.json").write_text(json.dumps(content), encoding="utf-8")
    config: Any = SOURCES.kind("coco")(path=str(tmp_path), train="train", train_boxes="train.json")
    facts = split_facts(survey(Opened(config).train, None, 0, 0, 60.0, lambda _: None), (32, 32), 4)
    counts = {kind: (found["count"], found["examples"]) for kind, found in facts["suspicious"].items()}
    for kind, number in {"boxes_outside": 0, "boxes_empty": 2, "boxes_doubled": 3}.items():
        assert counts[kind] == (1, [str(tmp_path / "train" / f"{number:03}.png")]), kind
    said = {finding.code: finding.text for finding in _suspicious("train", facts)}
    assert "with boxes of less than a pixel" in said["boxes_empty"] and "there twice" in said["boxes_doubled"]
