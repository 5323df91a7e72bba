"""Elastic weight consolidation, one weight at a time."""

from __future__ import annotations

import pytest
import torch
from incremental.tiny import after, blobs, coming, kept
from torch import nn

from unlabeled.incremental.strategies.ewc import Config
from unlabeled.incremental.strategy import HEAD, Coming, Kept, Seen


def model(classes: int, before: nn.Module | None = None) -> nn.ModuleDict:
    """A backbone, and a head that grows."""
    torch.manual_seed(classes)
    made = nn.ModuleDict({"backbone": nn.Linear(6, 6), "head": nn.Linear(6, classes)}).double()
    if before is not None:
        made["backbone"].load_state_dict(before["backbone"].state_dict())  # type: ignore[index]
        with torch.no_grad():
            for name in ("weight", "bias"):
                old = getattr(before["head"], name)  # type: ignore[index]
                getattr(made["head"], name)[: len(old)] = old
    return made


def ended(strategy: Config, network: nn.Module, task: Coming, state: Kept, scale: float) -> Kept:
    named = dict(network.named_parameters())
    found = {name: (scale * p).detach().square() for name, p in named.items()}
    x, y = blobs(1, 2)
    return kept(strategy.learnt(after(x, y, parameters=named, importances=found), task, state))


@pytest.mark.parametrize("limit", [1e-4, 1e3])
def test_the_penalty_one_weight_at_a_time(limit: float) -> None:
    strategy = Config(weight=700.0, max_importance=limit)
    first, task = model(4), coming(0, 0, 4)
    state = ended(strategy, first, task, kept(), 0.3)
    assert strategy.penalty(dict(first.named_parameters()), coming(), state)["penalty"] == 0
    second = model(7, first)
    assert strategy.penalty(dict(second.named_parameters()), coming(), state)["penalty"] == 0, "new rows are free"
    for parameter in second.parameters():
        parameter.data.add_(torch.randn_like(parameter))

    expected = 0.0
    for (name, then), now in zip(first.named_parameters(), second.parameters(), strict=True):
        for row in range(len(then)):
            importance = (0.3 * then[row]).square().clamp(max=limit)
            expected += 700 / 2 * float((importance * (now[row] - then[row]) ** 2).sum().detach())
            assert name.startswith(HEAD) or len(now) == len(then)
    found = strategy.penalty(dict(second.named_parameters()), coming(), state)["penalty"]
    assert found.item() == pytest.approx(expected, rel=1e-12) and expected > 0


def test_one_step_away_the_penalty_pulls_back() -> None:
    strategy, network = Config(), model(4)
    state = ended(strategy, network, coming(0, 0, 4), kept(), 0.3)
    x, y = blobs(4, 3)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    for moved in (False, True):
        optimizer.zero_grad()
        found = strategy.penalty(dict(network.named_parameters()), coming(), state)["penalty"]
        assert bool(found > 0) == moved
        logits = network["head"](network["backbone"](x))
        terms = strategy.loss(Seen(x, logits), None, y, coming(0, 0, 4), kept())
        (found + terms["classification"]).backward()
        optimizer.step()


def test_importances_of_tasks_are_merged_by_their_classes() -> None:
    strategy = Config(max_importance=1e-2)
    first, second = model(4), model(7)
    one = ended(strategy, first, coming(0, 0, 4), kept(), 0.3)
    two = ended(strategy, second, coming(1, 4, 3), one, 0.5)
    for (name, then), now in zip(first.named_parameters(), second.parameters(), strict=True):
        key = name.replace(".", "/")
        limited = [(0.3 * then).square().clamp(max=1e-2), (0.5 * now).square().clamp(max=1e-2)]
        expected = limited[1].clone()
        expected[: len(then)] = 4 / 7 * limited[0] + 3 / 7 * limited[1][: len(then)]
        torch.testing.assert_close(two.tensors[f"importance/{key}"], expected.detach())
        assert two.tensors[f"anchor/{key}"].equal(now)
        assert two.tensors[f"anchor/{key}"].data_ptr() != now.data_ptr(), "a copy, which training does not move"


def test_what_did_not_learn_before_is_free() -> None:
    network, strategy = model(4), Config()
    named = dict(network.named_parameters())
    head = {name: p for name, p in named.items() if name.startswith(HEAD)}
    x, y = blobs(1, 2)
    end = after(x, y, parameters=head, importances={name: torch.ones_like(p) for name, p in head.items()})
    state = kept(strategy.learnt(end, coming(0, 0, 4), kept()))
    network["backbone"].weight.data.add_(1.0)  # type: ignore[operator]
    assert strategy.penalty(named, coming(), state)["penalty"] == 0
