"""What was found and chosen, for people and for programs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from shlex import quote
from typing import Any, NamedTuple

from unlabeled.launch.plan import Line, number
from unlabeled.pretrain.continued import Caution
from unlabeled.progress import duration
from unlabeled.report.document import Cell, Document, Marked, Part, Table, Text
from unlabeled.start.cautions import Known
from unlabeled.start.ladder import Ladder
from unlabeled.start.machine import Machine
from unlabeled.start.opening import Place
from unlabeled.start.rules import Rule
from unlabeled.start.timing import Pace
from unlabeled.start.weights import earlier_runs


class Started(NamedTuple):
    """Everything that the page is about."""

    out: Path
    fields: Mapping[str, Any]
    reasons: Mapping[str, str]
    machine: Machine
    labelled: Place
    known: Known
    cautions: Sequence[Caution]
    pace: Pace | None
    ladder: Ladder | None


def page(started: Started) -> Document:
    """The explanation, cautions, and commands."""
    cautions: list[tuple[Cell, str]] = []
    for caution in started.cautions:
        cautions += [(Marked(caution.code.replace("_", " "), "warning"), caution.text), ("", f"-> {caution.advice}")]
    typed = commands(started)
    parts: list[Part] = [Table.facts(_found(started)), Text("chosen", "heading"), Table.facts(_chosen(started))]
    if cautions:
        parts += [Text("know this", "heading"), Table.facts(cautions)]
    lines = "\n".join(f"  # {why}\n  {command}" for command, why in typed)
    parts += [Text(f"{started.out} is written, a reason beside each field. Next:", "heading"), Text(lines, "code")]
    return Document("", parts, _data(started, [command for command, _ in typed]))


def _found(started: Started) -> Iterator[Line]:
    looked, place, here = started.known.looked, started.known.place, started.machine
    stored, count = looked.stored, len(looked.source)
    kinds = {1: "grey", 3: "RGB"}
    kind = "RGB without colours" if looked.grey else kinds.get(stored.channels, f"{stored.channels} channels")
    sample = "" if looked.found.looked == count else f"; {looked.found.looked:,} of them looked at"
    size = f"short side {looked.side} px (median), {kind}, {stored.bits} bits"
    yield "pictures", f"{number(count, 'picture')} in {place.path}: {size}{sample}"
    labelled = started.labelled
    yield "labels", (labelled.note or "none") + ("" if labelled is place else f", in {labelled.path}")
    if here.device == "cuda":
        yield "machine", f"{number(here.cores, 'core')}, {here.gpus} x {here.name}, {here.memory:.0f} GB"
    else:
        gpu = "no GPU" if here.device == "cpu" else here.device
        yield "machine", f"{number(here.cores, 'core')}, {gpu}, {here.memory:.0f} GB of memory"


def _chosen(started: Started) -> Iterator[Line]:
    chosen, fields, facts = started.known.chosen, started.fields, started.known.facts
    why = {field: rule.reason(facts) for field, rule in chosen.items()}
    view = next(value for value in fields["method"].values() if isinstance(value, dict) and "size" in value)
    yield "method", f"{fields['method']['name']}: {why['recipe']}"
    if "init" in fields:
        yield "beginning", f"{fields['init']}: {started.reasons['init']}"
    else:
        yield "beginning", f"from scratch: {why['begin']}"
        yield "network", f"{fields['method']['encoder']['model']}: {why['network']}"
    yield "crops", f"{view['size']} px: {why['size']}"
    yield "batch", f"{chosen['batch'].take}: {why['batch']}"
    yield "epochs", f"{fields['train']['epochs']:g} ({started.known.length.steps:,} steps): {started.known.length.why}"
    yield "evaluated", f"{chosen['evaluate'].take}: {why['evaluate']}"
    yield "otherwise", f"{chosen['second'].take}: {why['second']}"
    others = [run for run in earlier_runs() if run != fields.get("init")]
    if others:
        yield "", f"init={others[0]}: an encoder of an earlier run, where its pictures were like these"


def commands(started: Started) -> list[tuple[str, str]]:
    """Commands to type next, with what they are for."""
    out, fields, seconds = quote(str(started.out)), started.fields, started.known.length.seconds
    multiple = f"accelerate launch --multi_gpu --num_processes {started.machine.gpus} -m unlabeled pretrain {out}"
    pretrain = multiple if started.machine.gpus > 1 else f"unlabeled pretrain {out}"
    small = [(f"unlabeled prepare {out}", "small copies of the pictures, once")] if "cache" in fields["data"] else []
    main = (pretrain, "time not measured" if seconds is None else f"about {duration(seconds)}")
    if (climb := started.ladder) is None:
        last = (tuning(fields), "when there are labels")
    else:
        cost = "" if climb.seconds is None else f", about {duration(climb.seconds)}"
        last = (climb.command, f"which way to use it pays{cost}")
    return [*small, main, ("unlabeled watch runs", "beside it"), last]


def tuning(fields: Mapping[str, Any]) -> str:
    """The command of fine-tuning the encoder of a run, when there are labels."""
    large = next(value["size"] for value in fields["method"].values() if isinstance(value, dict) and "size" in value)
    export = quote(f"runs/{fields['name']}/export")
    return f"unlabeled finetune photos_few_labels encoder={export} task.view.size={large} data.path=LABELLED"


def _data(started: Started, typed: Sequence[str]) -> dict[str, Any]:
    known, pace = started.known, started.pace
    looked, facts, length = known.looked, known.facts, known.length
    return {
        "recipe": str(started.out),
        "name": started.fields["name"],
        "method": started.fields["method"]["name"],
        "network": started.fields["method"].get("encoder", {}).get("model"),
        "pictures": {
            "count": facts.pictures,
            "looked_at": looked.found.looked,
            "side": looked.side,
            "channels": looked.stored.channels,
            "bits": looked.stored.bits,
            "value_range": looked.stored.value_range,
            "grey": looked.grey,
            "unreadable": len(looked.found.bad),
            "equal_files": looked.copies,
            "alike": looked.alike,
            "mean": looked.mean,
            "std": looked.std,
            "labels": facts.labels,
            "classes": facts.classes,
            "each": facts.each,
        },
        "machine": started.machine._asdict(),
        "facts": facts._asdict(),
        "choices": {field: _choice(rule, known) for field, rule in known.chosen.items()},
        "begin": started.fields.get("init"),
        "time": {
            "epochs": length.epochs,
            "steps": length.steps,
            "seconds": length.seconds and round(length.seconds, 1),
            "pictures_per_s": pace and round(pace.real, 2),
            "measured": known.measured,
        },
        "ladder": started.ladder and started.ladder._asdict(),
        "cautions": [caution._asdict() for caution in started.cautions],
        "commands": list(typed),
    }


def _choice(rule: Rule, known: Known) -> dict[str, Any]:
    return {"value": rule.take, "when": rule.when, "because": rule.reason(known.facts), "evidence": rule.evidence}
