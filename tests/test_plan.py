"""The plan knows what a step needs before there is one."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from unlabeled.data.masks import BlockMask, RandomMask, StratifiedBlockMask
from unlabeled.data.views import View
from unlabeled.plan import _empty_batch


@pytest.mark.parametrize(
    ("mask", "share"),
    [(RandomMask(ratio=0.75), 0.75), (BlockMask(), 0.15), (StratifiedBlockMask(), 0.15), (None, None)],
)
def test_expects_as_many_hidden_patches_as_masks_hide(mask: object, share: float | None) -> None:
    view = View(size=224, count=2, mask=mask)  # type: ignore[arg-type]
    recipe = SimpleNamespace(data=SimpleNamespace(mean=(0.5, 0.5, 0.5)))
    found = _empty_batch((view,), 16, 8, recipe).views[0].hidden
    # blocks may fall short
    assert found is None if share is None else found / (2 * 8 * 196) == pytest.approx(share, abs=0.04)
