"""The list of runs: a table that its script sorts, filters and keeps up to date, and that can be read without it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from datetime import datetime, timezone
from html import escape
from urllib.parse import quote

from unlabeled.page.state import State
from unlabeled.progress import duration
from unlabeled.text import one_line
from unlabeled.watch.frame import SCRIPT, Page, framed
from unlabeled.watch.runs import Listed, Runs

COLUMNS = ("name", "method", "state", "progress", "loss", "scores", "time left", "last change")
LIVE = ("running", "waiting")
SCORES = 3  # of a run at most
LAST = 253_402_300_799  # the end of the year 9999; a file may say any time


def listing(folder: str, runs: Runs) -> Page:
    """The page of all runs of a folder, by the name that the user gave it."""
    found = list(runs.all().values())
    found.sort(key=_order)
    live = sum(one.state is not None and one.state.condition in LIVE for one in found)
    count = (
        f"{len(found):,} in {folder}, {live:,} running"
        if found
        else f"No runs in {folder} yet: they come by themselves"
    )
    rest = "" if runs.whole else '<p class="missing">The folder is very large: not all of it was searched.</p>'
    head = "".join(f'<th scope="col"><button type="button">{name}</button></th>' for name in COLUMNS)
    rows = "".join(_row(one, folder) for one in found)
    name = os.path.basename(folder.rstrip("/")) or folder
    body = f"""<a class="skip" href="#main">Skip to the content</a>
<header class="top"><div class="name"><h1>{_said(name)}</h1><span id="count">{_said(count)}</span></div>
<button type="button" id="theme" aria-label="Light or dark" title="Light or dark">◐</button></header>
<main id="main" class="list" tabindex="-1"><form action="/compare" method="get"><div class="search">
<input type="search" id="filter" placeholder="Filter" aria-label="Filter by text" autocomplete="off">
<button type="submit" id="compare">Compare</button></div>
<p id="lost" class="missing" role="status" hidden>No answer any more; this is how it was. Is watch still running?</p>
{rest}<table class="data runs"><thead><tr><td></td>{head}</tr></thead><tbody>
{rows}</tbody></table></form></main>"""
    return framed(f"{name}: runs", body, SCRIPT)


def address(path: str) -> str:
    """Of the page of a run, by its path relative to the folder."""
    return f"/run/{quote(os.fsencode(path))}/" if path else "/run/"


def _order(one: Listed) -> tuple[bool, float, str]:
    """Live ones by name, so that they keep their places; then by the last change, the newest first."""
    live = one.state is not None and one.state.condition in LIVE
    return not live, 0.0 if live else -_changed(one), one.found.path


def _changed(one: Listed) -> float:
    return one.state.modified if one.state is not None else one.found.changed


def _row(one: Listed, folder: str) -> str:
    path = one.found.path
    name = _said(path or os.path.basename(folder.rstrip("/")))
    shown = f'<a href="{escape(address(path))}">{name}</a>' if not one.trouble else name
    tick = ""
    if one.found.kind == "run" and not one.trouble:
        value = escape(quote(os.fsencode(path)))
        tick = f'<input type="checkbox" name="run" value="{value}" aria-label="compare {name}">'
    cells = "".join(_cell(title, *cell) for title, cell in zip(COLUMNS[1:], _cells(one), strict=True))
    return (
        f'<tr id="{escape(address(path))}"><td>{tick}</td><th scope="row" data-key="{name}">{shown}</th>{cells}</tr>\n'
    )


def _cells(one: Listed) -> Iterable[tuple[str, str | float | None]]:
    """HTML of a row after its name, and the value to sort it by."""
    if one.state is None:
        kind = "a report" if one.found.kind == "report" else ""
        words = f'<span class="tone stop">{_said(one.trouble)}</span>' if one.trouble else ""
        yield from ((kind, kind), (words, one.trouble), *[("", None)] * 4)
    else:
        yield from _of(one.state)
    at = _changed(one)
    yield (_time(at), at) if at > 0 else ("", None)


def _of(state: State) -> Iterable[tuple[str, str | float | None]]:
    trains = f"{_said(state.trains)} <small>{_said(state.kind)}</small>"
    yield trains, f"{state.trains} {state.kind}"
    yield f'<span class="tone {state.tone or "plain"}">{_said(state.words)}</span>', state.condition
    share = state.step / state.total if state.total else None
    yield ("" if share is None else f'<progress max="1" value="{share:.3f}"></progress> {100 * share:.0f} %'), share
    yield ("" if state.loss is None else f"{state.loss:.4g}"), state.loss
    scores = [f"{_said(name)} <b>{value:.4g}</b>" for name, value in list(state.scores.items())[:SCORES]]
    yield "<br>".join(scores), next(iter(state.scores.values()), None)
    yield ("" if state.left is None else duration(state.left)), state.left


def _cell(title: str, html: str, key: str | float | None) -> str:
    sort = "" if key is None else f' data-key="{escape(str(key))}"'
    return f'<td data-title="{title}"{sort}>{html}</td>'


def _time(seconds: float) -> str:
    at = datetime.fromtimestamp(min(seconds, LAST), timezone.utc)
    return f'<time data-at="{seconds:.0f}" datetime="{at:%Y-%m-%dT%H:%M:%SZ}">{at:%Y-%m-%d %H:%M} UTC</time>'


def _said(text: str) -> str:
    """A name or words as HTML."""
    return escape(one_line(text))
