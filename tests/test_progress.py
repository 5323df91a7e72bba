"""Long work says how far it is: a bar on a terminal, lines elsewhere, nothing where nobody listens."""

from __future__ import annotations

import io
import re
import sys

import pytest
from rich.console import Console

from unlabeled.progress import SAY_EVERY, Bars, duration, task, track
from unlabeled.train.tracking import STALE, Display


class Clock:
    """Seconds that pass when they are told to."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def screen(terminal: bool) -> tuple[Console, io.StringIO]:
    file = io.StringIO()
    return Console(file=file, force_terminal=terminal, width=120, highlight=False, soft_wrap=True), file


def test_lines_where_there_is_no_terminal() -> None:
    console, file = screen(terminal=False)
    clock = Clock()
    with Bars(console=console, clock=clock):
        for _ in track(range(10), "encoding", 100, lambda _: 10):
            clock.now += SAY_EVERY / 2
    assert file.getvalue().splitlines() == [
        f"encoding  {done} of 100  {(100 - done) / 10 * SAY_EVERY / 2:.0f} s left" for done in (20, 40, 60, 80)
    ]


def test_short_work_is_not_worth_a_line() -> None:
    console, file = screen(terminal=False)
    clock = Clock()
    with Bars(console=console, clock=clock):
        clock.now += 10 * SAY_EVERY  # silence before it is not its own
        for _ in track(range(3), "encoding", 3):
            clock.now += SAY_EVERY / 4
    assert file.getvalue() == ""


def test_a_bar_with_the_time_left_on_a_terminal() -> None:
    console, file = screen(terminal=True)
    clock = Clock()
    with Bars(console=console, clock=clock) as bars:
        outer, inner = task("encoders", 2), task("[b]encoding", 100)
        clock.now += 50
        inner.advance(25)
        assert bars.progress is not None
        bars.progress.refresh()
        inner.close()
        outer.close()
        assert not bars.progress.live.is_started, "nothing is left to show"
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", file.getvalue())
    assert "encoders" in shown and "[b]encoding" in shown and "25/100" in shown and "2 min left" in shown


def test_nobody_listens() -> None:
    assert list(track(range(3), "encoding", 3)) == [0, 1, 2]
    console, file = screen(terminal=True)
    with Bars(active=False, console=console) as bars:
        assert list(track(range(3), "encoding", 3)) == [0, 1, 2]
        bars.say("a line")
    assert file.getvalue() == ""


def test_a_run_says_its_loss_from_the_first_step_and_does_not_go_stale() -> None:
    console, file = screen(terminal=False)
    clock = Clock()
    with Bars(console=console, clock=clock), Display("run", 1000, 10, active=True) as display:
        for step in range(1, 40):
            clock.now += STALE / 10
            display.show(step, step / 100, 7 - step / 10, seconds_per_step=0.6)
        display.show(40, 0.4, 3, 0.6, "99 img/s  data 1 %")
    assert file.getvalue().splitlines() == [
        "step 1/1000  epoch 0.0/10  loss 6.9000  10 min left",
        "step 11/1000  epoch 0.1/10  loss 5.9000  10 min left",
        "step 21/1000  epoch 0.2/10  loss 4.9000  10 min left",
        "step 31/1000  epoch 0.3/10  loss 3.9000  10 min left",
        "step 40/1000  epoch 0.4/10  loss 3.0000  99 img/s  data 1 %  10 min left",
    ]


def test_the_bar_of_a_run_shows_every_step() -> None:
    console, file = screen(terminal=True)
    with Bars(console=console) as bars, Display("run", 1000, 10, active=True) as display:
        display.show(1, 0.01, 6.9, seconds_per_step=0.6)
        assert bars.progress is not None
        bars.progress.refresh()
        for _ in track(range(2), "nearest neighbours", 2):
            bars.progress.refresh()
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", file.getvalue())
    assert "loss 6.9000  10 min left" in shown and "nearest neighbours" in shown


@pytest.mark.parametrize("name", ["run", "mae_vits16_1gpu"])
def test_a_narrow_terminal_shows_count_loss_and_time_left_on_one_line(name: str) -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=80, highlight=False, soft_wrap=True)
    with Bars(console=console) as bars, Display(name, 16000, 400, active=True) as display:
        display.show(12345, 308.6, 0.6939, 0.6, "1,534 img/s  data 16 %")
        assert bars.progress is not None
        bars.progress.refresh()
    rows = re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", file.getvalue()))
    shown = next(row for row in rows if "loss" in row)
    assert max(map(len, rows)) <= 80
    assert shown.startswith(f"{name} ") and "12345/16000 loss 0.6939  37 min left" in shown


@pytest.mark.parametrize(("seconds", "text"), [(45, "45 s"), (720, "12 min"), (12240, "3.4 h"), (181440, "2.1 d")])
def test_durations_as_people_say_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_notebook_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    class Screen(io.StringIO):
        """Says that it is a terminal, as a notebook's does."""

        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("sys.stderr", Screen())
    monkeypatch.setenv("TERM", "xterm")
    assert Bars().progress is not None
    monkeypatch.setitem(sys.modules, "ipykernel", sys)
    assert Bars().progress is None and not Bars().console.is_jupyter
