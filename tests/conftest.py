"""Options and settings that all tests share."""

from __future__ import annotations

import gc
import importlib
import os
from typing import Any, NamedTuple

import pytest
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

# where the kinds of each word are registered. Imported by processes that run tests: torch takes seconds
FOLDERS = {
    "method": ("unlabeled.pretrain.method", "METHODS"),
    "mask": ("unlabeled.data.mask", "MASKS"),
    "source": ("unlabeled.data.source", "SOURCES"),
    "protocol": ("unlabeled.evaluate.protocol", "PROTOCOLS"),
}


class Outside(NamedTuple):
    """A kind outside the package that contract tests walk too."""

    folder: str  # a key of FOLDERS
    section: dict[str, Any]  # of a recipe: its name, and settings that differ from the defaults


def _outside(text: str) -> Outside:
    folder, _, found = text.partition("=")
    try:
        section = YAML(typ="safe", pure=True).load(found)
    except YAMLError:
        section = None
    section = {"name": section} if isinstance(section, str) else section
    name = section.get("name") if isinstance(section, dict) else None
    if folder not in FOLDERS or not isinstance(name, str) or "." not in name:
        raise ValueError(text)  # argparse says what it expected
    return Outside(folder, section)


_outside.__name__ = f"one of {', '.join(FOLDERS)}, then =PACKAGE.MODULE or ={{name: PACKAGE.MODULE, FIELD: VALUE}}:"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--golden", default=None, help="folder of official numbers to compare with (default tests/golden)")
    parser.addoption(
        "--kind",
        type=_outside,
        action="append",
        default=[],
        metavar="KIND=MODULE",
        help="test a module outside the package by its contract too: method=, mask=, source= or protocol=, then "
        "PACKAGE.MODULE or {name: PACKAGE.MODULE, FIELD: VALUE}; may be repeated",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "every_kind(folder, *more): run with the `name` of every kind of a folder, more and those of --kind"
    )


def pytest_collection() -> None:
    """Collecting makes objects by the million and no rubbish: looking for it takes a tenth of the time."""
    gc.disable()


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    for mark in metafunc.definition.iter_markers("every_kind"):
        folder, *more = mark.args
        outside = [kind.section["name"] for kind in metafunc.config.getoption("kind") if kind.folder == folder]
        module, registry = FOLDERS[folder]
        names = getattr(importlib.import_module(module), registry).names()
        metafunc.parametrize("name", [*names, *more, *outside])


@pytest.fixture
def section(name: str, pytestconfig: pytest.Config) -> dict[str, Any]:
    """The section of a recipe for the kind `name`: its settings as --kind gives them."""
    found = [kind.section for kind in pytestconfig.getoption("kind") if kind.section["name"] == name]
    return found[0] if found else {"name": name}


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True, scope="session")
def _no_diagrams() -> None:
    from support import without_diagrams

    without_diagrams()
