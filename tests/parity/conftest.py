"""Fixtures of the parity tests. A method whose whole folder the given set lacks is skipped; nothing else is."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from parity.golden import METHODS, golden_folders
from parity.whole import COLLECTED, RAN


def pytest_configure(config: pytest.Config) -> None:
    config.stash[COLLECTED], config.stash[RAN] = Counter(), Counter()


@pytest.hookimpl(tryfirst=True)  # before -k and its like leave tests out
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    config.stash[COLLECTED].update(item.path.stem for item in items)


def pytest_runtest_teardown(item: pytest.Item) -> None:
    item.config.stash[RAN][item.path.stem] += 1


def method_of(module: str) -> str:
    """The method that a module is named for: test_dino_method is DINO's."""
    return module.rpartition("test_")[2].partition("_")[0]


@pytest.fixture(scope="module")
def folder(request: pytest.FixtureRequest) -> Path:
    """The numbers of the method that a module is named for."""
    method = method_of(request.module.__name__)
    assert method in METHODS
    found = golden_folders(request.config)
    if method not in found:
        pytest.skip(f"the given set has no folder {method}")
    return found[method]
