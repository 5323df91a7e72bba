"""The choice between kinds that are files."""

from __future__ import annotations

from typing import Annotated

import pytest
from pydantic import BaseModel

from unlabeled.data.mask import Mask
from unlabeled.recipe import RecipeError, dump, parse
from unlabeled.registry import ByFile


class Hiding(BaseModel, frozen=True, extra="forbid"):
    mask: Annotated[Mask, ByFile("unlabeled.data.masks", Mask, default="block")]


def test_lists_of_a_recipe_are_tuples_of_a_kind() -> None:
    hiding = parse(Hiding, "mask: {name: block, ratios: [0.1, 0.2], variances: [0.1, 0.1]}")
    assert hiding.mask.model_dump()["ratios"] == (0.1, 0.2)
    assert parse(Hiding, dump(hiding)) == hiding == Hiding.model_validate(hiding.model_dump())


def test_a_section_without_a_name_is_of_the_default_kind() -> None:
    assert parse(Hiding, "mask: {shape: random}").mask.name == "block"


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
