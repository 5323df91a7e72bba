"""What a discovery leaves in its folder.

OUT/pictures/cluster-NN.png    pictures of each cluster, the nearest above, drawn ones below
OUT/clusters.csv               the cluster of every unlabelled picture
OUT/clusters.md, discover.html for people
OUT/clusters.json              for programs, written last
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from unlabeled.data.source import Source
from unlabeled.discover import accuracy, estimate
from unlabeled.discover.clusters import Found, as_json, describe
from unlabeled.discover.estimate import Curve
from unlabeled.discover.features import Side, Sides
from unlabeled.discover.fits import Fits
from unlabeled.discover.kmeans import Clustering
from unlabeled.discover.page import Report, caption, page, written
from unlabeled.discover.pictures import FOLDER, draw, name_of, thumbnails
from unlabeled.environment import versions
from unlabeled.files import remove, write_csv, write_text
from unlabeled.look.thumbnails import Thumbs, columns_for, write_sheet
from unlabeled.report import as_json as json_writer
from unlabeled.report import html, markdown
from unlabeled.report.visuals import Sheet

JSON, PAGE, SHEET = "clusters.json", "discover.html", "clusters.jpg"
SEMI, PLAIN = "semi-supervised k-means", "plain k-means"


class Asked(NamedTuple):
    """What was asked for.

    Attributes:
        export, labelled, unlabelled: as they were named.
        classes: number of clusters.
        starts: runs of k-means of which the best counts.
        shared: how many unlabelled pictures are labelled too, in words; '' = few.
        features: of which encoder and pictures the features of each side are, and how they were made.
    """

    export: str
    labelled: str
    unlabelled: str
    classes: int
    starts: int
    shared: str
    features: Mapping[str, Any]


class Both(NamedTuple):
    """The clusters, and those of plain k-means without labels as a baseline: of labelled, then unlabelled images."""

    semi: Clustering
    plain: Clustering
    sides: Sides

    def plain_of(self, rows: slice) -> NDArray[np.int64]:
        """Clusters of some images by the baseline."""
        found: NDArray[np.int64] = self.plain.labels[rows].cpu().numpy()
        return found


def write(out: Path, asked: Asked, fits: Fits, source: Source, curve: Curve | None) -> Report:
    """Describe the best clusters and write everything below `out`.

    Args:
        out: the folder.
        asked: for the report.
        fits: with the notes of all runs.
        source: of the unlabelled images.
        curve: of the number of classes, where it was not given.
    """
    k, starts = asked.classes, asked.starts
    both = Both(fits.best("clusters", k, starts), fits.best("plain", k, starts), fits.sides)
    found = describe(fits.sides, both.semi, fits.seed)
    report = _report(asked, fits, curve, found, both)
    remove(out / JSON)
    remove(out / FOLDER)
    thumbs = thumbnails(source, fits.sides.unlabelled.numbers, found.clusters)
    for cluster in found.clusters:
        draw(out, cluster, len(found.clusters), thumbs)
    _write_csv(out / "clusters.csv", fits.sides.unlabelled, found)
    document = written(report, _json(asked, fits.seed, report, found, both))
    write_text(out / "clusters.md", markdown.write(document))
    write_text(out / PAGE, _page(report, thumbs))
    write_text(out / JSON, json_writer.write(document))
    return report


def _report(asked: Asked, fits: Fits, curve: Curve | None, found: Found, both: Both) -> Report:
    labelled, unlabelled, truth, new = fits.sides
    clusters, known, count = both.semi.labels.cpu().numpy(), fits.sides.known, len(labelled.names)
    plain = both.plain_of(slice(count, None))
    scores = {}
    if truth is not None:
        named = truth >= 0
        for name, one in ((SEMI, clusters), (PLAIN, plain)):
            scores[name] = accuracy.scores(one[named], truth[named], known)
    names = (*labelled.classes, *new)
    told = [-1] * len(clusters) if truth is None else truth.tolist()
    return Report(
        facts=_facts(asked, fits.sides, len(found.clusters)),
        clusters=found.clusters,
        captions=[caption(name, names, label) for name, label in zip(unlabelled.names, told, strict=True)],
        scores=scores,
        agreement=accuracy.ari(accuracy.contingency(clusters, plain)),
        labelled_accuracy=accuracy.accuracy(both.plain_of(slice(count)), labelled.labels, known).everything,
        curve=curve,
        held_out=[fits.held_out(seed) for seed in range(estimate.SEEDS)] if curve else [],
        labelled_score=found.labelled_score,
        k=found.k,
    )


def _facts(asked: Asked, sides: Sides, count: int) -> list[tuple[str, str]]:
    bad = sides.labelled.bad + sides.unlabelled.bad
    return [
        ("encoder", asked.export),
        ("labelled", f"{len(sides.labelled.names):,} pictures of {sides.known} classes in {asked.labelled}"),
        ("unlabelled", f"{len(sides.unlabelled.names):,} pictures in {asked.unlabelled}"),
        *([("", asked.shared)] if asked.shared else []),
        *([("left out", f"{bad:,} that cannot be used")] if bad else []),
        ("clusters", f"{count}, {count - sides.known} of them new"),
    ]


def _json(asked: Asked, seed: int, report: Report, found: Found, both: Both) -> dict[str, Any]:
    """Everything that is known, for programs."""
    labelled, names, count = both.sides.labelled, both.sides.unlabelled.names, len(found.clusters)
    return {
        "export": asked.export,
        "labelled": {"path": asked.labelled, "pictures": len(labelled.names), "classes": labelled.classes},
        "unlabelled": {"path": asked.unlabelled, "pictures": len(names)},
        "features": asked.features,
        "seed": seed,
        "starts": asked.starts,
        "classes": count,
        "estimate": None if report.curve is None else {**report.curve.json, "held_out": report.held_out},
        "inertia": both.semi.inertia,
        "iterations": both.semi.iterations,
        "scores": report.scores.get(SEMI),
        "known_score": {"neighbour": found.k, "labelled": found.labelled_score},
        "baseline": {
            "inertia": both.plain.inertia,
            "scores": report.scores.get(PLAIN),
            "agreement": report.agreement,
            "labelled_accuracy": report.labelled_accuracy,
        },
        "clusters": [as_json(one, names, name_of(one, count) if one.size else None) for one in found.clusters],
        "versions": versions(),
    }


def _write_csv(file: Path, side: Side, found: Found) -> None:
    """Write the cluster of every unlabelled picture."""
    named = {cluster.number: cluster.name for cluster in found.clusters}
    rows = zip(side.names, found.of.tolist(), found.scores.tolist(), strict=True)
    head = ("picture", "cluster", "name", "known_score")
    write_csv(file, head, [(name, of, named[of], f"{score:.6f}") for name, of, score in rows])


def _page(report: Report, thumbs: Mapping[int, torch.Tensor]) -> str:
    """The page with its thumbnails as one JPEG within."""
    images = torch.stack(list(thumbs.values()))
    sheet = Thumbs(images, columns_for(len(images)))
    places = {row: place for place, row in enumerate(thumbs)}
    with tempfile.TemporaryDirectory() as folder:
        write_sheet(Path(folder) / SHEET, sheet)
        shown = Sheet(SHEET, images.shape[-1], sheet.columns, len(images))
        return html.write(page(report, shown, places), Path(folder))
