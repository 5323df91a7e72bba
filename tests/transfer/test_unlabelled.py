"""Learning from unlabelled images: thresholds, targets and loss against naive loops, and what does not go together."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from support import classifying, on_processes
from torch import Tensor

from unlabeled.backbone.config import EncoderConfig
from unlabeled.backbone.folder import IMAGENET, export_encoder
from unlabeled.data.batch.batch import Batch, ViewBatch
from unlabeled.data.opened import Opened
from unlabeled.data.sources.files import Config as Files
from unlabeled.data.sources.shapes import Config as Shapes
from unlabeled.errors import UserError
from unlabeled.pretrain.method import Progress
from unlabeled.recipe import RecipeError, dump, parse
from unlabeled.stages.finetune import STAGE, FinetuneRecipe, complete
from unlabeled.train.tracking import Diagnosis
from unlabeled.transfer.labels import Amount, labelled, with_unlabelled
from unlabeled.transfer.targets import hard, sharp
from unlabeled.transfer.thresholds import fixed
from unlabeled.transfer.thresholds.adaptive import Adaptive, evenness
from unlabeled.transfer.unlabelled import Consistency, Strong, Unlabelled, pseudo_labels

CLASSES, IMAGES = 4, 12
START = Progress(0, 10, 0.0, 1.0)


def drawn(seed: int, *shape: int, scale: float = 2.0) -> Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ---------------------------------------------------------------- thresholds


class Naive:
    """FreeMatch's averages in plain lists."""

    def __init__(self, classes: int, momentum: float) -> None:
        self.momentum, self.tau = momentum, 1 / classes
        self.mean, self.histogram = [1 / classes] * classes, [1 / classes] * classes

    def passed(self, rows: list[list[float]]) -> list[bool]:
        m, n = self.momentum, len(rows)
        labels = [row.index(max(row)) for row in rows]
        self.tau = m * self.tau + (1 - m) * sum(map(max, rows)) / n
        for c in range(len(self.mean)):
            self.mean[c] = m * self.mean[c] + (1 - m) * sum(row[c] for row in rows) / n
            self.histogram[c] = m * self.histogram[c] + (1 - m) * labels.count(c) / n
        return [max(row) >= self.tau * self.mean[c] / max(self.mean) for row, c in zip(rows, labels, strict=True)]


def naive_evenness(strong: Tensor, passed: list[bool], mean: list[float], histogram: list[float]) -> float:
    rows = [row.softmax(0).tolist() for row, there in zip(strong, passed, strict=True) if there]
    if not rows:
        return 0.0
    labels = [row.index(max(row)) for row in rows]
    p = [sum(row[c] for row in rows) / len(rows) for c in range(len(mean))]
    h = [labels.count(c) / len(rows) for c in range(len(mean))]
    target, found = ([a / b if b else 0.0 for a, b in zip(*two, strict=True)] for two in ((mean, histogram), (p, h)))
    return sum(a / sum(target) * math.log(b / sum(found) + 1e-12) for a, b in zip(target, found, strict=True))


def remembered(gate: Any) -> tuple[float, list[float], list[float]]:
    return gate.tau.item(), gate.mean.tolist(), gate.histogram.tolist()


def test_adaptive_thresholds_follow_a_naive_loop() -> None:
    gate, naive = Adaptive(CLASSES, 0.7, 0.01).double(), Naive(CLASSES, 0.7)
    different = 0
    for step in range(5):
        p, strong = drawn(step, IMAGES, CLASSES).softmax(-1), drawn(100 + step, IMAGES, CLASSES)
        passed = gate(p)
        assert passed.tolist() == naive.passed(p.tolist())
        different += len(set(passed.tolist())) > 1
        for ours, theirs in zip(remembered(gate), (naive.tau, naive.mean, naive.histogram), strict=True):
            assert ours == pytest.approx(theirs, rel=1e-6)
        terms = gate.terms(strong, passed)
        expected = 0.01 * naive_evenness(strong, passed.tolist(), naive.mean, naive.histogram)
        assert terms["fairness"].item() == pytest.approx(expected, rel=1e-6) and terms["fairness"] < 0
    assert different >= 3, "some images pass, others do not"


def test_averages_stay_in_evaluation() -> None:
    gate = Adaptive(CLASSES, 0.7, 0.01).eval()
    before = remembered(gate)
    gate(drawn(0, IMAGES, CLASSES).softmax(-1))
    assert remembered(gate) == before == (0.25, [0.25] * 4, [0.25] * 4)


def test_a_fixed_threshold_is_reached_where_it_is_equal() -> None:
    p = torch.tensor([[0.5, 0.5], [0.75, 0.25], [0.25, 0.75], [0.9, 0.1]])
    assert fixed.Config(cutoff=0.75).build(2)(p).tolist() == [False, True, True, True]
    assert fixed.Config(cutoff=0.0).build(2)(p).all() and not fixed.Config().crosses


def test_evenness_has_gradients_that_are_numbers_where_few_or_none_pass() -> None:
    for passed in (torch.zeros(IMAGES, dtype=torch.bool), torch.arange(IMAGES) == 3):
        strong = drawn(1, IMAGES, CLASSES).requires_grad_()
        found = evenness(strong, passed, torch.full((CLASSES,), 0.25), torch.tensor([0.0, 0.5, 0.5, 0.0]))
        found.backward()
        assert strong.grad is not None and strong.grad.isfinite().all()
        assert (found.item() == 0) == (not passed.any())


# ---------------------------------------------------------------- targets and loss


def test_sharpened_targets() -> None:
    p, strong = drawn(0, IMAGES, CLASSES).softmax(-1), drawn(1, IMAGES, CLASSES)
    target = sharp.Config(temperature=0.5)
    for row, other, found in zip(p.tolist(), strong, target.distance(strong, p).tolist(), strict=True):
        q = [value**2 / sum(value**2 for value in row) for value in row]
        guess = other.softmax(0).tolist()
        assert found == pytest.approx(sum((a - b) ** 2 for a, b in zip(guess, q, strict=True)) / CLASSES)
    torch.testing.assert_close(sharp.Config(temperature=1.0).sharpened(p), p)
    assert hard.Config.views == 1 and sharp.Config.views == 2


@pytest.mark.parametrize("target", [hard.Config(), sharp.Config()])
def test_the_loss_is_a_mean_over_all_images(target: Any) -> None:
    config = Unlabelled(weight=2.5, threshold=fixed.Config(cutoff=0.6), targets=target)
    weak, strong = drawn(0, target.views * IMAGES, CLASSES), drawn(1, IMAGES, CLASSES)
    loss, metrics = Consistency(config, CLASSES)(weak, strong, None)
    total, count = 0.0, 0
    for i in range(IMAGES):
        p = torch.stack([weak[view * IMAGES + i].softmax(0) for view in range(target.views)]).mean(0)
        if p.max() >= 0.6:
            count += 1
            total += target.distance(strong[i : i + 1], p[None]).item()
    assert 0 < count < IMAGES
    assert loss.item() == pytest.approx(2.5 * total / IMAGES)
    assert metrics["consistency"].item() == pytest.approx(total / IMAGES)
    assert metrics["passed"].item() == pytest.approx(100 * count / IMAGES)


def test_measures_of_pseudo_labels() -> None:
    p = torch.tensor([[0.9, 0.1, 0], [0.6, 0.4, 0], [0.2, 0.8, 0], [0.5, 0.1, 0.4]])
    passed = torch.tensor([True, False, True, False])
    found = pseudo_labels(p, passed, torch.tensor([0, 1, 1, -1]))
    assert {name: pytest.approx(value.item()) for name, value in found.items()} == {
        "passed": 50.0,
        "pseudo_largest": 75.0,
        "pseudo_entropy": -(0.75 * math.log(0.75) + 0.25 * math.log(0.25)),
        "pseudo_accuracy": 200 / 3,
        "passed_right": 200 / 3,
    }
    assert pseudo_labels(p, passed, None).keys() == {"passed", "pseudo_largest", "pseudo_entropy"}


def _on_one_of_two(rank: int) -> dict[str, Tensor]:
    mine = slice(rank * IMAGES // 2, (rank + 1) * IMAGES // 2)
    gate, found = Adaptive(CLASSES, 0.7, 0.5).double(), dict[str, Any]()
    for step in range(3):
        strong = drawn(100 + step, IMAGES, CLASSES)[mine].requires_grad_()
        passed = gate(drawn(step, IMAGES, CLASSES).softmax(-1)[mine])
        loss = gate.terms(strong, passed)["fairness"]
        loss.backward()
        found |= {f"loss{step}": loss.detach(), f"passed{step}": passed, f"grad{step}": strong.grad}
    return found | {"tau": gate.tau, "mean": gate.mean, "histogram": gate.histogram}


def test_two_processes_have_the_averages_and_gradients_of_one() -> None:
    halves = on_processes(_on_one_of_two)
    gate = Adaptive(CLASSES, 0.7, 0.5).double()
    for step in range(3):
        strong = drawn(100 + step, IMAGES, CLASSES).requires_grad_()
        passed = gate(drawn(step, IMAGES, CLASSES).softmax(-1))
        loss = gate.terms(strong, passed)["fairness"]
        loss.backward()
        assert torch.cat([half[f"passed{step}"] for half in halves]).equal(passed)
        # processes average their gradients: each has that of the whole times their number
        torch.testing.assert_close(torch.cat([half[f"grad{step}"] for half in halves]) / 2, strong.grad)
        for half in halves:
            torch.testing.assert_close(half[f"loss{step}"], loss.detach())
    for half in halves:
        for name in ("tau", "mean", "histogram"):
            torch.testing.assert_close(half[name], getattr(gate, name))


# ---------------------------------------------------------------- the task


def encoder() -> Any:
    torch.manual_seed(0)
    tiny: Any = {"patch_size": 4, "width": 16, "depth": 1, "heads": 2}
    return EncoderConfig(model="vit_tiny_patch16_224", **tiny).build((8, 8))


def batch_of(ratio: int, views: int, periods: int = 2) -> Batch:
    """Labelled images are all 1, the unlabelled ones of view v are v + their number / 100."""
    rows = periods * (1 + ratio)
    labels = torch.full((rows,), -1)
    labels[:: 1 + ratio] = torch.arange(periods)
    pixels = [view + torch.arange(rows).view(1, rows, 1, 1, 1).expand(1, rows, 3, 8, 8) / 100 for view in range(views)]
    return Batch([ViewBatch(one, None) for one in pixels], labels, torch.arange(rows), None, labels + 7)


def test_a_batch_is_separated() -> None:
    config = Unlabelled(ratio=2, targets=sharp.Config())
    labelled, rows = Consistency(config, CLASSES).separate(batch_of(2, 3))
    assert labelled.labels.tolist() == [0, 1] and labelled.index.tolist() == [0, 3]
    assert labelled.views[0].pixels.shape == (1, 2, 3, 8, 8) and len(labelled.views) == 1
    torch.testing.assert_close(labelled.views[0].pixels[0, :, 0, 0, 0], torch.tensor([0.0, 0.03]))
    assert rows.truth is not None and rows.truth.tolist() == [6, 6, 6, 6]
    unlabelled = torch.tensor([0.01, 0.02, 0.04, 0.05])
    torch.testing.assert_close(rows.weak[:, 0, 0, 0], torch.cat([unlabelled, 2 + unlabelled]))
    torch.testing.assert_close(rows.strong[:, 0, 0, 0], 1 + unlabelled)


@pytest.mark.parametrize("strategy", ["full", "frozen", "linear", "lora", "gradual"])
def test_every_strategy_learns_from_both(strategy: str) -> None:
    task = classifying(strategy, unlabelled={"ratio": 2}, view={"size": 8}, ema=0.9)
    method = task.build(encoder(), [3] * CLASSES).train()
    output = method(batch_of(2, 2), START)
    output.loss.backward()
    learns = {name for name, parameter in method.named_parameters() if parameter.requires_grad}
    assert {name for name, p in method.named_parameters() if p.grad is not None} == learns
    assert all(p.grad is None for p in method.average.parameters())
    assert output.loss.item() == pytest.approx(
        sum(output.metrics[name].item() for name in ("supervised", "consistency", "fairness")), rel=1e-5
    )
    before = set(classifying(strategy, view={"size": 8}, ema=0.9).build(encoder(), [3] * CLASSES).exported())
    assert set(method.exported()) == before, "exports hold nothing of it"


def test_pseudo_labels_come_from_the_averaged_weights() -> None:
    task = classifying(unlabelled={"threshold": {"name": "fixed", "cutoff": 0.0}}, view={"size": 8}, ema=0.9)
    method = task.build(encoder(), [3] * CLASSES).train()
    batch = batch_of(1, 2)
    _, rows = method.consistency.separate(batch)
    with torch.no_grad():
        method.model.head.weight.copy_(-method.average.head.weight)
        expected = method._logits(method.average, rows.weak).argmax(-1)
        assert not expected.equal(method.logits(rows.weak).argmax(-1))
        strong = method.logits(rows.strong)
    found = method(batch, START).metrics["consistency"]
    torch.testing.assert_close(found, F.cross_entropy(strong, expected))


def test_without_weight_gradients_are_those_of_the_labelled_images_to_the_bit() -> None:
    plain = classifying(view={"size": 8}).build(encoder(), [3] * CLASSES).train()
    both = classifying(view={"size": 8}, unlabelled={"ratio": 2, "weight": 0.0}).build(encoder(), [3] * CLASSES).train()
    both.load_state_dict(plain.state_dict(), strict=False)
    batch = batch_of(2, 2)
    labelled, _ = both.consistency.separate(batch)
    for method, seen in ((plain, labelled), (both, batch)):
        method(seen, START).loss.backward()
    for one, other in zip(plain.parameters(), both.parameters(), strict=True):
        assert one.grad is not None and other.grad is not None and one.grad.equal(other.grad)


def test_accumulation_is_refused_where_thresholds_follow_the_step() -> None:
    for threshold, crosses in (("adaptive", True), ("fixed", False)):
        task = classifying(unlabelled={"threshold": {"name": threshold}}, view={"size": 8})
        found = task.build(encoder(), [3] * CLASSES).batch_statistics()
        assert found == (("adaptive thresholds",) if crosses else ())


@pytest.mark.parametrize(
    ("threshold", "cure"), [("adaptive", "threshold.fairness from 0.01 to 0.05"), ("fixed", "threshold.name=adaptive")]
)
def test_one_class_for_all_is_a_symptom(threshold: str, cure: str) -> None:
    task = classifying(unlabelled={"threshold": {"name": threshold}}, view={"size": 8})
    said: list[str] = []
    diagnosis = Diagnosis(task.build(encoder(), [3] * CLASSES).symptoms(), 10000, said.append)
    for step in range(2000, 3000, 50):
        diagnosis.read(step, {"pseudo_largest": 60.0, "passed": 40.0})
    assert not said
    for step in range(3000, 4000, 50):
        diagnosis.read(step, {"pseudo_largest": 100.0, "passed": 40.0})
    assert len(said) == 1 and "taken for one class: a collapse" in said[0] and cure in said[0]
    for step in range(4000, 5000, 50):
        diagnosis.read(step, {"pseudo_largest": 60.0, "passed": 0.0})
    assert len(said) == 2 and "hardly an unlabelled picture passes" in said[1]
    assert classifying(view={"size": 8}).build(encoder(), [3] * CLASSES).symptoms() == []


# ---------------------------------------------------------------- recipe and pictures


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("encoder") / "export"
    export_encoder(folder, encoder(), IMAGENET._replace(mean=(0.5, 0.4, 0.3)), "# card\n", {})
    return str(folder)


def recipe_of(export: str, *changes: str) -> FinetuneRecipe:
    text = f"name: it\nencoder: {export}\ndata: {{name: shapes, train_size: 60, val_size: 10, size: 16}}\n"
    return complete(parse(FinetuneRecipe, text + "task: {unlabelled: {ratio: 3}, shots: 2}\n", changes))[0]


def test_labelled_and_unlabelled_images_reach_the_batch(export: str) -> None:
    recipe = recipe_of(export, "train.batch_size=8")
    job = STAGE.job(recipe, Opened(recipe.data))
    source, groups, count = job.dataset.source, job.dataset.groups, len(job.images.train)
    assert groups is not None and (groups.shares, groups.views, job.dataset.unit) == ((1, 3), (1, 2), 4)
    assert len(source) == count + 60 and source.classes == job.images.train.classes
    assert (source.labels[:count] >= 0).all() and (source.labels[count:] == -1).all()
    assert [view.rand_augment for view in job.dataset.views] == [None, Strong().rand_augment]
    assert job.dataset.views[1].size == recipe.task.view.size == (8, 8)
    plan = dict(STAGE.plan(job, []))
    assert plan["pictures"].startswith(f"{count} of 60")
    steps = len(source) // 8
    assert plan["unlabelled"] == (
        f"60 from data.train, labels hidden; an epoch passes {2 * steps / count:.3g} times over the labelled pictures"
    )
    assert parse(FinetuneRecipe, dump(recipe)) == recipe and complete(recipe) == (recipe, [])


def test_watched_images_are_not_learnt_from() -> None:
    data = Opened(Shapes(train_size=60, val_size=10, size=16))
    images = labelled(data, Amount(hold_out=0.3))
    assert images.watched is not None
    source, groups = with_unlabelled(data, images, None, "it", (1, 2), 2)
    keys = [source.key(int(i)) for i in groups.rows[1]]
    watched = {images.watched.key(i) for i in range(len(images.watched))}
    assert watched.isdisjoint(keys) and len(keys) == 60 - len(watched)


def test_images_elsewhere_are_seen_as_the_labelled_ones(export: str) -> None:
    elsewhere = "task.unlabelled.data={name: shapes, train_size: 25, size: 16}"
    recipe = recipe_of(export, elsewhere, "train.batch_size=8")
    without = recipe.task.without_labels
    assert without is not None
    seen = without.seeing(recipe.data)
    assert seen is not None and seen.mean == recipe.data.mean == (0.5, 0.4, 0.3)
    assert len(STAGE.job(recipe, Opened(recipe.data)).dataset.source) == 25 + 2 * 10
    # as it is written out, it says everything
    again = parse(FinetuneRecipe, dump(recipe))
    assert again == recipe and complete(again)[1] == []


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("task.mixing={mixup: 0.8}", r"in a fixed ratio.*set task.mixing=null, or task.unlabelled=null"),
        ("task.repeats=2", "set task.repeats=1"),
        ("task.balance=sqrt", "set task.balance=none"),
        ("task.unlabelled.ratio=0", "ratio"),
        ("task.unlabelled.weight=-1", "weight"),
        ("task.unlabelled.threshold={name: adaptive, cutoff: 0.9}", "cutoff"),
        ("task.unlabelled.threshold={name: flexible}", "adaptive, fixed"),
        ("task.unlabelled.targets={name: sharp, temperature: 0}", "temperature"),
        ("task.unlabelled.strong.rand_augment=autoaug", "expected rand, then any of"),
        ("task.unlabelled.strong.jitter=[0.4, 0.4, 0.4, 0.1]", "set rand_augment: null"),
        ("run.views=device", "run.views=device cannot do what task.unlabelled.strong.rand_augment"),
        (
            "task.unlabelled.data={name: shapes, mean: [0.1, 0.1, 0.1]}",
            r"task.unlabelled.data.mean is \[0.1, 0.1, 0.1\], and data.mean is",
        ),
    ],
)
def test_what_does_not_go_together_is_said(export: str, change: str, says: str) -> None:
    with pytest.raises(RecipeError, match=f"(?s){says}"):
        recipe_of(export, change)


def test_a_sweep_has_no_such_section(export: str) -> None:
    text = f"name: it\nencoder: {export}\ndata: {{name: shapes}}\ntask: {{name: sweep, unlabelled: {{}}}}\n"
    with pytest.raises(RecipeError, match="unlabelled"):
        parse(FinetuneRecipe, text)


def test_a_batch_without_the_ratio_is_refused(export: str) -> None:
    recipe = recipe_of(export, "train.batch_size=10")
    with pytest.raises(UserError, match=r"pictures 1 : 3, so each process needs a multiple of 4 at a time, found 10"):
        STAGE.job(recipe, Opened(recipe.data))


def test_a_folder_alone_is_a_section_of_all_its_pictures(tmp_path: Path) -> None:
    config: Any = Unlabelled.model_validate({"data": str(tmp_path)}).data
    assert (config.name, config.path, config.stray) == ("files", str(tmp_path), "keep")


def test_test_images_among_the_unlabelled_are_refused(tmp_path: Path) -> None:
    for split, numbers in (("train/a", range(6)), ("train/b", range(6, 12)), ("val/a", (20,)), ("val/b", (21,))):
        (folder := tmp_path / split).mkdir(parents=True)
        for number in numbers:
            pixels = np.random.default_rng(number).integers(256, size=(8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
    data = Opened(Files(path=str(tmp_path), train="train", val="val"))
    images, other = labelled(data, Amount(hold_out=0.0)), Files(path=str(tmp_path / "val"), stray="keep")
    with pytest.raises(UserError, match="of val that were looked at are in train too"):
        with_unlabelled(data, images, other, "task.unlabelled.data", (1, 1), 2)
    beside = Files(path=str(tmp_path / "train"), stray="keep")
    source, _ = with_unlabelled(data, images, beside, "beside", (1, 1), 2)
    assert [source.truth(i) for i in range(12, 24)] == [0] * 6 + [1] * 6
