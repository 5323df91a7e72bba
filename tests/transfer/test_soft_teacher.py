"""Detectors that learn from images without boxes: the teacher's boxes, their way into the strong view, the losses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor
from transfer.test_detect import SIDE, at, boxes_of, config, detection, pixels

from unlabeled.data.batch.batch import Batch, ViewBatch
from unlabeled.data.boxed.pairs import NONE
from unlabeled.data.label.boxes import BatchBoxes
from unlabeled.pretrain.method import Progress
from unlabeled.randomness import Stream, stream
from unlabeled.transfer.detection.sampling import Sampled
from unlabeled.transfer.detection.soft_teacher import weighted_cross_entropy
from unlabeled.transfer.detection.unlabelled import Found, SoftTeacher, Unlabelled, truth
from unlabeled.transfer.detector import Detected, Draw
from unlabeled.transfer.detectors.faster_rcnn import FasterRCNN
from unlabeled.transfer.tasks.detect import Detection

FLIP = torch.tensor([[-1.0, 0.0, SIDE], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
ACROSS = 3  # pixels to the right
SHIFT = torch.tensor([[1.0, 0.0, ACROSS], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
# an untrained detector says a third of each of two classes and the background
EASY: dict[str, Any] = {"ratio": 1, "begin": 0.0, "found": 0.3, "sure": 0.34, "steady": 0.3, "weight": 2.0}
LOOSE = {"score": 0.0, "proposals": 400}


def soft(**more: Any) -> Detection:
    return detection("faster_rcnn", detector=LOOSE, unlabelled={**EASY, **more})


def pairs(numbers: Sequence[int]) -> Batch:
    """Images with boxes and, after each, one without, whose strong view is its weak one shifted."""
    rows = [row for number in numbers for row in (number, 50 + number)]
    weak = torch.stack([pixels(number) for number in rows])
    boxes = [boxes_of(number) if number < 50 else NONE for number in rows]
    views = [ViewBatch(one.unsqueeze(0), None) for one in (weak, weak.roll(ACROSS, -1))]
    index, moves = torch.tensor(rows), torch.stack([torch.eye(3), SHIFT]).repeat(len(rows), 1, 1, 1)
    return Batch(views, torch.zeros_like(index), index, boxes=BatchBoxes.of(boxes), moves=moves)


def shifted(boxes: Tensor, by: int) -> Tensor:
    left, top, right, bottom = boxes.unbind(1)
    return torch.stack([(left + by).clamp(0, SIDE), top, (right + by).clamp(0, SIDE), bottom], 1)


class Stub:
    """A teacher whose boxes of the first class always end in one place, and of the second where they start."""

    first = 1

    def __init__(self, found: list[Detected]) -> None:
        self.detected, self.starts = found, list[Tensor]()

    def found(self, _levels: Any) -> list[Detected]:
        return self.detected

    def read(self, _levels: Any, boxes: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
        self.starts = boxes
        place = torch.tensor([1.0, 2.0, 11.0, 22.0])
        ends = [torch.stack([torch.zeros_like(one), place.expand_as(one), one], 1) for one in boxes]
        return [(torch.zeros(len(one), 3), end) for one, end in zip(boxes, ends, strict=True)]


def test_boxes_that_come_back_to_their_place_are_steady() -> None:
    boxes = torch.tensor([[2.0, 3.0, 12.0, 23.0], [5.0, 5.0, 15.0, 9.0], [0.0, 0.0, 8.0, 8.0], [4.0, 4.0, 4.5, 20.0]])
    one = Detected(boxes, torch.tensor([0.9, 0.6, 0.5, 0.99]), torch.tensor([0, 1, 0, 0]))
    none = Detected(boxes[:0], one.scores[:0], one.classes[:0])
    teacher = Stub([one, none])
    found = SoftTeacher(Unlabelled(), 7).find(teacher, None, [Draw(4, 9), Draw(4, 10)])  # type: ignore[arg-type]
    # the third has no score above 0.5, the fourth is narrower than a pixel
    assert torch.equal(found[0].boxes, boxes[:2]) and found[0].steady.tolist() == [True, False]
    assert len(found[1].boxes) == len(found[1].steady) == 0
    noise = stream(7, Stream.BOXES, 4, 9, 3).standard_normal((10, 2, 4))
    sides = np.array([[10, 20, 10, 20], [10, 4, 10, 4]])
    expected = boxes[:2].numpy() + 0.06 * noise * sides
    assert np.allclose(teacher.starts[0].reshape(10, 2, 4), expected, atol=1e-5) and len(teacher.starts[1]) == 0


def test_boxes_move_into_the_strong_view_and_empty_ones_are_dropped() -> None:
    boxes = torch.tensor([[2.0, 3.0, 12.0, 23.0], [31.5, 0.0, 32.0, 9.0], [20.0, 3.0, 30.0, 9.0]])
    found = Found(boxes, torch.ones(3), torch.tensor([0, 1, 1]), torch.ones(3, dtype=torch.bool))
    moved, classes = truth(found, torch.tensor([True, True, False]), FLIP, (SIDE, SIDE))
    assert torch.equal(moved, torch.tensor([[20.0, 3.0, 30.0, 23.0]])) and classes.tolist() == [0]


def test_what_teaches_classes_and_what_teaches_edges(monkeypatch: pytest.MonkeyPatch) -> None:
    model, given = soft(), dict[str, Any]()
    teacher, student, made = model.average, model.detector, pairs([1, 2])
    assert isinstance(teacher, FasterRCNN) and isinstance(student, FasterRCNN) and model.soft is not None
    labelled, others = model.soft.separate(made, 5)
    assert labelled.index.tolist() == [1, 2] and others.draws == [Draw(5, 51), Draw(5, 52)]
    assert labelled.boxes is not None and torch.equal(labelled.boxes.each()[1][0], boxes_of(2).corners)
    assert torch.equal(labelled.views[0].pixels[0, 1], pixels(2)) and torch.equal(
        others.strong[0], pixels(51).roll(3, -1)
    )

    def keep(_images: Tensor, classes: Sampled, edges: Sampled, weigh: Any) -> dict[str, Tensor]:
        given.update(classes=classes, edges=edges, weigh=weigh)
        return {"loss": torch.zeros(())}

    monkeypatch.setattr(student, "losses_of", keep)
    _, counts = model.soft(teacher, student, others)
    found = model.soft.find(teacher, teacher.levels(others.weak), others.draws)
    for name, flags in (("classes", [one.scores > 0.34 for one in found]), ("edges", [one.steady for one in found])):
        for (boxes, classes), one, which in zip(given[name].truth, found, flags, strict=True):
            expected = shifted(one.boxes[which], ACROSS)
            there = (expected[:, 2:] - expected[:, :2] > 1).all(1)
            torch.testing.assert_close(boxes, expected[there], rtol=1e-5, atol=1e-4)
            assert torch.equal(classes, one.classes[which][there])
    sure, steady = (sum(len(boxes) for boxes, _ in given[name].truth) for name in ("classes", "edges"))
    assert 0 < sure < sum(len(one.scores) for one in found) and steady > 0
    assert (counts["boxes_sure"].item(), counts["boxes_steady"].item()) == (sure / 2, steady / 2)

    # background weighs as much as the teacher is sure of it, at the same place of its own view
    boxes = [torch.tensor([[2.0, 3.0, 12.0, 23.0], [20.0, 3.0, 30.0, 9.0]]), torch.tensor([[0.0, 0.0, 9.0, 30.0]])]
    weights = given["weigh"](boxes, [torch.tensor([0, 2]), torch.tensor([0])])
    read = teacher.read(teacher.levels(others.weak), [shifted(one, -ACROSS) for one in boxes])
    p = [logits.softmax(-1)[:, 0].tolist() for logits, _ in read]
    assert weights[0].tolist() == pytest.approx([p[0][0], 1.0]) and weights[1].tolist() == pytest.approx(p[1])


def test_certain_boxes_of_weight_one_teach_as_true_ones_do() -> None:
    model = soft()
    student, made = model.detector, pairs([3, 4])
    assert isinstance(student, FasterRCNN) and made.boxes is not None
    images, draws = made.views[0].pixels[0][::2], [Draw(0, 3), Draw(0, 4)]
    true = made.boxes.each()[::2]

    def one(boxes: Sequence[Tensor], _labels: Sequence[Tensor]) -> list[Tensor]:
        return [torch.ones(len(some)) for some in boxes]

    found = student.losses_of(images, Sampled(true, draws), Sampled(true, draws), one)
    expected = student.losses(images, true, draws)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)
    none = [(boxes[:0], classes[:0]) for boxes, classes in true]
    without = student.losses_of(images, Sampled(true, draws), Sampled(none, draws), one)
    assert without["loss_box_reg"] == 0 and torch.equal(without["loss_classifier"], found["loss_classifier"])


def test_classes_and_edges_are_learnt_from_boxes_of_their_own() -> None:
    model = detection("faster_rcnn", detector={"proposals": 8}, unlabelled=EASY)
    student, made, drawn = model.detector, pairs([3]), list[str]()
    assert isinstance(student, FasterRCNN) and made.boxes is not None
    samplers = {"classes": student.net.roi_heads.fg_bg_sampler, "edges": student.edges}
    assert [sampler.stage for sampler in samplers.values()] == [1, 2]

    class Told:
        def __init__(self, name: str) -> None:
            self.name, self.draws = name, list[Draw]()

        def __call__(self, labels: Sequence[Tensor]) -> Any:
            drawn.append(self.name)
            samplers[self.name].draws = self.draws
            return samplers[self.name](labels)

    student.net.roi_heads.fg_bg_sampler, student.edges = Told("classes"), Told("edges")  # type: ignore[assignment]
    given = Sampled(made.boxes.each()[:1], [Draw(0, 3)])
    student.losses_of(made.views[0].pixels[0][:1], given, given, lambda boxes, _: [torch.ones(len(boxes[0]))])
    assert drawn == ["classes", "edges"] and student.net.roi_heads.fg_bg_sampler.name == "classes"


def test_weights_below_one_in_all_divide_by_one() -> None:
    logits, labels = torch.tensor([[1.0, 2.0], [0.0, 3.0]]), torch.tensor([0, 0])
    each = F.cross_entropy(logits, labels, reduction="none")
    small = weighted_cross_entropy(logits, labels, torch.tensor([0.1, 0.2]))
    torch.testing.assert_close(small, 0.1 * each[0] + 0.2 * each[1])
    large = weighted_cross_entropy(logits, labels, torch.tensor([1.0, 2.0]))
    torch.testing.assert_close(large, (each[0] + 2 * each[1]) / 3)


def test_background_counts_as_its_weight_says() -> None:
    model = soft()
    student, made = model.detector, pairs([3])
    assert isinstance(student, FasterRCNN) and made.boxes is not None
    images, draws, true = made.views[0].pixels[0][:1], [Draw(0, 3)], made.boxes.each()[:1]
    seen: list[tuple[Tensor, Tensor]] = []

    def weigh(boxes: Sequence[Tensor], labels: Sequence[Tensor]) -> list[Tensor]:
        seen.append((boxes[0], labels[0]))
        return [torch.where(labels[0] == 0, torch.linspace(0, 1, len(labels[0])), 1.0)]

    found = student.losses_of(images, Sampled(true, draws), Sampled(true, draws), weigh)["loss_classifier"]
    ((boxes, labels),) = seen
    ((logits, _),) = student.read(student.levels(images), [boxes])
    weights = [i / (len(labels) - 1) if label == 0 else 1.0 for i, label in enumerate(labels.tolist())]
    total = sum(w * F.cross_entropy(x[None], y[None]).item() for w, x, y in zip(weights, logits, labels, strict=True))
    assert found.item() == pytest.approx(total / max(sum(weights), 1), rel=1e-4)


def test_the_loss_is_the_mean_over_images_whatever_the_process() -> None:
    model = soft()
    whole = model(pairs([1, 2]), at(7))
    halves = [model(pairs([number]), at(7)) for number in (1, 2)]
    torch.testing.assert_close(whole.loss, torch.stack([one.loss for one in halves]).mean())
    assert whole.metrics["boxes_sure"] > 0
    names = {"classifier", "box_reg", "objectness", "rpn_box_reg"}
    counted = {"boxes_found", "boxes_sure", "boxes_steady"}
    assert set(whole.metrics) == {f"{kind}_{name}" for kind in ("loss", "pseudo") for name in names} | counted | {
        "supervised"
    }
    sums = [sum(float(whole.metrics[f"{kind}_{name}"]) for name in names) for kind in ("loss", "pseudo")]
    assert whole.metrics["supervised"].item() == pytest.approx(sums[0], rel=1e-5)
    assert whole.loss.item() == pytest.approx(sums[0] + 2 * sums[1], rel=1e-5)
    torch.manual_seed(5)
    assert torch.equal(model(pairs([1, 2]), at(7)).loss, whole.loss)
    whole.loss.backward()
    assert model.average is not None and all(p.grad is None for p in model.average.parameters())


def test_at_first_only_boxes_that_are_there_are_learnt() -> None:
    model = soft(begin=0.5)
    before, after = (model(pairs([1]), Progress(step, 10, step / 5, 2.0)) for step in (4, 5))
    assert "boxes_sure" not in before.metrics and "boxes_sure" in after.metrics
    assert torch.equal(before.loss, before.metrics["supervised"])


def test_the_teacher_begins_as_a_mean_and_is_what_predicts() -> None:
    model = soft(momentum=0.7)
    teacher, student = ([*one.parameters()][-1] for one in (model.scored, model.detector))
    expected, given = student.detach().clone(), [torch.randn_like(student) for _ in range(4)]
    for step, weights in enumerate(given):
        with torch.no_grad():
            student.copy_(weights)
        model.after_step(at(step))
        momentum = min(0.7, 1 - 1 / (step + 2))
        expected = momentum * expected + (1 - momentum) * weights
        torch.testing.assert_close(teacher.detach(), expected)
    assert model.scored is model.average and not model.scored.training


def test_no_sure_box_is_a_symptom() -> None:
    (symptom,) = soft().symptoms()
    assert symptom.metric == "boxes_sure" and symptom.at_most == 0 and "task.unlabelled.begin" in symptom.advice
    assert detection().symptoms() == []


@pytest.mark.parametrize(
    ("name", "more", "says"),
    [
        ("retinanet", {}, "found detector retinanet: set task.detector.name=faster_rcnn"),
        ("faster_rcnn", {"ema": 0.9}, "ema is 0.9, but the teacher of unlabelled pictures is the average"),
        ("faster_rcnn", {"unlabelled": {"jitters": 1}}, "greater than or equal to 2"),
        ("faster_rcnn", {"unlabelled": {"strong": {"rotate": 90}}}, "less than 90"),
    ],
)
def test_mistakes_are_named(name: str, more: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        config(name, **{"unlabelled": {}, **more})
