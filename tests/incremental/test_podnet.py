"""PODNet, one image, one map and one proxy at a time."""

from __future__ import annotations

import math

import pytest
import torch
from incremental.tiny import coming, kept
from torch import Tensor

from unlabeled.incremental.heads import LocalSimilarity
from unlabeled.incremental.strategies.podnet import Config, nca, pooled, spatial
from unlabeled.incremental.strategy import HEAD, Balanced, Coming, Seen
from unlabeled.look.clusters import kmeans
from unlabeled.randomness import Stream, stream

STRATEGY = Config(proxies=3, flat=2.0, spatial=5.0)


def distance(x: Tensor, y: Tensor) -> float:
    """Of the pooled maps [C, h, w] of one image, entry by entry."""
    rows = []
    for one in (x, y):
        (channels, height, width) = one.shape
        q = [sum(float(one[c, h, w]) ** 2 for w in range(width)) for c in range(channels) for h in range(height)]
        q += [sum(float(one[c, h, w]) ** 2 for h in range(height)) for c in range(channels) for w in range(width)]
        length = math.sqrt(sum(v * v for v in q))
        rows.append([v / length for v in q])
    return math.sqrt(sum((a - b) ** 2 for a, b in zip(*rows, strict=True)))


def test_the_loss_by_hand() -> None:
    torch.manual_seed(0)

    def seen() -> Seen:
        maps = (torch.randn(4, 2, 3, 2).double(), torch.randn(4, 3, 1, 2).double())
        return Seen(torch.randn(4, 6).double(), torch.randn(4, 7).double(), maps)

    now, before, labels, task = seen(), seen(), torch.tensor([4, 0, 6, 3]), coming(memory=2)
    terms = STRATEGY.loss(now, before, labels, task, kept())
    growth, flat, maps, right = math.sqrt(7 / 3), 0.0, 0.0, 0.0
    for i, label in enumerate(labels):
        a, b = now.features[i], before.features[i]
        flat += float(1 - a @ b / a.norm() / b.norm()) / 4
        maps += sum(distance(x[i], y[i]) for x, y in zip(now.maps, before.maps, strict=True)) / (4 * 2)
        row, m = now.logits[i], float(now.logits[i].max())
        wrong = sum(math.exp(float(row[j]) - m) for j in range(7) if j != label)
        right += (m - float(row[label]) + math.log(1 + wrong)) / 4
    assert terms["classification"].item() == pytest.approx(right)
    assert terms["flat"].item() == pytest.approx(2 * growth * flat)
    assert terms["spatial"].item() == pytest.approx(5 * growth * maps)


def test_the_same_maps_are_no_distance_apart_at_any_scale() -> None:
    maps = [torch.randn(2, 3, 4, 5, dtype=torch.float64)]
    assert spatial(maps, [3 * maps[0]]) < 1e-9 and pooled(maps[0]).shape == (2, 3 * 9)


def test_the_classification_of_similarities_far_apart_is_finite() -> None:
    s = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    loss = nca(s, torch.tensor([1]))
    loss.backward()
    assert loss.item() == pytest.approx(2e4 + math.log(2), rel=1e-7) and s.grad is not None and s.grad.isfinite().all()


def begun(task: Coming, images: int = 20) -> tuple[LocalSimilarity, Tensor, Tensor]:
    torch.manual_seed(0)
    before = STRATEGY.head(6, coming(0, 0, task.old), None)
    head = STRATEGY.head(6, task, before)
    labels = torch.arange(task.old, task.classes).repeat_interleave(images)
    features = torch.randn(len(labels), 6, dtype=torch.float64)
    assert isinstance(head, LocalSimilarity)
    STRATEGY.begun(head, features, labels, task)
    return head, features, labels


def test_new_proxies_are_centres_as_long_as_the_old_ones() -> None:
    task = coming()
    head, features, labels = begun(task)
    assert head.known is not None
    length = sum(float(row.norm()) for row in head.known.detach()) / len(head.known)
    for k in range(3):
        unit = torch.stack([f / f.norm() for f in features[labels == 4 + k]])
        cluster = kmeans(unit, 3, stream(0, Stream.STRATEGY, 1, 2, k))
        for p in range(3):
            centre = unit[cluster == p].mean(0)
            torch.testing.assert_close(head.coming[3 * k + p].double(), length * centre, rtol=1e-5, atol=1e-6)
    assert len(torch.unique(head.coming, dim=0)) == 9


def test_proxies_follow_from_seed_and_task() -> None:
    one, same, seed, number = (begun(task)[0].coming for task in (coming(), coming(), coming(seed=1), coming(number=2)))
    assert one.equal(same) and not one.equal(seed) and not one.equal(number)


def test_a_class_with_fewer_images_than_proxies_repeats_them() -> None:
    head, features, _ = begun(coming(), images=2)
    directions = head.coming[:3] / head.coming[:3].norm(dim=1, keepdim=True)
    unit = (features[:2] / features[:2].norm(dim=1, keepdim=True)).float()
    assert all((unit - row).norm(dim=1).min() < 1e-5 for row in directions) and directions[0].equal(directions[2])


def test_the_first_tasks_proxies_are_random() -> None:
    task = coming(0, 0, 4)
    head = STRATEGY.head(6, task, None)
    assert isinstance(head, LocalSimilarity)
    drawn = head.coming.clone()
    STRATEGY.begun(head, torch.randn(8, 6), torch.arange(4).repeat(2), task)
    assert head.coming.equal(drawn)


def test_old_proxies_rest_until_the_head_learns_alone() -> None:
    head = STRATEGY.head(6, coming(), STRATEGY.head(6, coming(0, 0, 4), None))
    resting = [name for name, _ in head.named_parameters() if STRATEGY.resting(f"{HEAD}{name}", coming())]
    assert resting == ["known"] and not STRATEGY.resting("backbone.known", coming())
    assert STRATEGY.balanced == Balanced(epochs=20, base_lr=0.1) and Config(balanced_epochs=0).balanced is None
