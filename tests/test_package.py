"""What pyproject.toml says of the package, against the tree."""

from __future__ import annotations

import re

from package import PROJECT
from support import ROOT

SOURCE = ROOT / "ssl" / "unlabeled"
FOR_CHECKS = {"tsconfig.json"}  # of TypeScript, which checks the programs of pages


def test_every_file_of_the_package_goes_into_the_wheel() -> None:
    """Python files do by themselves where their folders are packages; all others have to be listed."""
    listed = {file for one in PROJECT["tool"]["setuptools"]["package-data"]["unlabeled"] for file in SOURCE.glob(one)}
    others = {file for file in SOURCE.rglob("*.*") if file.suffix not in (".py", ".pyc")}
    others |= {file for file in SOURCE.rglob("*") if file.is_file() and not file.suffix}
    assert {file for file in others if file.name not in FOR_CHECKS} == listed
    for file in SOURCE.rglob("*.py"):
        assert (file.parent / "__init__.py").is_file(), f"{file.parent} is no package"


def test_recipes_are_files_of_yaml_alone() -> None:
    """setup.py copies these into the package."""
    assert {file.suffix for file in (ROOT / "recipes").rglob("*") if file.is_file()} == {".yaml"}


def test_the_second_stage_runs_after_the_first() -> None:
    stages = re.findall(r"^make (\w+)$", (ROOT / ".ci" / "run").read_text(encoding="utf-8"), re.MULTILINE)
    assert stages == ["test", "installed"]


def test_every_dependency_has_a_lower_bound_and_no_upper_one() -> None:
    for one in PROJECT["project"]["dependencies"]:
        assert re.fullmatch(r"[A-Za-z0-9._-]+>=[0-9.]+", one), one
