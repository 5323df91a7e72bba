"""The work of `unlabeled ladder`: one encoder up the ladder of ways to use it."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from unlabeled.backbone.encoder import Encoder
from unlabeled.backbone.weights import prepare
from unlabeled.data.opened import Opened
from unlabeled.environment import versions
from unlabeled.errors import UserError
from unlabeled.evaluate.splits import Preparation
from unlabeled.files import check_writable, claim, write_text
from unlabeled.ladder.ahead import Step, pictures, seconds_left
from unlabeled.ladder.amount import Amount
from unlabeled.ladder.page import NAMES, page, plot, score
from unlabeled.ladder.rungs import Climb, RungResult, guessed, probe_of, probed, splits_of
from unlabeled.ladder.training import recipe_of, tuned
from unlabeled.ladder.verdict import complete
from unlabeled.ladder.ways import BASELINES, PROBES, RUNGS, TUNED, WAYS
from unlabeled.launch.given import OF_DATA, data_of
from unlabeled.launch.options import check_least, checked, device_of
from unlabeled.launch.plan import number
from unlabeled.launch.resume import refuse_another
from unlabeled.progress import Clock, duration, task
from unlabeled.report import as_json, html, markdown
from unlabeled.stages import load_any
from unlabeled.text import plain, say

VERSION = "1"
FRACTIONS = [0.01, 0.1, 1.0]


def run(options: argparse.Namespace) -> int:
    """Climb, and write ladder.json, ladder.md, ladder.png and index.html."""
    check_writable({"--html": options.html})
    climb, rungs = _climb(options)
    _check(options, climb, rungs)
    with claim(climb.out, "--out"):
        results: list[RungResult] = []
        clock, costs, took = Clock(), pictures(climb, rungs), dict[Step, float]()
        shown = task("rungs", len(costs))
        try:
            for result in _results(climb, rungs):
                results.append(result)
                took[result.rung, result.amount] = clock.seconds - sum(took.values())
                print(f"{NAMES[result.rung]}, {result.amount.short}: {score(result)}", flush=True)
                _write(options, climb, results)
                shown.advance(left=seconds_left(costs, took))
        finally:
            shown.close()
            _draw(climb, results)
        say(f"took {duration(clock.seconds)}")
        print("\n" + plain((climb.out / "ladder.md").read_text(encoding="utf-8")))
    return 0


def _climb(options: argparse.Namespace) -> tuple[Climb, list[str]]:
    """What to climb with, and the names of the rungs."""
    encoder, how, words = prepare(options.export, crop_pct=options.crop_pct, pool=options.pool)
    say(f"{options.export}: {words}")
    possible = _possible(options.rungs, encoder, options.unlabelled)
    options.rungs = [*(BASELINES if options.baselines else ()), *possible]
    out = options.out or Path("runs") / f"ladder_{Path(options.export).resolve().parent.name}"
    data, device = data_of(options, load_any, how), device_of(options.device)
    amounts = _amounts(options, data)
    names = ("seeds", "steps", "batch_size", "min_scale", "workers", "unlabelled")
    given = {name: getattr(options, name) for name in names}
    dropping = [rung for rung, (strategy, *_) in TUNED.items() if "drop_path" in strategy and not encoder.drops_paths]
    changes = [*(f"{rung}.task.strategy.drop_path=0" for rung in dropping), *options.set]
    climb = Climb(options.export, data, encoder.image_size, how, device, out, amounts, changes=changes, **given)
    return climb, options.rungs


def _amounts(options: argparse.Namespace, data: Opened) -> list[Amount]:
    """Amounts of labels, the fewest first. Raises UserError when a number makes no sense."""
    if options.shots and min(options.shots) < 1:
        raise UserError(f"--shots {min(options.shots)}: expected at least 1")
    fractions = options.fractions or ([] if options.shots else _usual(data))
    return [*(Amount(shots=n) for n in sorted(set(options.shots))), *(Amount(f) for f in sorted(set(fractions)))]


def _usual(data: Opened) -> list[float]:
    """The shares of the labels that are tried unasked: those that leave a picture of every class."""
    labels = data.train.labels
    fewest = int(np.unique(labels[labels >= 0], return_counts=True)[1].min(initial=len(labels)))
    fractions = [fraction for fraction in FRACTIONS if np.rint(fraction * fewest) >= 1 or fraction == 1]
    if len(fractions) < len(FRACTIONS):
        say(f"labels: smaller shares would leave classes without a picture (the smallest has {fewest})")
    return fractions


def _possible(asked: list[str] | None, encoder: Encoder, unlabelled: str | None) -> list[str]:
    """The rungs to climb. Raises UserError when one was asked for that the network does not have, or that has no
    pictures."""
    if "unlabelled" in (asked or ()) and unlabelled is None:
        raise UserError(
            "--rungs unlabelled: it learns from pictures without labels too. Name them (--unlabelled PATH), or those "
            "of the training split whose labels are not used (--unlabelled train)."
        )
    has = {
        "attentive": "attention" in encoder.pools,
        "lora": encoder.adaptable,
        "unlabelled": unlabelled is not None,
    }
    possible = [rung for rung in WAYS if has.get(rung, True)]
    if strange := [rung for rung in asked or () if rung not in possible]:
        raise UserError(
            f"--rungs {strange[0]}: it needs a transformer's attention, of a kind that "
            f"{encoder.in_words(encoder.model)} does not have. Use some of {', '.join(possible)}."
        )
    return list(dict.fromkeys(asked or possible))


def _check(options: argparse.Namespace, climb: Climb, rungs: list[str]) -> None:
    """Raise UserError when an option, a recipe or the images do not fit, before the first rung runs."""
    for change in options.set:
        rung = change.partition(".")[0]
        if change.startswith(OF_DATA):
            continue
        if rung not in RUNGS or rung == "majority":
            raise UserError(f"--set {change}: expected RUNG.a.b=value with a rung of {', '.join(RUNGS)}")
        if rung not in rungs:
            raise UserError(f"--set {change}: {rung} is not climbed. Add it to --rungs, or leave this out.")
    checked(Preparation, **{name: getattr(climb.how, name) for name in ("pool", "crop_pct", "interpolation")})
    check_least(options, seeds=1, steps=1, batch_size=2, workers=0)
    if not 0 < options.min_scale <= 1:
        raise UserError(f"--min-scale {options.min_scale:g}: expected a share above 0 and at most 1")
    _ = splits_of(climb).sources
    for rung in rungs:
        if rung in TUNED:
            for amount, seed in itertools.product(climb.amounts, range(climb.seeds)):
                refuse_another(recipe_of(climb, rung, amount, seed), "a rung", "Choose another --out, or remove it.")
        elif rung != "majority":
            probe_of(climb, rung)


def _results(climb: Climb, rungs: list[str]) -> Iterator[RungResult]:
    if "majority" in rungs:
        yield from guessed(climb)
    for together in (("pixels",), ("untrained",), PROBES):
        if some := [rung for rung in together if rung in rungs]:
            yield from probed(climb, some)
    for rung in TUNED:
        if rung in rungs:
            yield from tuned(climb, rung)


def _write(options: argparse.Namespace, climb: Climb, results: list[RungResult]) -> None:
    """Write the results so far, so that an interrupted climb leaves them."""
    done = complete(results, climb.amounts)
    data = {
        "protocol": {"name": "ladder", "version": VERSION},
        "export": climb.export,
        "data": climb.data.config.model_dump(mode="json"),
        "fingerprints": {"train": climb.data.train.fingerprint(), "val": climb.data.val.fingerprint()},
        "options": {k: v for k, v in vars(options).items() if k not in ("run", "out", "export", "data", "html")},
        "versions": versions(),
    }
    found = page(_title(climb), results, done, data)
    write_text(climb.out / "ladder.json", as_json.write(found))
    if done:
        write_text(climb.out / "ladder.md", markdown.write(found))
        for file in filter(None, (climb.out / "index.html", options.html)):
            write_text(file, html.write(found, climb.out))


def _draw(climb: Climb, results: list[RungResult]) -> None:
    """Draw the results, at the end alone: a picture takes as long as a small rung."""
    if done := complete(results, climb.amounts):
        plot([result for result in results if result.amount in done], done, _title(climb), climb.out / "ladder.png")


def _title(climb: Climb) -> str:
    return f"{climb.export}, {number(climb.seeds, 'seed')}"
