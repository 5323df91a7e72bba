"""Kinds are files: a folder with a plural name holds them, `NAME.py` has one `Config`, and recipes choose it by NAME.

A name with a dot is the import path of a module outside the package, with a `Config` of the same contract:
`method: {name: mypackage.mymethod}`.
"""

from __future__ import annotations

import functools
import importlib
import json
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, GetCoreSchemaHandler, SerializationInfo, ValidationInfo
from pydantic_core import CoreSchema, PydanticCustomError, SchemaValidator, core_schema

from unlabeled.errors import first_line

_outside: dict[tuple[str, type[BaseModel]], dict[str, type[BaseModel]]] = {}  # imported so far


@dataclass(frozen=True)
class ByFile:
    """The choice between the kinds of a folder, told apart by `name`: `Annotated[Contract, ByFile(PACKAGE)]`.

    A type checker sees the contract, a recipe may name any file.

    Args:
        package: dotted name of the folder.
        contract: base class of every `Config` in it.
        without: names of files that cannot be chosen here.
        default: name in a section without one; None = the name is required.
    """

    package: str
    contract: type[BaseModel]
    without: tuple[str, ...] = ()
    default: str | None = None

    def names(self) -> list[str]:
        """The names of all files that can be chosen, sorted."""
        folder = importlib.import_module(self.package).__path__
        return sorted({module.name for module in pkgutil.iter_modules(folder)} - set(self.without))

    def kinds(self) -> dict[str, type[BaseModel]]:
        """Every `Config` by its name, with the kinds outside the package that were imported so far."""
        inside = {name: _config(f"{self.package}.{name}", name, self.contract) for name in self.names()}
        return inside | _outside.get((self.package, self.contract), {})

    def kind(self, name: str) -> type[BaseModel]:
        """The `Config` of one name. Raises ValueError where there is none, or none of the contract."""
        if "." in name:
            known = _outside.setdefault((self.package, self.contract), {})
            if name not in known:
                known[name] = _config(name, name, self.contract)
            return known[name]
        if name not in self.names():
            raise ValueError(f"expected one of {', '.join(self.names())}, or a module as PACKAGE.MODULE, found {name}")
        return _config(f"{self.package}.{name}", name, self.contract)

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """A union of all kinds by `name`; a name with a dot is imported when it is met."""
        kinds = {name: handler.generate_schema(self.kind(name)) for name in self.names()}
        return core_schema.with_info_wrap_validator_function(
            self._validate,
            core_schema.tagged_union_schema(kinds, discriminator="name"),
            serialization=core_schema.plain_serializer_function_ser_schema(_dump, info_arg=True),
        )

    def _validate(self, data: Any, handler: Callable[[Any], Any], info: ValidationInfo) -> Any:
        if self.default is not None and isinstance(data, Mapping) and "name" not in data:
            data = {"name": self.default, **data}
        name = data.get("name") if isinstance(data, Mapping) else getattr(data, "name", None)
        outside = isinstance(name, str) and "." in name
        if not outside and (info.mode != "json" or name not in self.names()):
            return handler(data)
        try:
            union = _union(self.kind(str(name)))
        except ValueError as error:
            raise PydanticCustomError("outside_kind", "{error}", {"error": str(error)}) from error
        if info.mode != "json" or isinstance(data, BaseModel):  # a default that is validated has been read already
            return union.validate_python(data)
        # the handler no longer knows that it was JSON, where lists are tuples; defaults in it are models already
        text = json.dumps(data, default=lambda model: model.model_dump(mode="json"))
        return union.validate_json(text, strict=True)


@functools.cache
def _union(config: type[BaseModel]) -> SchemaValidator:
    """A union of one kind: the label of its member stands in the places of errors, as in that of all kinds."""
    name = config.model_fields["name"].default
    return SchemaValidator(core_schema.tagged_union_schema({name: config.__pydantic_core_schema__}, "name"))


def _config(module: str, name: str, contract: type[BaseModel]) -> type[BaseModel]:
    """The `Config` of a module. Raises ValueError where it cannot be imported, or has none of the contract."""
    try:
        config: Any = getattr(importlib.import_module(module), "Config", None)
    except Exception as error:  # the module of a user may raise anything
        found = f"the module '{module}' cannot be imported: {type(error).__name__}: {first_line(error)}"
        raise ValueError(f"{found}. Expected a module on Python's path (PYTHONPATH, or installed)") from error
    if not isinstance(config, type) or not issubclass(config, contract):
        raise ValueError(f"the module '{module}' has no class Config derived from {contract.__name__}")
    if (called := config.model_fields["name"].default) != name:
        expected = f"name: Literal[{name!r}] = {name!r}"
        raise ValueError(f"Config of the module '{module}' is called {called!r}; expected the field {expected}")
    return config


def _dump(value: BaseModel, info: SerializationInfo) -> dict[str, Any]:
    settings = ("mode", "exclude_unset", "exclude_defaults", "exclude_none", "round_trip")
    return value.model_dump(**{name: getattr(info, name) for name in settings})
