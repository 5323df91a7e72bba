"""Recipes back to YAML."""

from __future__ import annotations

import io
import json
import re
from functools import lru_cache
from typing import Any

from pydantic import BaseModel
from ruamel.yaml import YAML
from ruamel.yaml.representer import SafeRepresenter

from unlabeled.recipe.reader import resolve

_PLAIN = re.compile(r"[A-Za-z_./][A-Za-z0-9_./-]*( [A-Za-z0-9_./-]+)*")


def dump(recipe: BaseModel) -> str:
    """YAML of all fields of a recipe, which `parse` reads back to an equal object."""
    return _dumped(json.dumps(recipe.model_dump(mode="json", round_trip=True)))


@lru_cache(8)  # a run writes its recipe several times
def _dumped(text: str) -> str:
    return as_yaml(json.loads(text))


def as_yaml(fields: dict[str, Any]) -> str:
    """YAML of plain values by name."""
    yaml = YAML(typ="safe", pure=True)
    yaml.Representer = Representer
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False
    stream = io.StringIO()
    yaml.dump(fields, stream)
    return stream.getvalue()


class Representer(SafeRepresenter):
    """Short lists in one line; text in quotes (ruamel's other styles lose some) unless plain beyond doubt."""

    def list_(self, value: list[Any]) -> Any:
        flat = not any(isinstance(item, dict | list) for item in value)
        return self.represent_sequence("tag:yaml.org,2002:seq", value, flow_style=flat)

    def text(self, value: str) -> Any:
        plain = _PLAIN.fullmatch(value) and isinstance(resolve(value), str)
        return self.represent_scalar("tag:yaml.org,2002:str", value, style=None if plain else '"')


Representer.add_representer(list, Representer.list_)
Representer.add_representer(str, Representer.text)
