"""Facts and findings of the doctor as a report, the verdict last."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from unlabeled.data.archive.skipped import in_words
from unlabeled.doctor.facts import Facts
from unlabeled.doctor.verdict import Finding, sentence
from unlabeled.environment import versions
from unlabeled.launch.plan import Line, gigabytes, number
from unlabeled.progress import duration
from unlabeled.report import visuals
from unlabeled.report.document import Cell, Document, Marked, Part, Table, Text
from unlabeled.train.recipe import Recipe


def page(recipe: Recipe, facts: Facts, found: Sequence[Finding]) -> Document:
    """Everything that was found; findings come the worst first."""
    parts: list[Part] = []
    for name, split in facts["splits"].items():
        lines = _pictures(recipe, split, facts["copies"].get(name))
        parts += [Text(f"pictures of {name}", "heading"), Table.facts(lines)]
    if "overlap" in facts["copies"]:
        exact, near = (_counted(facts["copies"]["overlap"][kind]["count"]) for kind in ("exact", "near"))
        looked = " with ".join(f"{split['looked_at']:,}" for split in facts["splits"].values())
        overlap = f"exact {exact}, look the same {near} ({looked})"
        parts += [Text("train and val", "heading"), Table.facts([("overlap", overlap)])]
    if facts["speed"]:
        parts += [Text("speed", "heading"), Table.facts(_speed(facts["speed"])), _rates(facts["speed"])]
    verdict = sentence(found)
    judged: list[tuple[Cell, str]] = []
    for i, finding in enumerate(found, 1):
        judged.append((Marked(f"{i}. {finding.severity}", finding.severity), finding.text))
        judged.append(("", f"-> {finding.advice}"))
    parts += [Text(f"verdict: {verdict}", "heading"), Table.facts(judged)]
    told = {"verdict": verdict, "findings": [finding._asdict() for finding in found]}
    data = {"recipe": recipe.name, **facts, **told, "versions": versions()}
    return Document(f"{recipe.name} ({facts['stage']})", parts, data)


def _pictures(recipe: Recipe, split: Facts, copies: Facts | None) -> Iterator[Line]:
    looked = "all" if split["looked_at"] == split["pictures"] else f"{split['looked_at']:,}"
    yield "pictures", f"{split['pictures']:,} from {recipe.data.name}, {looked} of them looked at"
    if split["skipped"]:
        yield "skipped", in_words(Counter(split["skipped"]))
    yield "unreadable", _counted(split["unreadable"]["count"])
    yield from (("", f"{bad['key']}: {bad['reason']}") for bad in split["unreadable"]["examples"])
    if "mean" in split:
        yield "short side", _range(split["short_side"], " px")
        yield "aspect", _range(split["aspect"])
        enlarged, large = _percent(split["smaller_than_crop"]), _percent(split["larger_than_twice_crop"])
        yield "crops", f"{enlarged} smaller than the largest crop, {large} more than twice as large"
        yield "mean", f"{_values(split['mean'])}  recipe {_values(recipe.data.mean)}"
        yield "std", f"{_values(split['std'])}  recipe {_values(recipe.data.std)}"
        odd = {name.replace("_", " "): one for name, one in split["suspicious"].items() if one["count"]}
        yield "suspicious", ", ".join(f"{one['count']:,} {name}" for name, one in odd.items()) or "none"
        yield from (("", f"{name}: {key}") for name, one in odd.items() for key in one["examples"])
    yield "classes", _classes(split["classes"])
    if copies:
        yield "copies", f"exact {_grouped(copies['exact'])}, look the same {_grouped(copies['near'])}"


def _classes(classes: Facts | None) -> str:
    if classes is None:
        return "none"
    small, large = classes["smallest"]["pictures"], classes["largest"]["pictures"]
    each = f"{small:,} pictures each" if small == large else f"{small:,} to {large:,} pictures"
    unlabelled = f", {classes['unlabelled']:,} pictures without" if classes["unlabelled"] else ""
    count = f"{classes['classes']:,} class{'es' * (classes['classes'] != 1)}"
    return f"{count} of {each}, evenness {_percent(classes['entropy'])}{unlabelled}"


def _grouped(found: Facts) -> str:
    return f"{found['count']:,} (of {number(found['groups'], 'picture')})" if found["count"] else "none"


def _speed(speed: Facts) -> Iterator[Line]:
    rates, batch, time, memory = speed["images_per_s"], speed["batch"], speed["time"], speed["memory"]
    threads = f", {number(speed['threads'], 'thread')}" if speed["device"] == "cpu" else ""
    yield "device", f"{speed['device']}{threads}, {number(speed['cores'], 'core')}"
    makers = number(speed["workers"], "worker") if speed["workers"] else "the process that trains"
    yield "loader", f"{rates['loader']:,.0f} images/s by {makers}"
    part = "" if batch["measured"] == batch["run"] else f" ({batch['measured']} of {batch['run']} at a time)"
    yield "model", f"{rates['model']:,.0f} images/s{part}"
    gpu = speed["gpu"]
    which = "this GPU" if gpu["here"] else "an H100 or H200 in bfloat16, by counted operations,"
    makes = f"{number(gpu['cores'], 'core')} as fast as these make them, a process has {gpu['given']} here"
    yield "cores", f"{which} takes about {gpu['images_per_s']:,.0f} images/s: {makes}"
    share = _percent(speed["waiting"])
    waiting = f"the model waits {share} of the time"
    if speed["bound_by"] == "model" and speed["workers"]:
        waiting = f"making pictures beside it costs the model {share} of its speed"
    yield "together", f"{rates['together']:,.0f} images/s, bound by the {speed['bound_by']}; {waiting}"
    held = f"{gigabytes(memory['peak'])} held at most{part} of {gigabytes(memory['available'])}"
    yield "memory", f"{held}; weights, optimizer and activations are {gigabytes(memory['expected'])}"
    evaluation = ", without evaluation"
    if time["evaluations"]:
        evaluation = f", and about {duration(time['evaluation_s'])} for {number(time['evaluations'], 'evaluation')}"
    yield "time", f"{duration(time['training_s'])} for {number(time['steps'], 'step')}{evaluation}"


def _rates(speed: Facts) -> visuals.Chart:
    """The measured speeds as bars."""
    found = {name: rate for name, rate in speed["images_per_s"].items() if rate}
    lines = [visuals.Line("images/s", range(len(found)), list(found.values()))]
    return visuals.Chart("Speed", lines, "", "images/s", "bars", names=list(found))


def _range(quantiles: Facts, unit: str = "") -> str:
    one = quantiles["min"] == quantiles["max"]
    shown = f"{quantiles['min']:g}" if one else ", ".join(f"{name} {value:g}" for name, value in quantiles.items())
    return shown + unit


def _values(values: Sequence[float]) -> str:
    return f"[{', '.join(f'{value:.3f}' for value in values)}]"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _counted(count: int) -> str:
    return f"{count:,}" if count else "none"
