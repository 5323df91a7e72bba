"""Category discovery with training: losses over processes, which pictures are learnt from, scores, what is refused."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from support import on_processes
from torch import Tensor

from unlabeled.backbone.config import EncoderConfig
from unlabeled.backbone.encoder import Encoder
from unlabeled.backbone.folder import IMAGENET
from unlabeled.data.batch.batch import Batch, ViewBatch
from unlabeled.data.opened import Opened
from unlabeled.data.sources.files import Config as Files
from unlabeled.data.sources.shapes import Config as Shapes
from unlabeled.errors import UserError
from unlabeled.evaluate.features import Features
from unlabeled.nn.mixing import Mix
from unlabeled.pretrain.method import Progress
from unlabeled.recipe import RecipeError, parse
from unlabeled.report.card import Made
from unlabeled.stages.finetune import FinetuneRecipe
from unlabeled.train.tracking import Diagnosis
from unlabeled.transfer.labels import Amount
from unlabeled.transfer.simgcd.images import joined, labelled
from unlabeled.transfer.simgcd.loss import Losses, unevenness
from unlabeled.transfer.simgcd.method import SimGcd
from unlabeled.transfer.simgcd.score import Scorer
from unlabeled.transfer.strategies import last
from unlabeled.transfer.tasks import classify
from unlabeled.transfer.tasks.simgcd import Config

B, K, D, DEPTH = 12, 5, 4, 3
START = Progress(0, 10, 0.0, 1.0)


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ---------------------------------------------------------------- losses


def of_rows(first: int, end: int) -> dict[str, Tensor]:
    """Loss, measures and gradients of some of the pictures, of which every other one is labelled."""
    inputs = [(drawn(seed, 2, B, width))[:, first:end].clone().requires_grad_() for seed, width in ((0, K), (1, D))]
    labels = (torch.arange(B) // 2 % 2)[first:end:2]
    losses = Losses(memax=3.0)
    terms = losses.terms(inputs[0].tanh(), inputs[1], torch.arange(0, end - first, 2), labels, 0.05)
    losses.total(terms).backward()
    found = {name: term.detach() for name, term in (terms | losses.measures(inputs[0].tanh())).items()}
    for name, one in zip(("logits", "projected"), inputs, strict=True):
        assert one.grad is not None
        found[f"grad_{name}"] = one.grad
    return found


def _half(rank: int) -> dict[str, Tensor]:
    return of_rows(rank * B // 2, (rank + 1) * B // 2)


def test_two_processes_have_the_loss_and_gradients_of_one() -> None:
    halves, whole = on_processes(_half), of_rows(0, B)
    for name, value in whole.items():
        if name.startswith("grad"):  # processes average their gradients
            ours = torch.cat([half[name] for half in halves], dim=1) / 2
        else:
            ours = torch.stack([half[name] for half in halves]).mean(0)
        torch.testing.assert_close(ours, value, msg=name)
    assert halves[0]["memax"].equal(halves[1]["memax"]) and not halves[0]["cluster"].equal(halves[1]["cluster"])


def test_memax_is_what_evens_clusters() -> None:
    """Without it the gradient is another, and a step along its own lowers the largest share."""
    torch.testing.assert_close(unevenness(torch.full((K,), 1 / K, dtype=torch.float64)).item(), 0.0, atol=1e-12, rtol=0)
    rows, labels = torch.tensor([0, 4]), torch.tensor([0, 1])
    logits = (drawn(0, 2, B, K) / 10 + torch.eye(K, dtype=torch.float64)[2] / 2).requires_grad_()
    slopes = []
    for weight in (0.0, 2.0):
        losses = Losses(memax=weight)
        total = losses.total(losses.terms(logits, drawn(1, 2, B, D), rows, labels, 0.05))
        slopes.append(torch.autograd.grad(total, logits)[0])
    memax = slopes[1] - slopes[0]
    assert memax.abs().max() > 1e-3
    before, after = (Losses().measures(one) for one in (logits.detach(), logits.detach() - 5 * memax))
    assert before["cluster_largest"] == 100 and after["cluster_largest"] < 100
    assert after["cluster_entropy"] > before["cluster_entropy"]


def test_mixed_pictures_have_the_classes_of_both() -> None:
    """Rows 0 and 1: labelled and unlabelled; 2 and 3 both sure; 4 and 5, of which one is not, count for nothing."""
    sharp = torch.tensor([[1, 1], [3, 2], [9, 0], [0, 9], [9, 0], [1, 1]], dtype=torch.float64).softmax(-1)
    share, logits = torch.tensor([0.7, 0.3, 0.6, 0.4, 0.5, 0.5], dtype=torch.float64), drawn(2, 6, 2)
    mix = Mix(share, torch.zeros(6, 4, dtype=torch.int64))
    found = Losses(student=0.2).mixed(logits, sharp, torch.tensor([0]), torch.tensor([1]), mix)
    aims = [torch.tensor([0.0, 1.0], dtype=torch.float64), *sharp[1:4]]
    losses = []
    for i, other in enumerate((1, 0, 3, 2)):
        aim = share[i] * aims[i] + (1 - share[i]) * aims[other]
        losses.append(-(aim * (logits[i] / 0.2).log_softmax(0)).sum())
    torch.testing.assert_close(found, torch.stack(losses).sum() / 6)


# ---------------------------------------------------------------- the task


def encoder() -> Encoder:
    torch.manual_seed(0)
    tiny: Any = {"patch_size": 4, "width": 16, "depth": DEPTH, "heads": 2}
    return EncoderConfig(model="vit_tiny_patch16_224", **tiny).build((8, 8))


def built(**settings: Any) -> SimGcd:
    config = Config(view={"size": 8}, hidden=10, bottleneck=6, known=3, classes=K, **settings)
    source: Any = SimpleNamespace(classes=tuple("abcdef"))
    model = config.begin(encoder(), source, None, 0)
    assert isinstance(model, SimGcd)
    return model.train()


def batch(ratio: int = 2, periods: int = 2) -> Batch:
    rows = periods * (1 + ratio)
    labels = torch.full((rows,), -1)
    labels[:: 1 + ratio] = torch.arange(periods)
    return Batch([ViewBatch(drawn(3, 2, rows, 3, 8, 8).float(), None)], labels, torch.arange(rows))


def test_the_last_block_and_the_head_learn() -> None:
    model = built(ratio=2)
    output = model(batch(), START)
    output.loss.backward()
    learns = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name for name, parameter in model.named_parameters() if parameter.grad is not None} == learns
    deep = {name.split(".")[3] for name in learns if ".blocks." in name}
    assert deep == {str(DEPTH - 1)} and not any("patch_embed" in name or "pos_embed" in name for name in learns)
    assert {"head.mlp.0.weight", "head.last_layer.weight_v", "classifier.model.norm.weight"} <= learns
    modes = [block.norm1.training for block in model.classifier.model.blocks]
    assert modes == [False] * (DEPTH - 1) + [True]
    assert output.features is not None and output.features.shape == (6, 16)


def test_the_strategy_last_says_how_many_blocks_and_serves_classification() -> None:
    for blocks in (0, 2, 9):
        config = classify.Config(strategy=last.Config(blocks=blocks, layer_decay=0.5), view={"size": 8})
        model = classify.Classifier(encoder(), config, [1, 1])
        found = {name.split(".")[2] for name, p in model.named_parameters() if p.requires_grad and ".blocks." in name}
        assert found == {str(number) for number in range(max(0, DEPTH - blocks), DEPTH)}
        assert model.lr_scale("model.blocks.2.attn.qkv.weight") == 0.5
    assert last.Config(blocks=2).plan(4, 10) == "the last 2 of 4 layers below the head, the others never"


def test_labels_are_those_of_labelled_pictures_alone() -> None:
    """Labels of other rows change nothing; those of labelled ones do."""
    model, own = built(ratio=2), batch()
    loss = model(own, START).loss
    other = own.labels.clone()
    other[1], other[2] = 4, 3
    assert model(own._replace(labels=other), START).loss.equal(loss)
    other[0] = 2
    assert not model(own._replace(labels=other), START).loss.equal(loss)


def test_mixing_adds_a_term_and_leaves_the_others() -> None:
    model, own = built(ratio=1), batch(1, 3)
    mix = Mix(torch.full((6,), 0.6), torch.zeros(6, 4, dtype=torch.int64))
    plain, mixed = model(own, START), model(own._replace(mix=mix), START)
    torch.testing.assert_close(mixed.loss, plain.loss + mixed.metrics["mixed"])
    assert "mixed" not in plain.metrics and mixed.metrics["mixed"] > 0


def test_the_teacher_sharpens_with_the_epochs() -> None:
    model = built(teacher_temperature_epochs=3)
    found = [model(batch(1, 3), Progress(0, 10, epoch, 10.0)).metrics["cluster"] for epoch in (0.0, 0.9, 1.0, 2.0, 7.0)]
    assert found[0].equal(found[1]) and found[3].equal(found[4])
    assert len({one.item() for one in found}) == 3


def test_an_export_predicts_the_same(tmp_path: Path) -> None:
    model = built().eval()
    made = Made("run", "name: run\n", 10, "x", 1, 0, 0, encoder="e", way="simgcd", classes=tuple("abcdef"))
    assert model.export(tmp_path / "export", IMAGENET._replace(size=(8, 8)), made)
    loaded: Any = timm.create_model(f"local-dir:{tmp_path / 'export'}", pretrained=True).eval()
    images = drawn(4, 9, 3, 8, 8).float()
    with torch.no_grad():
        assert loaded(images).argmax(-1).equal(model.predict(images).argmax(-1))
    assert loaded.pretrained_cfg["label_names"] == ["a", "b", "c", "new 1", "new 2"]


def test_one_cluster_for_all_is_a_symptom() -> None:
    model, said = built(memax_weight=2.0), list[str]()
    assert "negatives of the batch" in model.batch_statistics()
    diagnosis = Diagnosis(model.symptoms(), 10000, said.append)
    for step in range(2000, 3000, 50):
        diagnosis.read(step, {"cluster_largest": 60.0, "cluster_entropy": 1.0})
    assert not said
    for step in range(3000, 4000, 50):
        diagnosis.read(step, {"cluster_largest": 99.0, "cluster_entropy": 0.01})
    assert len(said) == 2 and all("Raise task.memax_weight from 2 to 4." in one for one in said)


# ---------------------------------------------------------------- pictures and scores


def test_known_classes_are_labelled_in_part_and_all_others_hidden() -> None:
    data = Opened(Shapes(train_size=80, size=16))
    images = labelled(data, 6, None, Amount(0.5))
    names, count = data.train.classes, len(data.train)
    assert set(images.train.labels.tolist()) == set(range(6)) and images.watched is None
    assert len(images.train) + len(images.test) == count
    assert {images.train.key(i) for i in range(len(images.train))}.isdisjoint(
        images.test.key(i) for i in range(len(images.test))
    )
    assert set(images.test.labels.tolist()) == set(range(len(names)))
    whole, groups = joined(images.train, images.test, 3)
    assert (whole.labels[groups.rows[1]] == -1).all() and groups.shares == (1, 3)
    assert whole.labels[groups.rows[0]].tolist() == images.train.labels.tolist()
    assert len(groups.rows[1]) == len(images.test)


def folders(home: Path, **counts: int) -> str:
    for number, (name, count) in enumerate(counts.items()):
        (home / name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (8, 8), (40 * number, 20 * i, 7)).save(home / name / f"{i}.png")
    return str(home)


def test_pictures_elsewhere_are_scored_by_their_folders_known_classes_first(tmp_path: Path) -> None:
    data = Opened(Files(path=folders(tmp_path / "named", pear=3, plum=3), val=None))
    other = Files(path=folders(tmp_path / "other", apple=2, fig=1, pear=4), val=None)
    images = labelled(data, None, other, Amount())
    assert images.test.classes == ("pear", "plum", "apple", "fig")
    assert images.test.labels.tolist() == [2, 2, 3, 0, 0, 0, 0]


def test_without_folders_the_labelled_split_is_scored(tmp_path: Path) -> None:
    (tmp_path / "bare").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "bare" / "a.png")
    other = Files(path=str(tmp_path / "bare"), stray="keep", val=None)
    images = labelled(Opened(Shapes(train_size=40, val_size=20, size=16)), None, other, Amount())
    assert len(images.test) == 20
    named = Opened(Files(path=folders(tmp_path / "named", pear=3, plum=3), val=None))
    with pytest.raises(UserError, match=r"nothing tells how good the clusters are.*data\.split=0\.2"):
        labelled(named, None, other, Amount())


def test_scores_are_by_one_matching_of_clusters_with_classes() -> None:
    """Classes 0 and 1 are known, 2 and 3 new; cluster 4 holds class 2."""
    y = torch.tensor([0, 0, 1, 1, 2, 2, 3])
    clusters = torch.tensor([0, 0, 1, 4, 4, 4, 4])
    source = SimpleNamespace(classes=("a", "b", "c", "d"))
    logits = torch.nn.functional.one_hot(clusters, K).float()

    def predict(encode: Any, method: Any, source: Any, reduce: Any) -> Features:
        return Features(reduce(encode(logits), y), y, torch.arange(7))

    method = SimpleNamespace(predict=lambda images: images, classes=K)
    scorer = Scorer(predict, source, 2)  # type: ignore[arg-type]
    found = scorer(method)
    assert found["all"] == pytest.approx(100 * 5 / 7)
    assert (found["old"], found["new"]) == (pytest.approx(75), pytest.approx(200 / 3))
    assert found["pictures"] == 7 and found["groups"] == {"all": 7, "old": 4, "new": 3}
    assert found["cluster_largest"] == pytest.approx(400 / 7)
    rows = {row["name"]: (row["pictures"], row["class"], row["right"]) for row in found["clusters"]}
    assert rows["a"] == (2, "a", 2) and rows["b"] == (1, "b", 1) and rows["new 3"] == (4, "c", 2)
    assert list(rows) == ["a", "b", "new 1", "new 2", "new 3"]
    assert np.array_equal(scorer.clusters, clusters.numpy())


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("task", "says"),
    [
        ("{name: simgcd, strategy: {name: linear}}", "strategy linear is for classifiers: expected last, frozen"),
        ("{name: simgcd, unlabelled: /photos}", r"set task\.classes to known and new ones together"),
        ("{name: simgcd, known: 5, classes: 4}", "classes 4 are fewer than the 5 known ones"),
        ("{name: simgcd, view: {size: 16, count: 2}}", "cuts two crops by itself, found count 2"),
        ("{name: simgcd, ratio: 2, mix_unlabelled: {mixup: 0.5}}", r"expected an odd ratio, found 2.*task\.ratio=1"),
        ("{name: simgcd, mixing: null}", r"task\.mixing: unknown field"),
        ("{name: simgcd, known: 5}\nwatch: {every: 10}", "Set watch=null"),
    ],
)
def test_sections_that_say_too_much_or_too_little(task: str, says: str) -> None:
    text = f"name: it\nencoder: scratch:timm:vit_tiny_patch16_224\ndata: {{name: shapes, size: 16}}\ntask: {task}\n"
    with pytest.raises(RecipeError, match=says):
        parse(FinetuneRecipe, text)


@pytest.mark.parametrize(
    ("known", "says"),
    [
        (None, r"are known, and task\.unlabelled is null: there is nothing to discover"),
        (99, r"task\.known is 99, and data\.train has \d+ classes"),
    ],
)
def test_there_must_be_something_to_discover(known: int | None, says: str) -> None:
    with pytest.raises(UserError, match=says):
        labelled(Opened(Shapes(train_size=40, size=16)), known, None, Amount())
    source: Any = SimpleNamespace(classes=("a", "b", "c"))
    with pytest.raises(UserError, match=r"task\.classes is 3, and 3 classes are known.*Set task\.classes to 4 or more"):
        Config(classes=3, view={"size": 8}).begin(encoder(), source, None, 0)
