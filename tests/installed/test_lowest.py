"""The lowest versions that pyproject.toml allows: every command works with them and with no other package."""

from __future__ import annotations

from importlib import metadata

import pytest
from package import PROJECT, SHARED, Environment, lowest
from packaging.version import Version
from support import ROOT

# the others take minutes to install or to import
EXTRAS = ("tensorboard", "search", "data", "onnx", "sklearn")


@pytest.fixture(scope="module")
def low(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    return lowest(tmp_path_factory.mktemp("lowest"), EXTRAS)


def test_they_are_the_lowest(low: Environment) -> None:
    extras = [one for name in EXTRAS for one in PROJECT["project"]["optional-dependencies"][name]]
    bounds = dict(one.split(">=") for one in [*PROJECT["project"]["dependencies"], *extras])
    bounds = {name.partition("[")[0]: bound for name, bound in bounds.items()}
    ask = "import sys; from importlib.metadata import version; print(*map(version, sys.argv[1:]))"
    found = dict(zip(bounds, low.run(["python", "-c", ask, *bounds]).stdout.split(), strict=True))
    wanted = bounds | {name: metadata.version(name) for name in SHARED}
    assert {name: Version(one) for name, one in found.items()} == {name: Version(one) for name, one in wanted.items()}


def test_other_packages_are_not_seen(low: Environment) -> None:
    ask = (
        "import torchvision, importlib.util as util; print(util.find_spec('pytest'), util.find_spec('pydantic').origin)"
    )
    pytest_found, pydantic = low.run(["python", "-c", ask]).stdout.split()
    assert pytest_found == "None" and pydantic.startswith(str(low.python.parents[1]))


def test_a_shell_completes_the_names_of_recipes(low: Environment) -> None:
    assert "function _unlabeled_recipes\n" in low.run(["python", "-m", "unlabeled", "completion", "fish"]).stdout


def test_every_command_works(low: Environment) -> None:
    done = low.run(["python", str(ROOT / "tests" / "every_command.py")])
    assert done.stdout.endswith("done\n")
