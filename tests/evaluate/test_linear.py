from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from unlabeled.evaluate.features import Features
from unlabeled.evaluate.probing import batches, hold_out, standardize
from unlabeled.evaluate.protocols.linear import Config as Linear
from unlabeled.evaluate.protocols.linear import linear_probe, sweep, train_heads


def blobs(n: int, classes: int = 3, noise: float = 0.5, seed: int = 0, width: int = 8) -> Features:
    """Pictures around one centre per class, off the origin and of unequal scales."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % classes
    centres = torch.randn(classes, width, generator=torch.Generator().manual_seed(99))
    x = centres[y] + noise * torch.randn(n, width, generator=generator)
    return Features(5 + x * torch.linspace(0.1, 10, width), y)


def test_every_head_of_the_sweep_is_what_plain_torch_trains_alone() -> None:
    train, config, lrs = blobs(50), Linear(epochs=4, batch_size=16), (0.01, 0.3, 2.0)
    train = standardize(train, train)[0]
    kinds = torch.stack([train.x, train.x.flip(0) ** 2])
    heads = train_heads(kinds, train.y, 3, lrs, config, seed=7)
    steps = list(batches(50, config, seed=7))
    assert len(steps) == 12
    for (kind, x), (i, lr) in itertools.product(enumerate(kinds), enumerate(lrs)):
        head = nn.Linear(8, 3)
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
        optimizer = torch.optim.SGD(head.parameters(), lr, momentum=0.9)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(steps))
        for rows in steps:
            optimizer.zero_grad()
            F.cross_entropy(head(x[rows]), train.y[rows]).backward()
            optimizer.step()
            schedule.step()
        torch.testing.assert_close(heads.weight[kind, :, i].T, head.weight.detach(), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(heads.bias[kind, i], head.bias.detach(), rtol=1e-5, atol=1e-5)


def test_an_epoch_is_a_new_permutation_and_steps_are_capped() -> None:
    epochs = list(batches(12, Linear(epochs=3, batch_size=4), seed=0))
    orders = [torch.cat(epochs[i : i + 3]) for i in (0, 3, 6)]
    assert all(order.sort().values.tolist() == list(range(12)) for order in orders)
    assert not torch.equal(orders[0], orders[1])
    assert len(list(batches(12, Linear(epochs=3, batch_size=4, max_steps=5), seed=0))) == 5


def test_standardized_as_a_batch_norm_over_the_whole_training_set() -> None:
    train, test = blobs(60), blobs(20, seed=1)
    norm = nn.BatchNorm1d(8, affine=False, eps=1e-6, momentum=1.0)
    found_train, found_test = standardize(train, test)
    torch.testing.assert_close(found_train.x, norm(train.x), rtol=1e-4, atol=1e-5)
    variance, mean = train.x.var(0, correction=0), train.x.mean(0)
    torch.testing.assert_close(found_test.x, (test.x - mean) / (variance + 1e-6).sqrt(), rtol=1e-4, atol=1e-5)


def test_held_out_samples_are_a_tenth_of_each_class_and_not_trained_on() -> None:
    labels = blobs(300).y.numpy()
    draws = list(hold_out(labels, seed=0))
    assert len(draws) == 5
    for held, kept in draws:
        assert sorted([*held, *kept]) == list(range(300))
        assert [(labels[held] == c).sum() for c in range(3)] == [10, 10, 10]
    assert set(draws[0][0]) != set(draws[1][0])
    assert not {tuple(held) for held, _ in draws} & {tuple(held) for held, _ in hold_out(labels, seed=1)}


def test_many_labels_are_held_out_once() -> None:
    assert len(list(hold_out(blobs(10_000).y.numpy(), seed=0))) == 1


def test_a_class_of_one_stays_in_training() -> None:
    labels = torch.tensor([0, 0, 0, 0, 1]).numpy()
    assert all(4 in kept and 4 not in held for held, kept in hold_out(labels, seed=0))


def test_finds_what_is_linear() -> None:
    accuracy, lr = linear_probe(blobs(300), blobs(300, seed=1), 3, Linear(epochs=20))
    assert accuracy > 95
    assert lr in Linear().lrs


def test_the_rate_is_chosen_on_held_out_samples_and_ties_go_to_the_smaller() -> None:
    # a rate that is zero in float32 always says class 0; the two large ones separate everything
    train, test = blobs(300, noise=0.01), blobs(300, noise=0.01, seed=1)
    accuracy, lr = linear_probe(train, test, 3, Linear(lrs=(1.0, 0.1, 1e-60), epochs=20))
    assert (accuracy, lr) == (100, 0.1)
    wrong = Features(test.x, torch.where(test.y == 0, 0, 3 - test.y))
    assert linear_probe(train, wrong, 3, Linear(lrs=(1.0, 0.1, 1e-60), epochs=20))[1] == lr


def test_a_sweep_over_features_of_all_widths_finds_the_best_alone_does() -> None:
    """Noise, the classes, the same again, and the classes beside noise; the chosen head is as if trained alone."""

    def kinds(n: int, seed: int) -> list[Features]:
        good = blobs(n, noise=2, seed=seed)
        noise = torch.randn(n, 8, generator=torch.Generator().manual_seed(seed))
        return [Features(x, good.y) for x in (noise, good.x, good.x, torch.cat([noise, good.x], 1))]

    config = Linear(lrs=(0.3, 1e-4, 0.03), epochs=5, batch_size=32)
    pairs = list(zip(kinds(300, 0), kinds(300, 1), strict=True))
    found = sweep(pairs, 3, config, seed=2)
    right = torch.zeros(4, 3)
    for (kind, (train, _)), (rate, lr) in itertools.product(enumerate(pairs), enumerate(config.lrs)):
        train = standardize(train, train)[0]
        for held, kept in hold_out(train.y.numpy(), seed=2):
            heads = train_heads(train.x[None, kept], train.y[kept], 3, (lr,), config, seed=2)
            right[kind, rate] += (heads.logits(train.x[None, held])[0, :, 0].argmax(1) == train.y[held]).sum()
    assert right[found.kind, config.lrs.index(found.lr)] == right.max()
    assert found.kind != 0 and found.kind != 2, "of equal ones the first"
    alone = sweep([pairs[found.kind]], 3, config.model_copy(update={"lrs": (found.lr,)}), seed=2)
    assert torch.equal(found.hits, alone.hits)


def test_features_that_can_only_be_learnt_by_heart_are_not_chosen() -> None:
    def kinds(n: int, seed: int) -> list[Features]:
        good = blobs(n, noise=3, seed=seed)
        wide = torch.randn(n, 300, generator=torch.Generator().manual_seed(seed))
        return [Features(x, good.y) for x in (wide, good.x, good.x)]

    config, pairs = Linear(lrs=(0.1,), epochs=30), list(zip(kinds(100, 0), kinds(300, 1), strict=True))
    found = sweep(pairs, 3, config)
    assert found.kind == 1, "of equal ones the first"
    # what was chosen learns from all pictures
    train, test = standardize(*pairs[1])
    head = train_heads(train.x[None], train.y, 3, config.lrs, config, seed=0)
    assert torch.equal(found.hits, head.logits(test.x[None])[0, :, 0].argmax(1) == test.y)


def test_features_as_they_are() -> None:
    """Unscaled, the first dimensions are too faint to learn from at this rate."""
    train, test = (Features(split.x * torch.tensor([0.01] * 8), split.y) for split in (blobs(300), blobs(300, seed=1)))
    rates = (0.1,)
    scaled, raw = (Linear(lrs=rates, epochs=5, standardize=scaling) for scaling in (True, False))
    assert linear_probe(train, test, 3, scaled)[0] > linear_probe(train, test, 3, raw)[0]


def test_one_sample_per_class() -> None:
    accuracy, _ = linear_probe(blobs(3, noise=0.1), blobs(300, noise=0.1, seed=1), 3, Linear())
    assert accuracy > 90


def test_a_diverging_rate_spoils_no_other() -> None:
    train, test = blobs(60), blobs(60, seed=1)
    alone = linear_probe(train, test, 3, Linear(lrs=(0.1,), epochs=5))
    assert linear_probe(train, test, 3, Linear(lrs=(0.1, 1e38), epochs=5)) == alone


def test_deterministic_by_its_own_seed() -> None:
    train, test, config = blobs(200, noise=3), blobs(500, noise=3, seed=1), Linear(epochs=3, batch_size=16)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = linear_probe(train, test, 3, config, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert linear_probe(train, test, 3, config, seed=1) == first


@pytest.mark.parametrize("lrs", [(), (0.0,), (float("nan"),)])
def test_refuses_rates_that_cannot_be(lrs: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="lrs"):
        Linear(lrs=lrs)
