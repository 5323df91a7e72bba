"""Fields under other names than before. The old ones work for one release: in recipes, in `a.b=value`, and in what
earlier runs wrote down."""

from __future__ import annotations

import copy
import functools
import os
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from unlabeled import text
from unlabeled.recipe.faults import Place, dotted, look_up

UNTIL = "0.2"  # the version that no longer knows the old names


class Renamed(NamedTuple):
    """A field that has another dotted path than before."""

    old: str
    new: str
    default: Any  # of the old field: written out, it says nothing where no kind reads it
    kinds: tuple[str, ...]  # names of the new section's kinds that read it


class Move(NamedTuple):
    """A value that has another place: a copy from `old` to `new`, or, where `new` is None, the removal of `old`."""

    old: Place
    new: Place | None
    value: Any = None
    note: str = ""


WHOLE, BY_DEPTH = ("full", "differential", "gradual"), ("differential", "gradual")
MODES = {"sweep": ("task.name", "sweep"), "differential_lr": ("task.strategy.name", "differential")}
KEEPS_POOL = "retrain"  # it never read `pool`
FIELDS = (
    Renamed("task.drop_path", "task.strategy.drop_path", 0.0, WHOLE),
    Renamed("task.backbone_lr", "task.strategy.backbone_lr", 1.0, BY_DEPTH),
    Renamed("task.layer_decay", "task.strategy.layer_decay", 1.0, BY_DEPTH),
    Renamed("task.wake_every", "task.strategy.unfreeze_every", 1.0, ("gradual",)),
    Renamed("task.lora.rank", "task.strategy.rank", 8, ("lora",)),
    Renamed("task.lora.alpha", "task.strategy.alpha", 16.0, ("lora",)),
    Renamed("task.lora.targets", "task.strategy.targets", ["qkv", "proj", "fc1", "fc2"], ("lora",)),
    Renamed("task.sweep.rates", "task.rates", [1.0], ("sweep",)),
    Renamed("task.sweep.pools", "task.pools", [], ("sweep",)),
    Renamed("task.sweep.blocks", "task.blocks", [1], ("sweep",)),
    Renamed("task.flood", "task.flood", None, ("classify",)),
    Renamed("task.ema", "task.ema", None, ("classify", "detect", "segment")),
)
SECTIONS = {"task.lora": "task.strategy", "task.sweep": "task"}
DEFAULTS = {"task": "classify", "task.strategy": "full"}  # kinds of sections that do not say theirs


def moves(data: Any, ran: bool = False) -> Iterator[Move]:
    """Moves that bring the data of a recipe up to date. Each must be made before the next is asked for.

    A value that no kind reads is left out where it equals the default, or where the recipe `ran` and it had no effect.
    """
    yield from _mode(data, ran)
    yield from _light(data)
    for field in FIELDS:
        place, new = _place(field.old), _place(field.new)
        section = look_up(data, place[:-1])
        if not isinstance(section, dict) or place[-1] not in section:
            continue
        read = _kind(data, new[:-1]) in field.kinds
        if not read and (ran or section[place[-1]] == field.default):
            yield Move(place, None)
        elif place != new:
            yield from _moved(place, new, section[place[-1]])
    for old, target in SECTIONS.items():
        place, section = _place(old), look_up(data, _place(old))
        if isinstance(section, dict):
            for name in list(section):
                yield from _moved((*place, name), (*_place(target), name), section[name])
            yield Move(place, None)


def _mode(data: Any, ran: bool) -> Iterator[Move]:
    """`task.mode` named a task or a strategy."""
    task, place = look_up(data, ("task",)), ("task", "mode")
    if not isinstance(task, dict) or "mode" not in task:
        return
    old = task["mode"]
    kind, name = MODES.get(str(old), ("task.strategy.name", old))
    if "name" in task and kind != "task.name":
        yield Move(place, ("task", "name"), "classify")
    if ran and old == KEEPS_POOL:
        yield Move(("task", "pool"), ("task", "pool"), "cls")
    yield Move(place, _place(kind), name, f"task.mode={old} is now {kind}={name}")
    yield Move(place, None)


def _light(data: Any) -> Iterator[Move]:
    """The decoder `cross` had a `share` of the hidden patches."""
    decoder, place = look_up(data, ("method", "decoder")), ("method", "decoder", "name")
    if isinstance(decoder, dict) and decoder.get("name") == "cross" and "share" in decoder:
        yield Move(place, place, "cross_light", "method.decoder.name=cross with a share is now cross_light")


def _moved(old: Place, new: Place, value: Any) -> Iterator[Move]:
    yield Move(old, new, value, f"{dotted(old)} is now {dotted(new)}")
    yield Move(old, None)


def _kind(data: Any, section: Place) -> str | None:
    """The name of a section's kind; None where its owner has no such section."""
    if section == ("task", "strategy") and _kind(data, ("task",)) != "classify":
        return None
    return look_up(data, (*section, "name")) or DEFAULTS[dotted(section)]


def _place(path: str) -> Place:
    return tuple(path.split("."))


def updated(data: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe of an earlier run, or sections of it, with the names of today. The original stays as it is."""
    recipe = copy.deepcopy(dict(data))
    for old, new, value, _ in moves(recipe, ran=True):
        if new is None:
            del look_up(recipe, old[:-1])[old[-1]]
            continue
        section = recipe
        for name in new[:-1]:
            section = section.setdefault(str(name), {})
        section[str(new[-1])] = value
    return recipe


@functools.cache  # a program reads its recipe more than once
def say(note: str) -> None:
    """Tell a person of an old name, once."""
    if os.environ.get("RANK", "0") == "0":
        text.say(f"note: {note}; the old name works until version {UNTIL}")
