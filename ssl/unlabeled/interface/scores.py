"""Scores of encoders from Python: `unlabeled.evaluate(encoder, data=...)`, by the protocols of the command."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from unlabeled.backbone.encoder import Pool
from unlabeled.backbone.weights import prepare
from unlabeled.evaluate.baselines import verdict
from unlabeled.evaluate.comparison import Comparison, Subject, opened_once, prepared_as, protocols_of, rivals
from unlabeled.evaluate.evaluation import DEFAULT
from unlabeled.evaluate.protocol import Protocol
from unlabeled.evaluate.results import EncoderScores, full
from unlabeled.files import write_text
from unlabeled.interface import fragment
from unlabeled.interface.changes import Overrides, changes_of, in_python
from unlabeled.interface.model import Model
from unlabeled.interface.runs import Encoded, Run, address_of
from unlabeled.launch.given import data_of
from unlabeled.launch.options import device_of
from unlabeled.paths import expand
from unlabeled.progress import Bars, current, track
from unlabeled.report import html
from unlabeled.signals import handlers_kept
from unlabeled.stages import load_any


class Scores:
    """Scores of encoders, and of baselines where they were asked for. A notebook draws them.

    Attributes:
        rows: one for each encoder, then the baselines.
        protocols: by the names of their scores.
        verdicts: whether pretraining paid, in words; [] without baselines.
    """

    def __init__(
        self, rows: Sequence[EncoderScores], protocols: Mapping[str, Protocol], verdicts: Sequence[str]
    ) -> None:
        self.rows, self.protocols, self.verdicts = rows, protocols, verdicts

    @property
    def scores(self) -> dict[str, dict[str, float]]:
        """Means over draws of the labels, by encoder, then by score, such as `linear` or `linear_1%`."""
        return {row.name: {column.key: result.mean for column, result in row.scores.items()} for row in self.rows}

    def write(self, file: str | Path) -> Path:
        """Write a page with intervals, costs and charts, as `unlabeled evaluate --html` does; returns its path."""
        path, data = Path(file), {"rows": [row.summary() for row in self.rows]}
        write_text(path, html.write(full(self.rows, self.protocols, self.verdicts, data), path.parent))
        return path

    def __repr__(self) -> str:
        rows = ("  ".join(f"{key} {mean:.1f}" for key, mean in scores.items()) for scores in self.scores.values())
        return "\n".join(f"{name}: {row}" for name, row in zip(self.scores, rows, strict=True))

    def _repr_html_(self) -> str:
        return fragment.write(full(self.rows, self.protocols, self.verdicts, {}), Path())


def evaluate(
    encoder: Encoded | Sequence[Encoded],
    *,
    data: str | Path,
    protocols: Sequence[str] = DEFAULT,
    settings: Overrides = (),
    fractions: Sequence[float] = (1.0,),
    seeds: int = 3,
    baselines: bool = False,
    train: str | None = None,
    val: str | None = None,
    pool: Pool | None = None,
    image_size: int | None = None,
    crop_pct: float | None = None,
    device: str = "auto",
    workers: int = 2,
) -> Scores:
    """Judge frozen features by protocols, as `unlabeled evaluate` does.

    Args:
        encoder: an address as of `unlabeled.load`, a run of `unlabeled.pretrain`, a model, or several of these.
        data: labelled pictures, as the command takes them: a folder with train/CLASS and val/CLASS, a table, a recipe
            or a run's folder.
        protocols: knn, ncm, linear, logistic, ranpac, fewshot, retrieval, labelfree, cka, segmentation, or modules.
        settings: fields of protocols and of the data: `{"knn.k": [10], "data.label": "species"}`.
        fractions: shares of the labels to train on; `seeds` are the draws of each share below 1.
        baselines: whether raw pixels, the untrained network and the most frequent class are scored too.
        train, val: subfolders or splits; None = train and val.
        pool, image_size, crop_pct: None = as exported.
        device, workers: as of `Model.embed`.

    Raises:
        UserError: an encoder, the data or a setting does not fit.
    """
    changes = changes_of(settings)
    chosen = protocols_of(protocols, [change for change in changes if not change.startswith("data.")])
    with ExitStack() as stack:
        stack.enter_context(in_python())
        stack.enter_context(handlers_kept())
        if current() is None:
            stack.enter_context(Bars())
        comparison = Comparison(chosen, list(fractions), seeds, device_of(device, "device="), workers)
        subjects: list[Subject] = []
        for one in [encoder] if isinstance(encoder, str | Path | Run | Model) else encoder:
            network, how, _ = prepare(address := expand(address_of(one)), image_size, crop_pct=crop_pct, pool=pool)
            options = {"data": str(data), "set": changes, "train": train, "val": val, "allow_overlap": False}
            opened = opened_once(data_of(argparse.Namespace(**options), load_any, how), subjects)
            subjects.append(
                Subject(address, network.to(comparison.device), network.image_size, opened, prepared_as(how))
            )
        rows = [comparison.row(subject) for subject in track(subjects, "encoders", len(subjects))]
        others = [comparison.row(rival) for rival in rivals(subjects, chosen, comparison.device)] if baselines else []
        guessed = comparison.most_frequent_class(subjects[0], rows[0]) if baselines else None
    others = [*others, guessed] if guessed else others
    return Scores([*rows, *others], chosen, [text for row in rows if (text := verdict(row, others))])
