"""Methods by file name: `methods/NAME.py` holds a `Config` whose `name` is NAME, and the module it builds."""

from __future__ import annotations

import importlib
import pkgutil
from functools import reduce
from operator import or_
from typing import Annotated, Any

from pydantic import Field


def names() -> list[str]:
    """Every method there is."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def config_of(name: str) -> Any:
    """The Config class of one method."""
    return importlib.import_module(f"{__name__}.{name}").Config


def config_union() -> Any:
    """The type of a recipe's `method:` section: the Configs of all methods, told apart by `name`."""
    configs = [config_of(name) for name in names()]
    return Annotated[reduce(or_, configs), Field(discriminator="name")] if len(configs) > 1 else configs[0]
