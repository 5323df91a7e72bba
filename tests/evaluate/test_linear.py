from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from unlabeled.evaluate.features import Features
from unlabeled.evaluate.linear import Linear, _batches, _hold_out, _standardize, linear_probe, train_heads


def blobs(n: int, classes: int = 3, noise: float = 0.5, seed: int = 0, width: int = 8) -> Features:
    """Pictures around one centre per class, off the origin and of unequal scales."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % classes
    centres = torch.randn(classes, width, generator=torch.Generator().manual_seed(99))
    x = centres[y] + noise * torch.randn(n, width, generator=generator)
    return Features(5 + x * torch.linspace(0.1, 10, width), y)


def test_every_head_of_the_sweep_is_what_plain_torch_trains_alone() -> None:
    train, config, lrs = blobs(50), Linear(epochs=4, batch_size=16), (0.01, 0.3, 2.0)
    train = _standardize(train, train)[0]
    heads = train_heads(train, 3, lrs, config, seed=7)
    batches = list(_batches(50, config, seed=7))
    assert len(batches) == 12
    for i, lr in enumerate(lrs):
        head = nn.Linear(8, 3)
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
        optimizer = torch.optim.SGD(head.parameters(), lr, momentum=0.9)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(batches))
        for rows in batches:
            optimizer.zero_grad()
            F.cross_entropy(head(train.x[rows]), train.y[rows]).backward()
            optimizer.step()
            schedule.step()
        torch.testing.assert_close(heads.weight[:, i].T, head.weight.detach(), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(heads.bias[i], head.bias.detach(), rtol=1e-4, atol=1e-6)


def test_an_epoch_is_a_new_permutation_and_steps_are_capped() -> None:
    epochs = list(_batches(12, Linear(epochs=3, batch_size=4), seed=0))
    orders = [torch.cat(epochs[i : i + 3]) for i in (0, 3, 6)]
    assert all(order.sort().values.tolist() == list(range(12)) for order in orders)
    assert not torch.equal(orders[0], orders[1])
    assert len(list(_batches(12, Linear(epochs=3, batch_size=4, max_steps=5), seed=0))) == 5


def test_standardized_as_a_batch_norm_over_the_whole_training_set() -> None:
    train, test = blobs(60), blobs(20, seed=1)
    norm = nn.BatchNorm1d(8, affine=False, eps=1e-6, momentum=1.0)
    found_train, found_test = _standardize(train, test)
    torch.testing.assert_close(found_train.x, norm(train.x), rtol=1e-4, atol=1e-5)
    variance, mean = train.x.var(0, correction=0), train.x.mean(0)
    torch.testing.assert_close(found_test.x, (test.x - mean) / (variance + 1e-6).sqrt(), rtol=1e-4, atol=1e-5)


def test_held_out_samples_are_a_tenth_of_each_class_and_not_trained_on() -> None:
    labels = blobs(300).y.numpy()
    draws = list(_hold_out(labels, seed=0))
    assert len(draws) == 5
    for held, kept in draws:
        assert sorted([*held, *kept]) == list(range(300))
        assert [(labels[held] == c).sum() for c in range(3)] == [10, 10, 10]
    assert set(draws[0][0]) != set(draws[1][0])


def test_many_labels_are_held_out_once() -> None:
    assert len(list(_hold_out(blobs(10_000).y.numpy(), seed=0))) == 1


def test_a_class_of_one_stays_in_training() -> None:
    labels = torch.tensor([0, 0, 0, 0, 1]).numpy()
    assert all(4 in kept and 4 not in held for held, kept in _hold_out(labels, seed=0))


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
    assert linear_probe(train, wrong, 3, Linear(lrs=(1.0, 0.1, 1e-60), epochs=20)).lr == lr


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
