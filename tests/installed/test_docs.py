"""The documentation as a site: built strictly, without network, and what a browser makes of it."""

from __future__ import annotations

import functools
import http.server
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NO_NETWORK = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def site() -> Path:
    """The site, made anew as `make docs` does; a warning or a link that leads nowhere is an error."""
    env = {**os.environ, **NO_NETWORK, "PYTHONPATH": str(ROOT / "ssl")}
    made = subprocess.run([sys.executable, "-m", "make"], cwd=ROOT / "docs", env=env, capture_output=True, text=True)
    assert made.returncode == 0, made.stdout[-3000:] + made.stderr[-3000:]
    return ROOT / "site"


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_every_recipe_command_method_and_contract_is_there(site: Path) -> None:
    recipes = {file.stem for file in (ROOT / "recipes").rglob("*.yaml")}
    assert recipes == {file.stem for file in (site / "recipes").rglob("*.html")} - {"index"}
    commands = (site / "commands.html").read_text(encoding="utf-8")
    names = {file.stem for file in (ROOT / "ssl" / "unlabeled" / "commands").glob("[a-z]*.py")}
    assert names <= set(re.findall(r'<h2 id="([\w-]+)"', commands))
    methods = {file.stem for file in (ROOT / "ssl" / "unlabeled" / "pretrain" / "methods").glob("[a-z]*.py")}
    assert methods == {file.stem for file in (site / "methods").glob("*.html")} - {"index"}
    assert "explained</code> at or below 0.02" in (site / "methods" / "mae.html").read_text(encoding="utf-8")
    api = (site / "api.html").read_text(encoding="utf-8")
    assert all(name in api for name in ("load_encoder", "Embeddings", "PretrainMethod", "exports", "Strategy"))


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize(
    "page", ["index.html", "first_hour.html", "methods/dino.html", "recipes/pretrain/mae_cifar10.html"]
)
def test_a_page_fits_and_asks_nobody_else(address: str, width: int, page: str) -> None:
    from playwright.sync_api import sync_playwright

    said: list[str] = []
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        opened = browser.new_page(viewport={"width": width, "height": 900})
        opened.on("request", lambda asked: None if asked.url.startswith((address, "data:")) else said.append(asked.url))
        opened.on("pageerror", lambda error: said.append(str(error)))
        opened.goto(f"{address}/{page}.html")
        opened.wait_for_timeout(500)
        wide = opened.evaluate("document.documentElement.scrollWidth")
        browser.close()
    assert said == [] and wide <= width


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_search_finds_a_page(address: str) -> None:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.goto(f"{address}/index.html")
        page.keyboard.press("/")
        page.wait_for_timeout(500)
        page.keyboard.type("teacher_entropy", delay=30)
        page.get_by_text(re.compile(r"^\s*[1-9]\d* results?")).first.wait_for(timeout=60_000)
        browser.close()
