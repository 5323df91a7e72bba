"""The recipe that the rules lead to: fields with their reasons, and its text with the reasons as comments."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from ruamel.yaml import YAML

from unlabeled.backbone.build import family_of
from unlabeled.backbone.folder import IMAGENET
from unlabeled.recipe import shipped
from unlabeled.recipe.writer import as_yaml
from unlabeled.start.facts import Facts
from unlabeled.start.looking import Looked
from unlabeled.start.opening import Place
from unlabeled.start.rules import Rule
from unlabeled.start.weights import Weights

WIDTH = 118  # columns of the recipe
LOCAL = 3 / 7  # side of a small crop over that of a large one: DINO's 96 of 224
HOLD, WARM = 0.1, 0.1  # shares of the run


class Built(NamedTuple):
    """A recipe as plain values, and reasons by the dotted path of a field."""

    fields: dict[str, Any]
    reasons: dict[str, str]


class Length(NamedTuple):
    """The length of a run and what hangs on it."""

    epochs: float
    steps: int
    threads: int | None
    why: str
    seconds: float | None = None  # of the whole run; None = not measured


def built(
    name: str,
    facts: Facts,
    chosen: Mapping[str, Rule],
    place: Place,
    looked: Looked,
    weights: Weights | None,
    labelled: Place | None,
    length: Length,
) -> Built:
    """A whole recipe from a shipped one, changed by what the rules chose; `labelled` are pictures elsewhere to evaluate
    on."""
    base = YAML(typ="safe", pure=True).load(
        shipped.find(str(chosen["recipe"].take), "pretrain").read_text(encoding="utf-8")
    )
    why = {field: rule.reason(facts) for field, rule in chosen.items()}
    begins = weights if chosen["begin"].take == "weights" else None
    data, reasons = _data(chosen, place, looked, begins, why, name)
    method = _method(base["method"], facts, chosen, begins)
    reasons |= {"method.name": why["recipe"], **dict(_reasons(method, why, begins))}
    beginning = _beginning(begins, method, facts)
    reasons |= {"init": f"{why['begin']}; {'' if begins is None else begins.why}".rstrip("; ")} if beginning else {}
    fields = {"name": name, "seed": 0, "data": data, "method": method, **beginning}
    fields |= _training(base, chosen, length) | {"evaluate": _evaluate(chosen, length, labelled)}
    fields["run"] = _run(facts, chosen, length)
    reasons |= {
        "optim.warmup_epochs": "a tenth of the run",
        "train.epochs": length.why,
        "train.batch_size": why["batch"],
        "train.precision": why["precision"],
        "evaluate": why["evaluate"],
        "run.workers": why["workers"],
        "run.compile": why["compile"],
    }
    if length.threads is not None:
        reasons["run.threads"] = "the faster of one thread and all, measured here"
    return Built(fields, reasons)


def _data(
    chosen: Mapping[str, Rule], place: Place, looked: Looked, begins: Weights | None, why: dict[str, str], name: str
) -> tuple[dict[str, Any], dict[str, str]]:
    fields, reasons = dict(place.fields), {}
    if chosen["copies"].take == "true":
        fields["cache"] = f"cache/{name}"
        reasons["data.cache"] = f"{why['copies']}; `unlabeled prepare` makes them once"
    if looked.stored.value_range is not None:
        fields["value_range"] = list(looked.stored.value_range)
        reasons["data.value_range"] = f"{looked.stored.bits} bits: these values become 0 and 255, measured"
    if begins is None:
        usual = chosen["normalise"].take == "imagenet"
        mean, std = (IMAGENET.mean, IMAGENET.std) if usual else (looked.mean, looked.std)
        fields |= {"mean": list(mean), "std": list(std)}
        reasons["data.mean"] = why["normalise"]
    if place.note:
        reasons["data.split" if "split" in fields else "data.val"] = place.note
    return fields, reasons


def _method(base: dict[str, Any], facts: Facts, chosen: Mapping[str, Rule], begins: Weights | None) -> dict[str, Any]:
    """The method's section with its crops and its network."""
    large, channels = int(chosen["size"].take), 1 if facts.grey and begins is None else facts.channels
    network, patch = str(chosen["network"].take), int(chosen["patch"].take)
    transformer = begins is None and of_tokens(chosen, None)
    unit = begins.patch if begins is not None else patch if transformer else 1
    method: dict[str, Any] = {}
    for field, value in base.items():
        if isinstance(value, dict) and "size" in value:
            share = LOCAL if field == "local" else 1
            value = {
                **value,
                "size": max(1, round(share * large / unit)) * unit,
                **_colours(value, channels == 3 and chosen["colours"].take == "changed"),
            }
        if field == "encoder":
            if begins is not None:
                continue
            value = {**value, "model": network} if transformer else {"model": network}
            value |= {"patch_size": patch} if transformer else {}
            value |= {"channels": channels} if channels != 3 else {}
        method[field] = value
    return method


def of_tokens(chosen: Mapping[str, Rule], weights: Weights | None) -> bool:
    """Whether the network is a transformer."""
    if weights is not None and chosen["begin"].take == "weights":
        return weights.kind == "sized"
    network = str(chosen["network"].take)
    return family_of(network).can_read(network, "cls", 1)


def _colours(view: dict[str, Any], changed: bool) -> dict[str, Any]:
    """Without what changes colours, which only RGB has, unless they are `changed`."""
    if changed or "jitter" not in view:
        return {}
    return {"jitter": [*view["jitter"][:2], 0.0, 0.0], "grayscale": 0.0}


def _reasons(method: dict[str, Any], why: dict[str, str], begins: Weights | None) -> Iterator[tuple[str, str]]:
    first = next(field for field, value in method.items() if isinstance(value, dict) and "size" in value)
    yield f"method.{first}.size", why["size"]
    if "jitter" in method[first]:
        yield f"method.{first}.jitter", why["colours"]
    if begins is None:
        yield "method.encoder.model", why["network"]
        if "patch_size" in method["encoder"]:
            yield "method.encoder.patch_size", why["patch"]


def _beginning(begins: Weights | None, method: dict[str, Any], facts: Facts) -> dict[str, Any]:
    if begins is None:
        return {}
    adapt = [*(["size"] if begins.kind == "sized" else []), *(["channels"] if facts.channels != 3 else [])]
    more = {"adapt": adapt} if adapt else {}
    return {"init": begins.address, **more, "continued": {"hold": HOLD, "rate": 0.1, "layer_decay": 0.9}}


def _training(base: dict[str, Any], chosen: Mapping[str, Rule], length: Length) -> dict[str, Any]:
    optim = {**base["optim"], "warmup_epochs": round(WARM * length.epochs, 2)}
    epochs = int(length.epochs) if length.epochs == int(length.epochs) else length.epochs
    batch, precision = int(chosen["batch"].take), str(chosen["precision"].take)
    return {"optim": optim, "train": {"epochs": epochs, "batch_size": batch, "precision": precision}}


def _evaluate(chosen: Mapping[str, Rule], length: Length, labelled: Place | None) -> dict[str, Any] | None:
    if chosen["evaluate"].take == "nothing":
        return None
    elsewhere = {} if labelled is None else {"data": labelled.fields}
    return {"every": max(1, length.steps // 4), **elsewhere, "pool": "mean", "crop_pct": 1.0, "knn": {}, "linear": None}


def _run(facts: Facts, chosen: Mapping[str, Rule], length: Length) -> dict[str, Any]:
    return {
        "device": facts.device if facts.device == "cpu" else "auto",
        **({"threads": length.threads} if length.threads is not None else {}),
        "workers": facts.cores - 1 if chosen["workers"].take == "all but one" else int(chosen["workers"].take),
        "compile": chosen["compile"].take == "true",
        "log_every": max(1, min(50, length.steps // 50)),
        "checkpoint_every": max(10, length.steps // 10),
    }


def text(head: list[str], made: Built) -> str:
    """The recipe as YAML: `head` as comments, each reason beside its field, or above it where it is long."""
    return "".join(f"# {line}".rstrip() + "\n" for line in head) + "\n" + "".join(_lines(made.fields, made.reasons, ""))


def _lines(fields: Mapping[str, Any], reasons: Mapping[str, str], within: str) -> Iterator[str]:
    indent = "  " * within.count(".")
    for field, value in fields.items():
        place = f"{within}{field}"
        nested = isinstance(value, dict) and bool(value)
        line = indent + (f"{field}:" if nested else textwrap.indent(as_yaml({field: value}), indent).strip())
        reason = reasons.get(place, "")
        beside = f"{line}   # {reason}"
        if not within and (nested or field == "evaluate"):
            yield "\n"
        if reason and (len(beside) > WIDTH or "\n" in line):
            yield from (f"{indent}# {part}\n" for part in textwrap.wrap(reason, WIDTH - 2 - len(indent)))
        yield f"{beside if reason and len(beside) <= WIDTH and chr(10) not in line else line}\n"
        if nested:
            yield from _lines(value, reasons, f"{place}.")
