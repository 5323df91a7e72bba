"""DER: the heads of a network that grows, and their losses."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from incremental.tiny import coming, kept
from torch import nn

from unlabeled.incremental.strategies.der import Config
from unlabeled.incremental.strategy import Balanced, Seen


def test_any_old_class_is_the_second_heads_output_0() -> None:
    torch.manual_seed(0)
    logits, auxiliary, task = torch.randn(5, 7), torch.randn(5, 4), coming(memory=2)
    labels = torch.tensor([0, 3, 4, 6, 5])
    terms = Config().loss(Seen(logits, logits, auxiliary=auxiliary), None, labels, task, kept())
    torch.testing.assert_close(terms["classification"], F.cross_entropy(logits, labels))
    torch.testing.assert_close(terms["auxiliary"], F.cross_entropy(auxiliary, torch.tensor([0, 0, 1, 3, 2])))


def test_the_second_head_reads_the_newest_features() -> None:
    head = Config().auxiliary(6, coming())
    assert isinstance(head, nn.Linear) and head.weight.shape == (4, 6) and head.bias is None


@pytest.mark.parametrize("reuse", [False, True])
def test_a_head_on_all_features_is_new_or_keeps_its_old_block(reuse: bool) -> None:
    strategy = Config(reuse=reuse)
    before = strategy.head(6, coming(0, 0, 4), None)
    head = strategy.head(12, coming(), before)
    assert isinstance(head, nn.Linear) and isinstance(before, nn.Linear) and head.bias is None
    assert head.weight.shape == (7, 12) and head.weight[:4, :6].equal(before.weight) == reuse
    assert head.weight[4:].all() and head.weight[:4, 6:].all()


def test_the_head_learns_again_alone_or_is_aligned() -> None:
    assert Config().balanced == Balanced(epochs=50, base_lr=0.1, anew=True, temperature=5)
    assert Config(align=True).balanced is None
    for strategy, task in ((Config(), coming()), (Config(align=True), coming(0, 0, 7))):
        head = strategy.head(6, task, None)
        before = head.weight.clone()  # type: ignore[operator]
        strategy.ended(head, task)
        assert head.weight.equal(before)  # type: ignore[operator]


def test_aligned_rows_are_as_long_as_the_old_ones_on_average() -> None:
    head = nn.Linear(6, 7, bias=False)
    before = head.weight.detach().clone()
    Config(align=True).ended(head, coming())
    lengths = [float(row.detach().norm()) for row in head.weight]
    assert sum(lengths[4:]) / 3 == pytest.approx(sum(lengths[:4]) / 4, rel=1e-5)
    assert head.weight[:4].equal(before[:4])
    torch.testing.assert_close(head.weight / head.weight.norm(dim=1, keepdim=True), F.normalize(before, dim=1))


def test_the_plan_says_that_it_grows() -> None:
    assert Config().plan(10) == "der grows with every task: 10 backbones at the end"
    assert "a backbone and 9 low-rank additions" in Config(extend="lora").plan(10)
