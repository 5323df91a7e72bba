"""The result of a fine-tuning as a report: `result.json` and `result.md`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from unlabeled.report.document import Document, Figure, Table, Text
from unlabeled.report.intervals import estimate

HARDEST_HEAD = ("class", "recall, %", "precision, %", "AUROC, %", "pictures", "taken for")
HARDEST = 20  # classes that are named
RANGES = {"many": "> 100", "medium": "20 to 100", "few": "< 20"}


def page(result: dict[str, Any]) -> Document:
    """Scores, the hardest classes, protocol and cost, from the content of `result.json`."""
    parts = (
        scores(result),
        Figure("confusion.png", "confusion matrix"),
        Figure("reliability.png", "reliability"),
        Text("Hardest classes", "heading"),
        Table(HARDEST_HEAD, _hardest(result)),
        Text("Protocol and cost", "heading"),
        circumstances(result),
    )
    return Document(f"{result['protocol']['name']}: accuracy {result['accuracy']:.2f} %", parts, result)


def scores(result: dict[str, Any]) -> Table:
    """The scores of all classes together."""
    return Table(("score", "value"), list(_scores(result)))


def circumstances(result: dict[str, Any]) -> Table:
    """Protocol, seeds and cost."""
    return Table.facts(_circumstances(result))


def confusions(result: dict[str, Any]) -> dict[int, dict[int, int]]:
    """Counts by predicted class of every true class, or of the hardest ones where there are very many."""
    if "confusion" in result:
        return {i: {j: n for j, n in enumerate(counts) if n} for i, counts in enumerate(result["confusion"])}
    return {int(i): {int(j): n for j, n in counts.items()} for i, counts in result.get("confused", {}).items()}


def _scores(result: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield "accuracy, % [95 %, bootstrap over pictures]", estimate(result["accuracy"], interval=result["interval"])
    if result["top5"] is not None:
        yield "top-5 accuracy, %", estimate(result["top5"])
    if result["majority"] is not None:
        yield "the most frequent class for every picture, %", estimate(result["majority"])
    yield "balanced accuracy, % (mean recall of the classes)", estimate(result["balanced_accuracy"])
    yield "mean precision of the classes, %", estimate(result["mean_precision"])
    if result["mean_auroc"] is not None:
        yield "mean AUROC of the classes, each against the others, %", estimate(result["mean_auroc"])
    yield "pictures of the largest class over those of the smallest", estimate(result["uneven"], digits=1)
    for name, group in result["groups"].items():
        yield f"{name} ({RANGES[name]} training pictures, {group['classes']} classes), %", estimate(group["accuracy"])
    yield "negative log-likelihood, nats", estimate(result["nll"], digits=4)
    yield "expected calibration error, %", estimate(result["ece"])
    yield "pictures", f"{result['pictures']:,}"


def _hardest(result: dict[str, Any]) -> list[tuple[str, ...]]:
    """Classes with the lowest recall first, each with the class that it is mostly taken for."""
    rows, names = [], list(result["classes"].values())
    for i, counts in confusions(result).items():
        name = names[i]
        if name not in result["per_class"]:
            continue
        wrong = {j: count for j, count in counts.items() if j != i}
        most = max(wrong, key=lambda j: wrong[j], default=None)
        taken_for = "" if most is None else f"{names[most]} ({wrong[most]})"
        shares = (result[measure].get(name) for measure in ("per_class", "precision", "auroc"))
        cells = ("-" if share is None else estimate(share) for share in shares)
        rows.append((name, *cells, f"{sum(counts.values())}", taken_for))
    return sorted(rows, key=lambda row: float(row[1]))[:HARDEST]


def _circumstances(result: dict[str, Any]) -> Iterator[tuple[str, str]]:
    protocol, spent = result["protocol"], result["cost"]
    yield "protocol", f"{protocol['name']} {protocol['version']}"
    yield "backbone", str(protocol["encoder"])
    yield "strategy", str(protocol["task"].get("strategy", protocol["task"])["name"])
    if "detector" in protocol["task"]:
        yield "detector", str(protocol["task"]["detector"]["name"])
    if "sweep" in result:
        head, heads, on = (result["sweep"][name] for name in ("chosen", "heads", "on"))
        blocks = f"{head['blocks']} block{'s' * (head['blocks'] > 1)}"
        yield "head", f"{head['pool']} of {blocks}, rate x {head['rate']:g}: best of {len(heads)} on {on}"
    yield "labelled pictures", f"{protocol['labelled_pictures']:,}{_chosen(protocol)}"
    if "balance" in protocol["task"]:
        yield "balanced", _balanced(protocol["task"])
    known = ((of, text) for of, text in protocol["fingerprints"].items() if text)
    yield "fingerprints", ", ".join(f"{of} {text}" for of, text in known)
    yield "seeds", ", ".join(f"{name} {seed}" for name, seed in result["seeds"].items())
    best = protocol["weights_of_step"]
    yield "steps", f"{spent['steps']:,}" + ("" if best == spent["steps"] else f", best weights of step {best:,}")
    since = f" since step {spent['from_step']:,}" if spent["from_step"] else ""
    yield "seconds", f"{spent['wall_s']:,.1f} ({spent['cpu_s']:,.1f} of CPU){since}"
    if spent["images_per_s"] is not None:
        yield "images/s", f"{spent['images_per_s']:,.1f} on {spent['processes']} x {spent['device']}"
    yield "versions", ", ".join(f"{name} {number}" for name, number in result["versions"].items())


def _balanced(task: dict[str, Any]) -> str:
    """Measures against uneven classes."""
    drawn = {"sqrt": "drawn by the root of their count", "balanced": "drawn equally often"}.get(task["balance"])
    parts = {
        f"classes {drawn} from epoch {task['balance_from']:g}": drawn,
        f"loss weighted by the effective number of pictures, {task['effective_number']}": task["effective_number"],
        f"logits adjusted by {task['logit_adjustment']:g} x log frequency in training": task["logit_adjustment"],
    }
    done = "; ".join(text for text, used in parts.items() if used)
    return done or "nothing: every picture is drawn once an epoch and counts the same"


def _chosen(protocol: dict[str, Any]) -> str:
    """The share of the labels that is used, where it is not all of them."""
    task, watch = protocol["task"], protocol["watch"]
    parts = {
        "a long tail of {:g} : 1": task.get("long_tail"),
        "{:g} a class": task.get("shots"),
        "{:g} % of each class": task["fraction"] < 1 and 100 * task["fraction"],
        "{:g} % of them held out": watch and 100 * watch["hold_out"],
    }
    said = ", ".join(text.format(value) for text, value in parts.items() if value)
    return f" ({said})" if said else ""
