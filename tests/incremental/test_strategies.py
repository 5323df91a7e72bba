"""What every class-incremental strategy promises, whichever it is."""

from __future__ import annotations

import pytest
import torch
from incremental.tiny import after, blobs, coming, kept
from torch import Tensor

from unlabeled.incremental.strategies import derpp
from unlabeled.incremental.strategy import STRATEGIES, Coming, Kept, Seen, Strategy

NAMES = ("der", "derpp", "ewc", "icarl", "lwf", "mgsvf", "ncm", "podnet", "ranpac")
ROWS = 12  # of a batch; a third of them are new where others are drawn from memory


def strategy(name: str) -> Strategy:
    made = STRATEGIES.kind(name)()
    assert isinstance(made, Strategy)
    return made


TRAINED = tuple(name for name in NAMES if strategy(name).trains)


def test_there_are_nine() -> None:
    assert tuple(STRATEGIES.names()) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_every_field_says_what_it_is(name: str) -> None:
    kind = STRATEGIES.kind(name)
    assert kind.__doc__ and kind.model_fields["name"].default == name
    assert all(field.description for key, field in kind.model_fields.items() if key != "name")
    assert STRATEGIES.kind(name).model_validate(strategy(name).model_dump()) == strategy(name)


def test_what_each_one_asks_for() -> None:
    def those(attribute: str) -> set[str]:
        return {name for name in NAMES if getattr(strategy(name), attribute)}

    assert set(NAMES) - those("trains") == {"ncm", "ranpac"}
    assert those("teacher") == {"icarl", "lwf", "mgsvf", "podnet"}
    assert those("maps") == {"podnet"} and those("extends") == {"der"} and those("draws") == {"derpp"}
    assert those("remembers") == {"der", "derpp", "icarl", "podnet"}
    assert those("linear") == {"derpp", "ewc", "lwf"}
    assert those("balanced") == {"der", "podnet"}
    assert {name: strategy(name).spaces for name in NAMES if strategy(name).spaces > 1} == {"mgsvf": 2}


def rows(tensor: Tensor, part: slice | None) -> Tensor:
    return tensor if part is None else tensor[part]


def batch(task: Coming, dtype: torch.dtype = torch.float64) -> tuple[Seen, Seen, Tensor, Kept]:
    """What two networks make of a batch, of which all parts that draw from memory have old classes."""
    torch.manual_seed(0)

    def seen(classes: int) -> Seen:
        maps = (torch.randn(ROWS, 3, 4, 2), torch.randn(ROWS, 5, 2, 2))
        parts = (torch.randn(ROWS, 8), torch.randn(ROWS, classes), *maps, torch.randn(ROWS, task.new + 1))
        features, logits, first, second, auxiliary = (part.to(dtype).requires_grad_() for part in parts)
        return Seen(features, logits, (first, second), auxiliary, torch.arange(ROWS))

    labels = task.old + torch.arange(ROWS) % task.new
    if task.remembered:
        labels[4:] = torch.arange(ROWS - 4) % task.old
    stored = torch.randn(ROWS, task.old, dtype=dtype)
    known = torch.arange(ROWS) % max(1, task.old) + 1
    memory = kept({"numbers": torch.arange(ROWS), "logits": stored, "known": known}, torch.arange(ROWS))
    return seen(task.classes), seen(max(1, task.old)), labels, memory


def chosen(seen: Seen, part: Tensor) -> Seen:
    assert seen.auxiliary is not None and seen.numbers is not None
    maps = tuple(one[part] for one in seen.maps)
    return Seen(seen.features[part], seen.logits[part], maps, seen.auxiliary[part], seen.numbers[part])


def total(terms: dict[str, Tensor]) -> Tensor:
    assert all(term.ndim == 0 for term in terms.values())
    return torch.stack(list(terms.values())).sum()


@pytest.mark.parametrize("memory", [0, 2])
@pytest.mark.parametrize("name", TRAINED)
def test_the_loss_of_a_batch_is_the_mean_of_those_of_its_halves(name: str, memory: int) -> None:
    """So that one process and two that share a batch learn the same."""
    task, one = coming(memory=memory), strategy(name)
    now, before, labels, remembered = batch(task)
    whole = total(one.loss(now, before, labels, task, remembered))
    # of each part, new images and each draw, one half
    size = ROWS // (1 + sum(one.draws))
    place = torch.arange(ROWS) % size
    halves = []
    for half in (place < size // 2, place >= size // 2):
        losses = one.loss(chosen(now, half), chosen(before, half), labels[half], task, remembered)
        halves.append(total(losses))
    torch.testing.assert_close(whole, torch.stack(halves).mean())
    assert not torch.isclose(halves[0], halves[1])


@pytest.mark.parametrize("name", TRAINED)
def test_the_network_before_learns_nothing(name: str) -> None:
    task, one = coming(memory=2), strategy(name)
    now, before, labels, remembered = batch(task)
    total(one.loss(now, before, labels, task, remembered)).backward()
    assert now.logits.grad is not None and now.logits.grad.abs().sum() > 0
    assert all(tensor.grad is None for tensor in (before.features, before.logits, *before.maps))


@pytest.mark.parametrize("name", TRAINED)
def test_losses_are_in_float32_whatever_the_network_computes_in(name: str) -> None:
    task, one = coming(memory=2), strategy(name)
    now, before, labels, remembered = batch(task, torch.bfloat16)
    found = one.loss(now, before, labels, task, remembered)
    assert all(term.dtype == torch.float32 for term in found.values())
    now, before, labels, remembered = batch(task, torch.float64)
    assert total(one.loss(now, before, labels, task, remembered)).dtype == torch.float64


@pytest.mark.parametrize("name", TRAINED)
def test_the_first_task_is_classification_alone(name: str) -> None:
    task, one = coming(number=0, old=0), strategy(name)
    now, _, labels, _ = batch(task)
    now = now._replace(auxiliary=None)
    assert list(one.loss(now, None, labels, task, kept())) == ["classification"]
    assert one.auxiliary(8, task) is None
    assert one.penalty({"x": torch.ones(2)}, task, kept()) == {}


@pytest.mark.parametrize("name", NAMES)
def test_a_head_knows_all_classes(name: str) -> None:
    torch.manual_seed(0)
    one, before = strategy(name), None
    for number, (old, new) in enumerate(((0, 4), (4, 3))):
        task, width = coming(number, old, new), 8 * (1 + number * one.extends)
        head = one.head(width, task, before)
        assert head(torch.randn(5, width)).shape == (5, old + new)
        before = head


@pytest.mark.parametrize("name", NAMES)
def test_what_is_kept_goes_through_a_walk_of_tasks(name: str) -> None:
    """Tensors that a checkpoint can hold, whose names have no dots, and scores of all classes seen."""
    one, state, memory = strategy(name), kept(), torch.arange(0)
    x, y = blobs(6, 8, width=8)
    for number, seen in enumerate((2, 4, 6)):
        task = coming(number, seen - 2, 2)
        mine = ((y >= seen - 2) & (y < seen)) | torch.isin(torch.arange(48), memory)
        weights, memory = {"head.weight": x[:seen]}, (torch.arange(seen)[:, None] * 8 + torch.arange(3)).flatten()
        logits = torch.randn(int(mine.sum()), seen)
        end = after(x[mine], y[mine], mine.nonzero()[:, 0], logits, parameters=weights, importances=weights)
        state = kept(one.learnt(end, task, state._replace(memory=memory)), memory)
        assert all(isinstance(t, Tensor) and "." not in key for key, t in state.tensors.items())
        assert one.scores(Seen(x, torch.randn(48, seen)), state).shape == (48, seen)


def test_the_parts_of_a_batch_are_new_images_and_one_of_each_draw() -> None:
    assert [part.tolist() for part in derpp.parts(torch.arange(6), (1, 1))] == [[0, 1], [2, 3], [4, 5]]
    assert [part.tolist() for part in derpp.parts(torch.arange(8), (2, 1))] == [[0, 1], [2, 3, 4, 5], [6, 7]]
