"""DER++: what is replayed, and the logits that images keep from task to task."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from incremental.tiny import after, blobs, coming, kept

from unlabeled.incremental.strategies.derpp import Config, found, squared_error
from unlabeled.incremental.strategy import Kept, Seen

STRATEGY = Config(alpha=0.7, beta=0.2)


def test_the_loss_by_hand() -> None:
    """Three images of each part; those of the first draw were kept when 2, 4 and 2 classes were known."""
    torch.manual_seed(0)
    logits, labels = torch.randn(9, 7, dtype=torch.float64), torch.tensor([4, 5, 6, 0, 3, 1, 2, 2, 0])
    numbers = torch.tensor([50, 51, 52, 8, 3, 5, 3, 9, 8])
    stored = torch.randn(4, 4, dtype=torch.float64)
    state = kept({"numbers": torch.tensor([8, 5, 3, 9]), "logits": stored, "known": torch.tensor([2, 2, 4, 4])})
    terms = STRATEGY.loss(Seen(logits, logits, numbers=numbers), None, labels, coming(memory=2), state)
    torch.testing.assert_close(terms["classification"], F.cross_entropy(logits[:3], labels[:3]))
    torch.testing.assert_close(terms["replayed_labels"], 0.2 * F.cross_entropy(logits[6:], labels[6:]))
    each = []
    for row, place, known in ((3, 0, 2), (4, 2, 4), (5, 1, 2)):
        each.append(sum((logits[row, k] - stored[place, k]) ** 2 for k in range(known)) / known)
    torch.testing.assert_close(terms["replayed_logits"], 0.7 * torch.stack(each).mean())  # type: ignore[arg-type]


def test_columns_that_came_later_have_no_gradient() -> None:
    logits = torch.randn(2, 5, dtype=torch.float64, requires_grad=True)
    squared_error(logits, torch.zeros(2, 4), torch.tensor([2, 3])).backward()
    assert logits.grad is not None
    assert logits.grad.ne(0).tolist() == [[True, True, False, False, False], [True, True, True, False, False]]


def task_end(state: Kept, number: int, seen: int, memory: list[int], numbers: list[int]) -> Kept:
    x, y = blobs(1, len(numbers), width=seen, seed=number)
    asked = state._replace(memory=torch.tensor(memory))
    end = after(x, y, torch.tensor(numbers), logits=x.float())
    return kept(STRATEGY.learnt(end, coming(number, seen - 2, 2), asked), asked.memory)


def test_an_image_keeps_the_logits_of_the_task_in_which_it_came() -> None:
    first = task_end(kept(), 0, 2, memory=[7, 4, 9], numbers=[4, 7, 8, 9])
    second = task_end(first, 1, 4, memory=[7, 4, 21, 20], numbers=[20, 21, 22, 4, 7, 9])
    third = task_end(second, 2, 6, memory=[7, 20, 30], numbers=[30, 31, 7, 4, 21, 20])
    logits = [blobs(1, n, width=w, seed=t)[0].float() for t, (n, w) in enumerate(((4, 2), (6, 4), (6, 6)))]
    assert first.tensors["numbers"].tolist() == [7, 4, 9] and first.tensors["logits"].equal(logits[0][[1, 0, 3]])
    assert second.tensors["known"].tolist() == [2, 2, 4, 4]
    assert second.tensors["logits"][:2, :2].equal(logits[0][[1, 0]]) and not second.tensors["logits"][:2, 2:].any()
    assert second.tensors["logits"][2:].equal(logits[1][[1, 0]])
    assert third.tensors["known"].tolist() == [2, 4, 6]
    assert third.tensors["logits"][0, :2].equal(logits[0][1]) and third.tensors["logits"][1, :4].equal(logits[1][0])


def test_rows_of_numbers_are_found() -> None:
    numbers = torch.tensor([9, 2, 30, 4])
    assert found(torch.tensor([4, 4, 9, 30]), numbers).tolist() == [3, 3, 0, 2]


def test_an_image_that_stands_in_for_an_unreadable_one_has_no_logits_to_keep() -> None:
    """Its term is 0, and the mean is over as many images as before."""
    logits, labels = torch.randn(6, 4, dtype=torch.float64), torch.tensor([2, 3, 0, 1, 1, 0])
    state = kept({"numbers": torch.tensor([8, 5]), "logits": torch.zeros(2, 2), "known": torch.tensor([2, 2])})
    for stranger in (3, 6, 99):
        numbers = torch.tensor([50, 51, 8, stranger, 5, 8])
        terms = STRATEGY.loss(Seen(logits, logits, numbers=numbers), None, labels, coming(memory=2), state)
        torch.testing.assert_close(terms["replayed_logits"], 0.7 * logits[2, :2].square().mean() / 2)
