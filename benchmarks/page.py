"""Weight of the page of a long run, and how soon Chromium shows it: `python benchmarks/page.py [FOLDER]`.

The run has 24 curves of 2,000 points with the range of each, a map of 10,000 images, a matrix of 100 classes, and three
series of 24 images.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import numpy
from PIL import Image
from playwright.sync_api import sync_playwright
from screenshots import chromium

from unlabeled.report import html
from unlabeled.report.document import Document, Table, Text
from unlabeled.report.visuals import Chart, Frame, Line, Map, Matrix, Sheet, Slides

CURVES, POINTS, STEPS = 24, 2_000, 100_000
IMAGES, SIDE, COLUMNS = 10_000, 32, 100
CLASSES, FRAMES, TRIES = 100, 24, 3


def document(folder: Path) -> Document:
    """The report of a long run; its images are written to `folder`."""
    random = numpy.random.default_rng(0)
    steps = numpy.linspace(0, STEPS, POINTS, dtype=int).tolist()

    def curve(i: int) -> Chart:
        y = 5 * numpy.exp(-numpy.linspace(0, 4, POINTS)) + 0.1 * random.standard_normal(POINTS)
        width = numpy.abs(random.standard_normal(POINTS)) / 5
        return Chart(f"measure {i}", [Line("value", steps, y.tolist(), (y - width).tolist(), (y + width).tolist())])

    coarse = random.integers(0, 255, (IMAGES // COLUMNS * 8, COLUMNS * 8, 3), dtype=numpy.uint8)
    size = (COLUMNS * SIDE, IMAGES // COLUMNS * SIDE)
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(folder / "sheet.jpg", quality=85)
    for i in range(FRAMES):
        frame = Image.fromarray(random.integers(0, 255, (60, 150, 3), dtype=numpy.uint8))
        frame.resize((1200, 480), Image.Resampling.BICUBIC).save(folder / f"frame-{i}.png")
    frames = [Frame(f"step {i}", f"frame-{i}.png") for i in range(FRAMES)]
    classes = random.integers(0, 50, IMAGES)
    points = random.standard_normal((IMAGES, 2)) + 6 * random.standard_normal((50, 2))[classes]
    plane = Map(
        "map",
        [(float(x), float(y)) for x, y in points],
        [f"images/class-{classes[i]}/image-{i:06}.jpg" for i in range(IMAGES)],
        Sheet("sheet.jpg", SIDE, COLUMNS, IMAGES),
        {"class": [f"class {i}" for i in classes], "uncertainty": random.random(IMAGES).tolist()},
    )
    counts = random.integers(0, 20, (CLASSES, CLASSES)).tolist()
    return Document(
        "a long run",
        [
            Text("Pretraining: step 99,950 of 100,000, a minute left."),
            Table.facts([("loss", "0.412"), ("images/s", "1,240")]),
            Text("Curves", "heading"),
            *map(curve, range(CURVES)),
            Text("Images", "heading"),
            *(Slides(name, frames) for name in ("reconstructions", "attention", "parts")),
            Text("Map", "heading"),
            plane,
            Text("Classes", "heading"),
            Matrix("confusion", [f"class {i}" for i in range(CLASSES)], counts),
        ],
    )


def opened(file: Path) -> tuple[float, float]:
    """Seconds until the page is loaded and its first chart is drawn, and until the map is, after a jump to it."""
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        begun = time.perf_counter()
        page.goto(file.as_uri())
        page.locator(".chart canvas").first.wait_for()
        page.evaluate("new Promise(done => requestAnimationFrame(() => setTimeout(done)))")
        first = time.perf_counter() - begun
        begun = time.perf_counter()
        page.evaluate("document.querySelector('.map').scrollIntoView({behavior: 'instant'})")
        page.wait_for_function("() => atlases[0] && atlases[0].image")
        page.evaluate("new Promise(done => requestAnimationFrame(() => setTimeout(done)))")
        later = time.perf_counter() - begun
        browser.close()
    return first, later


def main() -> None:
    """Write the page and open it a few times."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        report, file = document(folder), folder / "index.html"
        for name in ("the first time", "again"):
            begun = time.process_time()
            file.write_text(html.write(report, folder), encoding="utf-8")
            print(f"written {name}: {time.process_time() - begun:.2f} s of CPU")
        print(f"weight: {file.stat().st_size / 1e6:.1f} MB")
        for first, later in (opened(file) for _ in range(TRIES)):
            print(f"opened with its first charts: {first:.2f} s; then the map: {later:.2f} s")


if __name__ == "__main__":
    main()
