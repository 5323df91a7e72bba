"""The list of runs in a real browser: sorted, filtered, compared, kept up to date, readable."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from contrast import hard_to_read
from served import make_run, serving

from unlabeled.watch import runs
from unlabeled.watch.server import Server
from unlabeled.watch.site import Site

Opened = Callable[..., Any]
HOSTILE = "'><script>window.evil=1</script>"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(runs, "SEARCHED_FOR", 0.0)
    for i, (name, loss) in enumerate({"b10": 0.5, "b9": 3.25, "deep/c": 12.0, HOSTILE.replace("/", "|"): 1.0}.items()):
        for file in (run := make_run(tmp_path / "runs" / name, loss=loss)).iterdir():
            os.utime(file, (time.time() - 1000 * i - 300,) * 2)
        (run / "export").mkdir()
    (tmp_path / "runs" / "away").symlink_to(make_run(tmp_path / "outside"))
    return tmp_path / "runs"


@pytest.fixture
def server(root: Path) -> Iterator[Server]:
    with serving(Site(root).answer) as one:
        yield one


@pytest.fixture
def page(opened: Opened, server: Server) -> Any:
    return opened(server.url)


def shown(page: Any) -> list[str]:
    return page.locator("tbody tr:visible th").all_inner_texts()


def test_columns_are_sorted_up_down_and_as_before(page: Any) -> None:
    before = shown(page)
    assert before[0] == "b10" and len(before) == 5
    page.get_by_role("button", name="name", exact=True).click()
    assert [name for name in shown(page) if name[0] == "b"] == ["b9", "b10"]
    loss = page.get_by_role("button", name="loss")
    for expected, order in (
        ("ascending", ["b10", HOSTILE.replace("/", "|"), "b9", "deep/c", "away"]),
        ("descending", []),
    ):
        loss.click()
        assert page.locator("[aria-sort]").get_attribute("aria-sort") == expected
        if order:
            assert shown(page) == order
    assert shown(page)[0] == "deep/c" and shown(page)[-1] == "away"  # without a value: last either way
    loss.click()
    assert shown(page) == before and page.locator("[aria-sort]").count() == 0


def test_the_filter_hides_by_any_text(page: Any) -> None:
    page.get_by_label("Filter by text").fill("DEEP")
    assert shown(page) == ["deep/c"]
    page.get_by_label("Filter by text").fill("leads outside")
    assert shown(page) == ["away"]
    page.get_by_label("Filter by text").fill("")
    assert len(shown(page)) == 5


def test_ticked_runs_are_compared_and_stay_ticked(page: Any) -> None:
    compare = page.locator("#compare")
    assert compare.is_disabled() and page.locator("tbody input").count() == 4
    page.get_by_label("compare b9").check()
    page.get_by_label(f"compare {HOSTILE.replace('/', '|')}").check()
    assert compare.inner_text() == "Compare 2 runs"
    page.get_by_label("Filter by text").press("Enter")  # filters, and does not compare
    page.wait_for_timeout(100)
    assert "compare" not in page.url
    compare.click()
    page.wait_for_url("**/compare?*")
    assert "b9" in page.locator("main").inner_text() and "<script>" in page.locator("main").inner_text()
    page.get_by_role("link", name="all runs").click()
    page.locator("tbody tr").first.wait_for()
    assert page.get_by_label("compare b9").is_checked() and compare.inner_text() == "Compare 2 runs"
    page.get_by_role("link", name="b10").click()
    page.get_by_role("heading", name="b10 (pretrain)").wait_for()
    assert page.evaluate("window.evil") is None


def test_the_list_keeps_itself_up_to_date(page: Any, root: Path) -> None:
    page.get_by_label("compare b9").check()
    page.get_by_role("link", name="b9").focus()
    page.evaluate("document.querySelectorAll('tbody tr').forEach(row => row.seen = true)")
    with (root / "b9" / "metrics.jsonl").open("a", encoding="utf-8") as opened:
        opened.write('{"step": 4, "loss": 77.5}\n')
    shutil.rmtree(root / "deep")
    make_run(root / "new")
    page.evaluate("look()")
    page.get_by_text("77.5").wait_for()
    assert sorted(shown(page)) == sorted(["away", "b10", "b9", "new", HOSTILE.replace("/", "|")])
    kept = page.evaluate("[...document.querySelectorAll('tbody tr')].filter(row => row.seen).map(row => row.id)")
    assert "/run/b10/" in kept and "/run/b9/" not in kept  # only what has changed is put in anew
    assert page.get_by_label("compare b9").is_checked()
    assert page.evaluate("document.activeElement.textContent") == "b9"


def test_it_asks_by_itself_and_says_when_nobody_answers(opened: Opened, root: Path) -> None:
    with serving(Site(root).answer) as server:
        page = opened(server.url)
        make_run(root / "later")
        page.get_by_role("link", name="later").wait_for(timeout=8000)
        page.evaluate("window.kept = fetch; window.fetch = () => Promise.reject(Error('away')); 0")
        page.evaluate("look()")
        page.get_by_text("No answer any more").wait_for()
        page.evaluate("window.fetch = kept; 0")
        page.evaluate("look()")
        page.get_by_text("No answer any more").wait_for(state="hidden")


@pytest.mark.parametrize(("theme", "width"), [("light", 1280), ("dark", 360)])
def test_it_is_readable_on_any_screen(opened: Opened, server: Server, theme: str, width: int) -> None:
    page = opened(server.url, width=width, theme=theme)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert hard_to_read(page) == []
    dark = "getComputedStyle(document.body).colorScheme"
    before = page.evaluate(dark)
    page.locator("#theme").click()
    assert hard_to_read(page) == [] and page.evaluate(dark) != before
    page.get_by_role("link", name="b10").click()  # the choice is that of all pages
    page.get_by_role("heading", name="b10 (pretrain)").wait_for()
    assert page.evaluate(dark) != before


def test_it_is_used_by_keys(page: Any) -> None:
    reached = []
    for _ in range(40):
        page.keyboard.press("Tab")
        name = page.evaluate(
            "(e => e === document.body ? '' : `${e.tagName} ${e.getAttribute('aria-label') || e.textContent.trim()}`)"
            "(document.activeElement)"
        )
        if not name:
            break
        reached.append(name)
    for begin in ("A Skip", "BUTTON Light", "INPUT Filter", "BUTTON loss", "INPUT compare b9", "A b9"):
        assert any(name.startswith(begin) for name in reached), begin
    page.get_by_label("compare b9").press("Space")
    assert page.get_by_label("compare b9").is_checked()
