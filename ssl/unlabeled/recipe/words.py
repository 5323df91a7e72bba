"""Kinds as people say them, such as `number > 0` or `list of 2 integers`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePath
from types import NoneType
from typing import Any, get_args, get_origin

from unlabeled.recipe.faults import show
from unlabeled.recipe.kinds import Kind, is_model, members_of, options_of, tagged, unwrap

_NOUNS = {float: "number", int: "integer", str: "text", bool: "true or false", NoneType: "null"}
_BOUNDS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<=", "multiple_of": "in steps of", "pattern": "like"}
_SPELLED = {" >= ": " of at least ", " <= ": " no more than ", " > ": " greater than ", " < ": " less than "}


def words(kind: Kind) -> str:
    """Such as `number > 0`, `one of: a, b`, `list of 2 integers` or `text or null`."""
    members = members_of(kind)
    if len(members) > 1:
        tags = tagged(kind)
        named = [f"mapping with name: {', '.join(tags)}"] if tags else []
        return " or ".join(named + [words(each) for each in members if not (tags and is_model(each))])
    if options := options_of(kind):
        bare = (option if isinstance(option, str) else show(option) for option in options)
        return ("one of: " if len(options) > 1 else "") + ", ".join(bare)
    if get_origin(kind.type) in (list, tuple, set, frozenset, Sequence):
        return _list_words(kind)
    if is_model(kind) or get_origin(kind.type) is dict:
        return "mapping"
    path = isinstance(kind.type, type) and issubclass(kind.type, PurePath)
    noun = "path" if path else _NOUNS.get(kind.type, getattr(kind.type, "__name__", str(kind.type)))
    return noun if kind.type is NoneType else noun + _bounds(kind.rules)


def _rule(rules: tuple[Any, ...], name: str) -> Any:
    return next((value for rule in rules if (value := getattr(rule, name, None)) is not None), None)


def _bounds(rules: tuple[Any, ...]) -> str:
    count = _count(_rule(rules, "min_length"), _rule(rules, "max_length"))
    length = f" of {count}characters" if count else ""
    found = {word: _rule(rules, name) for name, word in _BOUNDS.items()}
    bounds = " and ".join(f"{word} {bound}" for word, bound in found.items() if bound is not None)
    bounds = re.sub(r">= (.+) and <= ", r"from \1 to ", bounds)
    return f"{length} {bounds}".rstrip()


def _count(least: int | None, most: int | None) -> str:
    if least == most:
        return "" if least is None else f"{least} "
    if most is None:
        return f"{least} or more "
    return f"{least} to {most} " if least else f"up to {most} "


def _list_words(kind: Kind) -> str:
    items = [words(unwrap(item)) for item in get_args(kind.type) if item is not Ellipsis]
    if len(set(items)) > 1:
        return f"list of {len(items)}: {', '.join(items)}"
    least, most = _rule(kind.rules, "min_length"), _rule(kind.rules, "max_length")
    if get_origin(kind.type) is tuple and Ellipsis not in get_args(kind.type):
        least = most = len(items)
    noun, space, rest = items[0].partition(" ")
    simple = noun in ("number", "integer", "path", "list", "mapping") and " or " not in rest
    several = f"{noun}s{space}{rest}" if simple else noun if items[0] == "text" else f"values ({items[0]})"
    return f"list of {_count(least, most)}{several}"


def spell_out(words: str) -> str:
    """Words with an article and without symbols: `number > 0` becomes `a number greater than 0`."""
    for symbol, spelled in _SPELLED.items():
        words = words.replace(symbol, spelled)
    article = {"number": "a ", "integer": "an ", "list": "a ", "mapping": "a ", "path": "a "}
    return article.get(words.split(" ")[0], "") + words
