"""The plan knows what a step needs before there is one."""

from __future__ import annotations

import pytest
import torch

from unlabeled.data.masks.block import Config as BlockMask
from unlabeled.data.masks.random import Config as RandomMask
from unlabeled.data.masks.stratified_block import Config as StratifiedBlockMask
from unlabeled.data.view.views import View
from unlabeled.errors import UserError
from unlabeled.launch.plan import empty_batch, millions, on_meta
from unlabeled.pretrain.method import Method


@pytest.mark.parametrize(
    ("mask", "share"),
    [(RandomMask(ratio=0.75), 0.75), (BlockMask(), 0.15), (StratifiedBlockMask(), 0.15), (None, None)],
)
def test_expects_as_many_hidden_patches_as_masks_hide(mask: object, share: float | None) -> None:
    view = View(size=224, count=2, mask=mask)  # type: ignore[arg-type]
    found = empty_batch((view,), 16, 8, 3).views[0].hidden
    # blocks may fall short
    assert found is None if share is None else found / (2 * 8 * 196) == pytest.approx(share, abs=0.04)


def test_what_a_method_refuses_is_not_blamed_on_the_network() -> None:
    def build() -> Method:
        raise UserError("task.pool is cls")

    with pytest.raises(UserError, match=r"^task\.pool is cls$"):
        on_meta(build)


def test_few_parameters_are_counted() -> None:
    assert millions([torch.empty(640)]) == "640"
    assert millions([torch.empty(90_000), torch.empty(60_000)]) == "0.1 M" and millions([]) == "0.0 M"
