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
from unlabeled.report.document import Cell, Document, Marked, Part, Table, Text
from unlabeled.train.recipe import Recipe


def page(recipe: Recipe, facts: Facts, found: Sequence[Finding]) -> Document:
    """Everything that was found.

    Args:
        recipe: as resolved.
        facts: see `unlabeled.doctor`.
        found: the findings, the worst first.
    """
    parts: list[Part] = []
    for name, split in facts["splits"].items():
        lines = [*_pictures(recipe, split), *_copies(facts["copies"].get(name))]
        parts += [Text(f"pictures of {name}", "heading"), Table.facts(lines)]
    if "overlap" in facts["copies"]:
        parts += [Text("train and val", "heading"), Table.facts([("overlap", _overlap(facts))])]
    if facts["speed"]:
        parts += [Text("speed", "heading"), Table.facts(_speed(facts["speed"]))]
    verdict = sentence(found)
    parts += [Text(f"verdict: {verdict}", "heading"), Table.facts(_findings(found))]
    judged = {"verdict": verdict, "findings": [finding._asdict() for finding in found]}
    data = {"recipe": recipe.name, **facts, **judged, "versions": versions()}
    return Document(f"{recipe.name} ({facts['stage']})", parts, data)


def _pictures(recipe: Recipe, split: Facts) -> Iterator[Line]:
    everything = split["looked_at"] == split["pictures"]
    looked = "all of them looked at" if everything else f"{split['looked_at']:,} of them looked at"
    yield "pictures", f"{split['pictures']:,} from {recipe.data.name}, {looked}"
    if split["skipped"]:
        yield "skipped", in_words(Counter(split["skipped"]))
    yield "unreadable", _counted(split["unreadable"]["count"])
    yield from (("", f"{bad['key']}: {bad['reason']}") for bad in split["unreadable"]["examples"])
    if "mean" in split:
        yield "short side", _range(split["short_side"], " px")
        yield "aspect", _range(split["aspect"])
        yield (
            "crops",
            f"{_percent(split['smaller_than_crop'])} smaller than the largest crop, "
            f"{_percent(split['larger_than_twice_crop'])} more than twice as large",
        )
        yield "mean", f"{_values(split['mean'])}  recipe {_values(recipe.data.mean)}"
        yield "std", f"{_values(split['std'])}  recipe {_values(recipe.data.std)}"
        yield from _suspicious(split["suspicious"])
    yield "classes", _classes(split["classes"])


def _suspicious(suspicious: Facts) -> Iterator[Line]:
    odd = {name.replace("_", " "): one for name, one in suspicious.items() if one["count"]}
    yield "suspicious", ", ".join(f"{one['count']:,} {name}" for name, one in odd.items()) or "none"
    yield from (("", f"{name}: {key}") for name, one in odd.items() for key in one["examples"])


def _classes(classes: Facts | None) -> str:
    if classes is None:
        return "none"
    small, large = classes["smallest"]["pictures"], classes["largest"]["pictures"]
    each = f"{small:,} pictures each" if small == large else f"{small:,} to {large:,} pictures"
    unlabelled = f", {classes['unlabelled']:,} pictures without" if classes["unlabelled"] else ""
    kinds = "1 class" if classes["classes"] == 1 else f"{classes['classes']:,} classes"
    return f"{kinds} of {each}, evenness {_percent(classes['entropy'])}{unlabelled}"


def _copies(copies: Facts | None) -> Iterator[Line]:
    if copies:
        exact, near = copies["exact"], copies["near"]
        yield "copies", f"exact {_grouped(exact)}, look the same {_grouped(near)}"


def _grouped(found: Facts) -> str:
    return f"{found['count']:,} (of {number(found['groups'], 'picture')})" if found["count"] else "none"


def _overlap(facts: Facts) -> str:
    overlap = facts["copies"]["overlap"]
    looked = " with ".join(f"{split['looked_at']:,}" for split in facts["splits"].values())
    return f"exact {_counted(overlap['exact']['count'])}, look the same {_counted(overlap['near']['count'])} ({looked})"


def _speed(speed: Facts) -> Iterator[Line]:
    rates, batch, time, memory = speed["images_per_s"], speed["batch"], speed["time"], speed["memory"]
    threads = f", {number(speed['threads'], 'thread')}" if speed["device"] == "cpu" else ""
    yield "device", f"{speed['device']}{threads}, {number(speed['cores'], 'core')}"
    makers = number(speed["workers"], "worker") if speed["workers"] else "the process that trains"
    yield "loader", f"{rates['loader']:,.0f} images/s by {makers}"
    part = "" if batch["measured"] == batch["run"] else f" ({batch['measured']} of {batch['run']} at a time)"
    yield "model", f"{rates['model']:,.0f} images/s{part}"
    yield "together", f"{rates['together']:,.0f} images/s, bound by the {speed['bound_by']}; {_waiting(speed)}"
    held = f"{gigabytes(memory['peak'])} held at most{part} of {gigabytes(memory['available'])}"
    yield "memory", f"{held}; weights, optimizer and activations are {gigabytes(memory['expected'])}"
    yield "time", f"{duration(time['training_s'])} for {number(time['steps'], 'step')}{_evaluation(time)}"


def _waiting(speed: Facts) -> str:
    share = _percent(speed["waiting"])
    if speed["bound_by"] == "model" and speed["workers"]:
        return f"making pictures beside it costs the model {share} of its speed"
    return f"the model waits {share} of the time"


def _evaluation(time: Facts) -> str:
    if not time["evaluations"]:
        return ", without evaluation"
    return f", and about {duration(time['evaluation_s'])} for {number(time['evaluations'], 'evaluation')}"


def _findings(found: Sequence[Finding]) -> Iterator[tuple[Cell, str]]:
    for i, finding in enumerate(found, 1):
        yield Marked(f"{i}. {finding.severity}", finding.severity), finding.text
        yield "", f"-> {finding.advice}"


def _range(quantiles: Facts, unit: str = "") -> str:
    if quantiles["min"] == quantiles["max"]:
        return f"{quantiles['min']:g}{unit}"
    shown = ", ".join(f"{name} {value:g}" for name, value in quantiles.items())
    return f"{shown}{unit}"


def _values(values: Sequence[float]) -> str:
    return f"[{', '.join(f'{value:.3f}' for value in values)}]"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _counted(count: int) -> str:
    return f"{count:,}" if count else "none"
