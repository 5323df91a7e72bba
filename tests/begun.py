"""Methods that begin with weights, without a recipe around them."""

from __future__ import annotations

from pathlib import Path

from unlabeled.backbone.address import find
from unlabeled.pretrain.method import PretrainMethod
from unlabeled.train.beginning import Beginning


def begin_with(method: PretrainMethod, address: str | Path) -> str:
    """Give a method the weights at an address, at their own size; returns what is said about it."""
    found = find(address)
    return Beginning(str(address), found, found.encoder).described(method, found.how).words


def load_method(method: PretrainMethod, address: str | Path) -> None:
    """Give a method the weights at an address and all of its heads."""
    words = begin_with(method, address)
    assert "new: " not in words, words
