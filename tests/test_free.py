"""Fields that a run may be resumed with other values of."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from pydantic import BaseModel

from unlabeled.data.source import AFTERWARDS, SourceConfig
from unlabeled.data.sources import files, shapes
from unlabeled.recipe.free import is_free, marked
from unlabeled.recipe.kinds import Kind, is_model, kind_of, members_of
from unlabeled.stages.finetune import FinetuneRecipe
from unlabeled.stages.pretrain import PretrainRecipe

FREE = ("run", "data.allow_overlap", "data.path", "data.val_path", "data.root", "data.cache", "data.classes")
FREE += ("data.max_bad_fraction", "data.connections", "data.by_shard.folder", "data.by_shard.open", "evaluate", "look")
# images without labels are a section of their own
OF_DATA = [one for one in FREE if one.startswith("data.")]
OTHERS = tuple(f"task.unlabelled.{name}" for one in OF_DATA for name in (one, one.removeprefix("data.")))


def paths(kind: Kind, prefix: str = "") -> Iterator[str]:
    """Every path of a schema, of all kinds that a section may have."""
    for model in filter(is_model, members_of(kind)):
        for name, field in model.type.model_fields.items():
            yield f"{prefix}{name}"
            yield from paths(kind_of(field), f"{prefix}{name}.")


@pytest.mark.parametrize("schema, own", [(PretrainRecipe, ("continued.keep",)), (FinetuneRecipe, OTHERS)])
def test_these_are_free_and_no_others(schema: type[BaseModel], own: tuple[str, ...]) -> None:
    found, free = set(paths(Kind(schema, ()))), (*FREE, *own)
    assert set(free) <= found and len(found) > 100
    expected = {path for path in found if any(f"{path}.".startswith(f"{one}.") for one in free)}
    assert {path for path in found if is_free(schema, path)} == expected


@pytest.mark.parametrize("path", ["data.sources.0.path", "data.sources", "data", "nothing", "run_more", "seed.run"])
def test_parts_of_a_mixture_and_what_is_no_field_are_not(path: str) -> None:
    assert not is_free(PretrainRecipe, path)


@pytest.mark.parametrize("schema", [SourceConfig, files.Config, shapes.Config])
def test_small_copies_do_not_depend_on_these(schema: type[SourceConfig]) -> None:
    own = {"connections", "by_shard"} & set(schema.model_fields)
    assert own == ({"connections", "by_shard"} if schema is files.Config else set())
    shared = {"allow_overlap", "cache", "classes", "mean", "std", "max_bad_fraction", "order"}
    assert marked(schema, AFTERWARDS) == shared | own
