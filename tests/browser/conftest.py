"""Chromium without a window, and pages in it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from every_part import every_part

from unlabeled.report import html

NAMES = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if (program := next(filter(None, map(shutil.which, NAMES)), None)) is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is on the path")
    with api.sync_playwright() as started:
        running = started.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with every part."""
    folder = tmp_path_factory.mktemp("page")
    file = folder / "index.html"
    file.write_text(html.write(every_part(folder), folder), encoding="utf-8")
    return file


@pytest.fixture
def opened(browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens an address in a page of its own; at the end nothing may have been logged or asked of a host."""
    contexts: list[Any] = []
    said: list[str] = []

    def note(message: Any) -> None:
        if "ERR_CONNECTION_REFUSED" not in message.text:  # a test's own server may close before the page that asks it
            said.append(f"{message.type}: {message.text}")

    def opened(address: str, width: int = 1280, height: int = 900, theme: str = "light", **options: Any) -> Any:
        context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=theme, reduced_motion="reduce", **options
        )
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.on("console", note)
        page.on("pageerror", lambda error: said.append(f"error: {error}"))
        own = address.rsplit("/", 1)[0]
        page.on("request", lambda asked: None if asked.url.startswith((own, "data:")) else said.append(asked.url))
        page.goto(address)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert said == []
