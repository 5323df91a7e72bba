"""A learning rate a hundred times too high is heard of with every method; tests/methods has more ways to collapse."""

from __future__ import annotations

from pathlib import Path

import pytest
from collapsed import RECOVERS, TOO_FAST, says_it_is_too_fast

from unlabeled.pretrain.method import METHODS


@pytest.mark.parametrize("name", sorted(TOO_FAST.keys() - {"mae", "simclr"}))
def test_a_learning_rate_a_hundred_times_too_high(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    says_it_is_too_fast(name, tmp_path, capsys)


def test_no_method_is_left_out() -> None:
    assert TOO_FAST.keys() | RECOVERS == set(METHODS.names())
