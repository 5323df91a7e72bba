"""The choice between kinds that are files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import pytest
from pydantic import BaseModel

from unlabeled.data.mask import Mask
from unlabeled.data.masks.block import Config as Block
from unlabeled.pretrain.method import Progress
from unlabeled.recipe import RecipeError, dump, parse
from unlabeled.registry import ByFile
from unlabeled.train.optimizer import AnyOptim
from unlabeled.train.schedule import Ramp


class Hiding(BaseModel, frozen=True, extra="forbid"):
    mask: Annotated[Mask, ByFile("unlabeled.data.masks", Mask, default="block")]


def test_lists_of_a_recipe_are_tuples_of_a_kind() -> None:
    hiding = parse(Hiding, "mask: {name: block, ratios: [0.1, 0.2], variances: [0.1, 0.1]}")
    assert hiding.mask.model_dump()["ratios"] == (0.1, 0.2)
    assert parse(Hiding, dump(hiding)) == hiding == Hiding.model_validate(hiding.model_dump())


def test_a_section_without_a_name_is_of_the_default_kind() -> None:
    assert parse(Hiding, "mask: {shape: random}").mask.name == "block"


class Checked(BaseModel, frozen=True, extra="forbid", validate_default=True):
    mask: Annotated[Mask, ByFile("unlabeled.data.masks", Mask)] = Block()


def test_a_default_that_is_validated_stays() -> None:
    assert parse(Checked, "{}").mask == Block() == Checked().mask


@pytest.mark.parametrize(
    ("mask", "says"),
    [
        ("{name: block, ratios: [a]}", r"mask\.ratios\.0: expected a number"),
        ("{name: blok}", r"mask\.name: expected one of: .*Did you mean 'block'"),
        ("{name: random, rato: 0.5}", r"mask\.rato: unknown field\. Did you mean 'ratio'"),
    ],
)
def test_mistakes_are_named_where_they_are(mask: str, says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        parse(Hiding, f"mask: {mask}")


class Learning(BaseModel, frozen=True, extra="forbid"):
    optim: AnyOptim


HALVES = """
from typing import Literal
from unlabeled.train.schedule import Schedule

class Config(Schedule, frozen=True, extra="forbid"):
    name: Literal["{name}"] = "{name}"
    by: tuple[float, ...] = (0.5,)

    def at(self, progress, ramp):
        return ramp.peak * self.by[0] ** progress.step
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on Python's path, for modules of a researcher."""
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_a_module_outside_the_package_is_a_kind_as_any_other(own: Path) -> None:
    (own / "lab").mkdir()
    (own / "lab" / "halves.py").write_text(HALVES.format(name="lab.halves"), encoding="utf-8")
    text = "optim: {name: sgd, schedule: {name: lab.halves, by: [0.25]}}"
    learning = parse(Learning, text)
    assert learning.optim.schedule.at(Progress(2, 9, 0.0, 1.0), Ramp(0.0, 1.0, 0.0, 0.0)) == 0.0625
    assert parse(Learning, dump(learning)) == learning
    with pytest.raises(RecipeError, match=r"optim\.schedule\.bi: unknown field\. Known here: name, by"):
        parse(Learning, text.replace("by:", "bi:"))


@pytest.mark.parametrize(
    ("module", "content", "says"),
    [
        ("nobody", None, "'own.nobody' cannot be imported: ModuleNotFoundError"),
        ("breaks", "1 / 0", "'own.breaks' cannot be imported: ZeroDivisionError"),
        ("empty", "", "'own.empty' has no class Config derived from Schedule"),
        ("other", "class Config: pass", "'own.other' has no class Config derived from Schedule"),
        ("named", HALVES.format(name="halves"), "Config of the module 'own.named' is called 'halves'"),
    ],
)
def test_a_module_that_is_no_kind_is_refused(own: Path, module: str, content: str | None, says: str) -> None:
    (own / "own").mkdir()
    if content is not None:
        (own / "own" / f"{module}.py").write_text(content, encoding="utf-8")
    with pytest.raises(RecipeError, match=f"optim.schedule.*{says}"):
        parse(Learning, f"optim: {{name: sgd, schedule: {{name: own.{module}}}}}")
