"""Every recipe that we ship reads, and says what it costs; every method keeps its contract."""

from __future__ import annotations

from pathlib import Path

import pytest

from unlabeled import methods
from unlabeled.recipe import dump, load, parse
from unlabeled.schema import FinetuneRecipe, pretrain_recipe

RECIPES = sorted((Path(__file__).parents[1] / "recipes").rglob("*.yaml"))


def schema_of(file: Path) -> type:
    return FinetuneRecipe if "\ntask:" in file.read_text() else pretrain_recipe()


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_recipe_reads_and_has_a_header(file: Path) -> None:
    schema = schema_of(file)
    recipe = load(schema, file)
    assert parse(schema, dump(recipe)) == recipe
    header = [line for line in file.read_text().splitlines() if line.startswith("#")]
    for topic in ("command", "cost", "expect", "source"):
        assert any(line.startswith(f"#   {topic} ") for line in header), f"no {topic} in the header"


@pytest.mark.parametrize("name", methods.names())
def test_a_method_is_found_by_its_file_name(name: str) -> None:
    config = methods.config_of(name)()
    assert config.name == name
    assert config.views and config.encoder.patch_size


def test_the_papers_rates() -> None:
    from unlabeled.train.schedules import peak_lr

    for file, expected in (("pretrain/mae_vitb16_in1k", 2.4e-3), ("finetune/mae_vitb16_in1k", 2e-3)):
        path = next(recipe for recipe in RECIPES if str(recipe).endswith(f"{file}.yaml"))
        recipe = load(schema_of(path), path)
        assert peak_lr(recipe.optim.base_lr, recipe.train.batch_size) == pytest.approx(expected)
