"""Packages that are functions, too: `unlabeled.pretrain` holds methods, and `unlabeled.pretrain(recipe)` runs one."""

from __future__ import annotations

import importlib
import inspect
import sys
from types import ModuleType
from typing import Any


class Called(ModuleType):
    """A package that may be called; `function` is MODULE:NAME, imported when it is needed."""

    function: str

    def _found(self) -> Any:
        module, _, name = self.function.partition(":")
        return getattr(importlib.import_module(module), name)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self._found()(*arguments, **named)

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self._found())


def call(package: str, function: str) -> None:
    """Let a package be called as a function, `MODULE:NAME`; it stays a package."""
    module = sys.modules[package]
    module.__class__ = Called
    module.__dict__["function"] = function
