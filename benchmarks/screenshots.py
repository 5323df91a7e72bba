"""Pictures of a page at the widths of a desktop and of a phone, light and dark, by Chromium without a window.

`python benchmarks/screenshots.py PAGE FOLDER` writes FOLDER/NAME-desktop-light.png and three more; it prints what the
page logged, and every request to a host.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path
from typing import Literal

from playwright.sync_api import Page, sync_playwright

WIDTHS = {"desktop": (1280, 900), "phone": (390, 844)}
THEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")
NAMES = ("chromium", "chromium-browser", "google-chrome")


def chromium() -> str | None:
    """The path of a Chromium of this machine."""
    return next(filter(None, map(shutil.which, NAMES)), None)


def scrolled(page: Page) -> None:
    """Bring every part of a page into view once, so that it is drawn."""
    for top in range(0, page.evaluate("document.body.scrollHeight"), 600):
        page.evaluate("top => scrollTo({top, behavior: 'instant'})", top)
        page.wait_for_timeout(60)
    page.evaluate("scrollTo({top: 0, behavior: 'instant'})")
    page.wait_for_timeout(200)


def screenshots(address: str, folder: Path, name: str) -> list[str]:
    """Write the pictures; return what the page logged and asked of hosts."""
    said: list[str] = []
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        for width, (w, h) in WIDTHS.items():
            for theme in THEMES:
                page = browser.new_page(viewport={"width": w, "height": h}, color_scheme=theme)
                page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
                page.on("pageerror", lambda error: said.append(f"error: {error}"))
                page.on("request", lambda asked: said.append(asked.url) if asked.url.startswith("http") else None)
                page.goto(address)
                scrolled(page)
                page.screenshot(path=folder / f"{name}-{width}-{theme}.png", full_page=True)
                page.close()
        browser.close()
    return list(dict.fromkeys(said))


def main() -> None:
    """Take the pictures of one page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("page", help="a file, or an address that begins with http://127.0.0.1")
    parser.add_argument("folder", type=Path, help="to write to")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    local = not args.page.startswith("http")
    address = Path(args.page).resolve().as_uri() if local else args.page
    name = Path(args.page).resolve().parent.name + "-" + Path(args.page).stem if local else "page"
    print(*screenshots(address, args.folder, name), sep="\n", file=sys.stderr)


if __name__ == "__main__":
    main()
