"""Clusters as a report: what they are, how well they agree with true classes, how many there should be."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any, NamedTuple

from unlabeled.discover.clusters import Cluster
from unlabeled.discover.estimate import Curve
from unlabeled.discover.pictures import name_of
from unlabeled.report.document import Document, Figure, Marked, Part, Table, Text
from unlabeled.report.intervals import estimate
from unlabeled.report.visuals import Chart, Gallery, Line, Row, Sheet, Shown

BRIEF = 40  # clusters that a terminal shows
NEAR, RANDOM = "nearest to the centre", "at random"
MEANING = (
    "Size: unlabelled pictures. Known score: how close the pictures are to labelled ones, minus the squared distance "
    "of unit features to the nearest labelled picture but {before}, between -4 and 0; labelled pictures among "
    "themselves have {own:.3f}. Most like: the known class, beside its own, whose mean has the largest cosine with the "
    "centre. Spread: root mean square distance to the centre."
)
ONE_MATCHING = (
    "Names of the unlabelled pictures were not used. Clusters are matched with true classes once, for all pictures "
    "(the Hungarian algorithm); old are pictures of known classes, new the others. Both rows are of the same features "
    "and as many clusters; brackets are 95 % intervals by bootstrap over pictures."
)


class Report(NamedTuple):
    """What is told of a discovery.

    Attributes:
        facts: of encoder and pictures, by topic.
        clusters: by number.
        captions: of every unlabelled picture: its true class where there is one, else the end of its name.
        scores: with true classes, of semi-supervised and of plain k-means; empty = there is no truth.
        agreement: the adjusted Rand index of both, in percent.
        labelled_accuracy: of plain k-means on labelled pictures, in percent.
        curve: accuracies on held-out classes by number of clusters; None = the number was given.
        held_out: names of those classes, seed by seed.
        labelled_score, k: see `unlabeled.discover.clusters.Found`.
    """

    facts: Sequence[tuple[str, str]]
    clusters: Sequence[Cluster]
    captions: Sequence[str]
    scores: Mapping[str, Mapping[str, Any]]
    agreement: float
    labelled_accuracy: float
    curve: Curve | None
    held_out: Sequence[Sequence[str]]
    labelled_score: float
    k: int


def caption(name: str, classes: Sequence[str], label: int) -> str:
    """The true class of a picture, or the end of its name."""
    return classes[label] if label >= 0 else PurePath(name).name


def page(report: Report, sheet: Sheet, places: Mapping[int, int]) -> Document:
    """The page; `places` of rows in a sheet of thumbnails."""
    parts = [*_parts(report)]
    for title, known in (("New clusters", False), ("Known classes", True)):
        shown = [cluster for cluster in report.clusters if cluster.known == known and cluster.size]
        if shown:
            rows = [row for cluster in shown for row in _rows(cluster, report.captions, places)]
            parts += [Text(title, "heading"), Gallery(title, sheet, rows, _below(known, shown, report))]
    return Document("Discovered clusters", parts)


def written(report: Report, data: Mapping[str, Any]) -> Document:
    """The same as text, with the files of the pictures, and as JSON."""
    parts = [*_parts(report)]
    for cluster in report.clusters:
        if cluster.size:
            parts += [
                Text(f"{cluster.number}. {cluster.name}", "heading"),
                Figure(name_of(cluster, len(report.clusters)), f"{cluster.name}: above {NEAR}, below {RANDOM}"),
            ]
    return Document("Discovered clusters", parts, data)


def brief(report: Report) -> Document:
    """What a terminal shows."""
    more = len(report.clusters) - BRIEF
    told = [Text(f"{more:,} more are in clusters.md")] if more > 0 else []
    return Document("", [*_scores(report), *_doubt(report), _table(report.clusters[:BRIEF]), *told])


def _parts(report: Report) -> Iterator[Part]:
    yield Table.facts(report.facts)
    yield from _scores(report)
    yield from _estimate(report)
    yield Text("Clusters", "heading")
    yield _table(report.clusters)
    yield Text(MEANING.format(before=report.k - 1, own=report.labelled_score))


def _scores(report: Report) -> Iterator[Part]:
    if not report.scores:
        yield Text(
            "The unlabelled pictures lie in no class folders, so there is nothing to score the clusters with. Plain "
            f"k-means without labels agrees with them to {report.agreement:.1f} % (adjusted Rand index: 0 = chance), "
            f"and finds the labelled classes to {report.labelled_accuracy:.1f} %."
        )
        return
    rows = []
    for name, found in report.scores.items():
        groups = (_accuracy(found, group) for group in ("all", "old", "new"))
        rows.append((name, *groups, *(f"{found[measure]:.1f}" for measure in ("nmi", "ari", "purity"))))
    yield Text("Agreement with true classes", "heading")
    yield Table(("", "all, %", "old, %", "new, %", "NMI, %", "ARI, %", "purity, %"), rows)
    counts = next(iter(report.scores.values()))["pictures"]
    yield Text(f"{counts['old']:,} old and {counts['new']:,} new pictures. {ONE_MATCHING}")


def _accuracy(found: Mapping[str, Any], group: str) -> str:
    return "-" if found[group] is None else estimate(found[group], interval=found["intervals"][group], digits=1)


def _doubt(report: Report) -> Iterator[Part]:
    if report.curve is not None and report.curve.doubt:
        yield Text(_undecided(report.curve))


def _undecided(curve: Curve) -> str:
    return (
        f"How many classes there are is undecided. {curve.doubt}. {curve.best} clusters were made; if you know better, "
        "say how many: --classes N."
    )


def _decided(curve: Curve) -> str:
    low, high = curve.range
    more = f"; of those that were tried, from {low} to {high} some are not clearly worse" if low < high else ""
    return f"The best number is {curve.best}{more}."


def _estimate(report: Report) -> Iterator[Part]:
    if (curve := report.curve) is None:
        return
    yield Text("How many classes there are", "heading")
    numbers, means = curve.numbers, [curve.mean(k) for k in curve.numbers]
    seeds = [[curve.accuracies[k][seed] for k in numbers] for seed in range(len(report.held_out))]
    low, high = ([choose(each) for each in zip(*seeds, strict=True)] for choose in (min, max))
    lines = [
        Line("mean", numbers, means, low, high),
        *(Line(f"held out {i + 1}", numbers, each) for i, each in enumerate(seeds)),
    ]
    yield Text(_undecided(curve) if curve.doubt else _decided(curve))
    yield Chart(
        "accuracy on held-out classes",
        lines,
        "clusters",
        "%",
        text="Half of the known classes are held out as if unknown, anew for each line, and looked for among all "
        "unlabelled pictures. Too few clusters mix them with others, too many break them up.",
    )
    yield Table(
        ("clusters", "accuracy, %", *(f"held out {i + 1}" for i in range(len(seeds)))),
        [
            (
                Marked(str(k)) if k == curve.best else str(k),
                f"{curve.mean(k):.1f}",
                *(f"{each[i]:.1f}" for each in seeds),
            )
            for i, k in enumerate(numbers)
        ],
    )


def _table(clusters: Sequence[Cluster]) -> Table:
    head = ("cluster", "size", "labelled", "known score", "spread", "most like")
    rows = [
        (
            f"{one.number}. {one.name}" if one.known else Marked(f"{one.number}. {one.name}"),
            f"{one.size:,}",
            f"{one.labelled:,}" if one.known else "",
            "-" if one.known_score is None else f"{one.known_score:.3f}",
            "-" if one.spread is None else f"{one.spread:.3f}",
            "-" if one.like is None else f"{one.like} ({one.cosine:.2f})",
        )
        for one in clusters
    ]
    return Table(head, rows)


def _rows(cluster: Cluster, captions: Sequence[str], places: Mapping[int, int]) -> Iterator[Row]:
    pictures = f"{cluster.number}. {cluster.name}, {cluster.size:,} picture{'s' * (cluster.size != 1)}"
    yield Row(f"{pictures}: {NEAR}", [Shown(places[row], captions[row]) for row in cluster.nearest])
    yield Row(f"{cluster.name}: {RANDOM}", [Shown(places[row], captions[row]) for row in cluster.random])


def _below(known: bool, shown: Sequence[Cluster], report: Report) -> str:
    kinds = "known classes" if known else "clusters that belong to no known class, the largest first"
    names = "Below each picture stands its true class, which was not used." if report.scores else ""
    return f"Unlabelled pictures of {len(shown):,} {kinds}. {names}".strip()
