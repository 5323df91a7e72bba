"""Pages in a real browser: everything is drawn, can be used with a pointer and with keys, and is readable."""

from __future__ import annotations

import functools
import http.server
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from contrast import CONTRASTS, hard_to_read
from every_part import IMAGES, every_part

from unlabeled.report import html
from unlabeled.report.document import Document, Text

Opened = Callable[..., Any]

# the pixels of a canvas
DATA = """canvas => {
  const {width, height} = canvas, copy = new OffscreenCanvas(width, height).getContext('2d');
  copy.drawImage(canvas, 0, 0);
  return copy.getImageData(0, 0, width, height).data;
}"""

# how many of them are about of a colour
COUNT = f"""(canvas, shade) => {{
  const data = ({DATA})(canvas), wanted = rgb(colour(shade));
  let count = 0;
  for (let i = 0; i < data.length; i += 4) {{
    count += data[i + 3] > 200 && wanted.every((value, at) => Math.abs(value - data[i + at]) < 50);
  }}
  return count;
}}"""

# how many colours they have
COLOURS = f"canvas => new Set(new Uint32Array(({DATA})(canvas).buffer)).size"


def chart(page: Any, title: str) -> Any:
    """The part of a page by its title, in view."""
    figure = page.locator(f"figure[aria-label='{title}']")
    figure.scroll_into_view_if_needed()
    figure.locator("canvas").first.wait_for()
    return figure


def pixels(figure: Any) -> str:
    return figure.locator("canvas").first.evaluate("canvas => canvas.toDataURL()")


def test_every_visual_is_drawn(opened: Opened, written: Path) -> None:
    page = opened(written.as_uri())
    first = page.locator("canvas").count()
    count = lambda title, shade: chart(page, title).locator("canvas").first.evaluate(COUNT, shade)  # noqa: E731
    assert count("loss", "series-0") > 100 and count("loss", "tone-stop") > 20 and count("loss", "tone-note") > 20
    assert all(count("of several runs", f"series-{i}") > 100 for i in range(3))
    assert count("classes", "series-0") > 1000 and count("calibration", "series-0") > 30
    chart(page, "map of the images")
    page.wait_for_function("() => atlases[0] && atlases[0].image")
    page.wait_for_timeout(100)
    assert chart(page, "map of the images").locator("canvas").evaluate(COLOURS) > 200  # thumbnails
    chart(page, "many classes")
    assert first < page.locator("canvas").count()  # what is not in view waits
    sizes = page.locator("main img").evaluate_all("images => images.map(image => [image.complete, image.naturalWidth])")
    assert len(sizes) == 7 and all(width == 240 for done, width in sizes if done)


def test_thumbnails_are_those_of_their_places(opened: Opened, written: Path) -> None:
    page = opened(written.as_uri())
    for place in (0, 7, 59, 12):
        thumb = page.locator(".gallery .thumb").nth((0, 7, 59, 12).index(place))
        thumb.scroll_into_view_if_needed()
        shot = thumb.screenshot(type="png")
        corner = page.evaluate(
            """async bytes => {
              const bitmap = await createImageBitmap(new Blob([new Uint8Array(bytes)]));
              const context = new OffscreenCanvas(bitmap.width, bitmap.height).getContext('2d');
              context.drawImage(bitmap, 0, 0);
              return [...context.getImageData(bitmap.width / 2, 6, 1, 1).data];
            }""",
            list(shot),
        )
        expected = [place * 37 % 256, place * 91 % 256, place * 53 % 256]
        assert all(abs(a - b) < 24 for a, b in zip(corner, expected, strict=False)), (place, corner, expected)


def test_names_do_not_run(opened: Opened, written: Path) -> None:
    page = opened(written.as_uri())
    chart(page, "of several runs").locator(".drawn").hover(position={"x": 200, "y": 80})
    chart(page, "loss").locator("summary").click()
    chart(page, "map of the images")
    page.get_by_label("Search by name").fill("<script>")
    page.get_by_label("Search by name").press("Enter")
    assert "<script>window.evil" in page.locator(".chosen").inner_text()
    assert "<script>window.evil" in page.locator(".classes").inner_text()
    page.locator(".gallery .thumb").nth(3).click()
    assert "<script>window.evil" in page.locator("dialog").inner_text()
    page.keyboard.press("Escape")
    page.wait_for_timeout(100)
    assert page.evaluate("window.evil") is None


def test_charts_zoom_by_drag_wheel_and_buttons(opened: Opened, written: Path) -> None:
    page = opened(written.as_uri())
    figure, other = chart(page, "loss"), chart(page, "effective rank")
    before, others = pixels(figure), pixels(other)
    box = figure.locator(".drawn").bounding_box()
    page.mouse.move(box["x"] + 100, box["y"] + 60)
    page.mouse.down()
    page.mouse.move(box["x"] + 200, box["y"] + 70, steps=3)
    assert figure.locator(".brush").is_visible()
    page.mouse.up()
    low, high = page.evaluate("state.zooms.step")
    assert 0 < low < high < 1990
    assert pixels(figure) != before and pixels(other) != others  # the same axis
    figure.get_by_label("Zoom in").click()
    closer = page.evaluate("state.zooms.step")
    assert closer[1] - closer[0] == pytest.approx((high - low) / 2)
    figure.get_by_label("Show all").click()
    page.mouse.move(0, 0)
    assert page.evaluate("state.zooms.step") is None and pixels(figure) == before
    top = page.evaluate("scrollY")
    page.locator(".top").click(position={"x": 600, "y": 5})
    page.evaluate("document.activeElement.blur()")
    figure.locator(".drawn").hover(position={"x": 200, "y": 80})
    page.mouse.wheel(0, 120)
    page.wait_for_function("top => scrollY > top", arg=top)  # the page scrolls until the chart is chosen
    assert page.evaluate("state.zooms.step") is None
    figure.locator(".drawn").focus()
    figure.locator(".drawn").hover(position={"x": 200, "y": 80})
    page.mouse.wheel(0, -120)
    page.wait_for_function("() => state.zooms.step")


def test_a_chart_says_the_values_under_the_pointer(opened: Opened, written: Path) -> None:
    page = opened(written.as_uri())
    figure = chart(page, "loss")
    x = page.evaluate("pixel(charts[0], 1200)")
    figure.locator(".drawn").hover(position={"x": x, "y": 80})
    page.wait_for_function("() => document.querySelector('.legend .where')")
    legend = figure.locator(".legend").inner_text()
    assert "step 1,2" in legend and "<script>" in legend  # the mark at that step
    assert chart(page, "effective rank").locator(".cross").is_visible()
    key = chart(page, "of several runs").get_by_role("button", name="dino")
    before = pixels(chart(page, "of several runs"))
    key.click()
    assert key.get_attribute("aria-pressed") == "false" and pixels(chart(page, "of several runs")) != before


def test_frames_change_by_slider_buttons_and_keys(opened: Opened, written: Path) -> None:
    page = opened(written.as_uri())
    figure = page.locator("figure[aria-label='reconstructions']")
    seen = lambda: figure.locator(".frame:visible").get_attribute("data-name")  # noqa: E731
    assert seen() == "step 4" and figure.locator(".slider").count() == 1
    figure.get_by_label("Previous image").click()
    assert seen() == "step 3" and "step 3" in figure.inner_text()
    figure.get_by_role("slider").press("Home")
    assert seen() == "step 0"
    figure.get_by_role("slider").press("ArrowRight")
    assert seen() == "step 1" and figure.get_by_role("slider").get_attribute("aria-valuetext") == "step 1"
    for _ in range(9):
        figure.get_by_label("Next image").click()
    assert seen() == "step 4"


def test_the_map_is_searched_coloured_and_shows_neighbours(opened: Opened, written: Path) -> None:
    page = opened(written.as_uri())
    figure = chart(page, "map of the images")
    page.wait_for_function("() => atlases[0].image")
    assert figure.locator(".classes .key").count() == 4
    figure.get_by_label("Colour by").select_option("cluster")
    assert figure.locator(".classes .key").count() == 37
    figure.get_by_label("Colour by").select_option("uncertainty")
    assert figure.locator(".gradient").is_visible()
    x, y = page.evaluate("atlases[0].pixel(20)")
    figure.locator("canvas").hover(position={"x": x, "y": y})
    assert figure.locator(".tip").is_visible() and "image-00020.jpg" in figure.locator(".tip").inner_text()
    figure.locator("canvas").click(position={"x": x, "y": y})
    chosen = figure.locator(".chosen")
    assert "image-00020.jpg" in chosen.inner_text() and chosen.locator(".thumb").count() == 9
    points, names = page.evaluate("[atlases[0].part.points, atlases[0].part.names]")
    nearest = sorted(range(IMAGES), key=lambda i: sum((a - b) ** 2 for a, b in zip(points[i], points[20], strict=True)))
    assert chosen.locator(".thumbs span").all_inner_texts() == [names[i] for i in nearest[:9]]
    figure.get_by_label("Search by name").press_sequentially("image-0001")
    assert figure.locator("output").inner_text() == "10 found"
    scale = page.evaluate("atlases[0].view.scale")
    figure.locator("canvas").press("+")
    assert page.evaluate("atlases[0].view.scale") > scale


def test_tables_are_sorted_by_a_press(opened: Opened, written: Path) -> None:
    page = opened(written.as_uri())
    first = lambda: page.locator("table.data tbody tr").first.locator("td").first.inner_text()  # noqa: E731
    page.get_by_label("Sort by top-1, %").click()
    assert first() == "mae"
    page.get_by_label("Sort by top-1, %").click()
    assert first().startswith("<script>")
    page.get_by_label("Sort by images").click()
    assert first() == "dino"


def test_everything_is_reached_by_keys_and_the_focus_is_seen(opened: Opened, written: Path) -> None:
    page = opened(written.as_uri())
    for title in ("loss", "map of the images"):
        chart(page, title)
    page.evaluate("scrollTo(0, 0); document.activeElement.blur()")
    reached = []
    for _ in range(200):
        page.keyboard.press("Tab")
        name, seen = page.evaluate(
            """() => { const e = document.activeElement, style = getComputedStyle(e);
              const name = `${e.tagName} ${e.getAttribute('aria-label') || e.textContent.trim()}`;
              return [e === document.body ? '' : name,
                style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 2]; }"""
        )
        if not name:
            break
        assert seen, name
        reached.append(name)
    expected = (
        "A Skip",
        "BUTTON Light",
        "A Curves",
        "DIV loss. Keys",
        "BUTTON Zoom in",
        "SUMMARY 3 marks",
        "BUTTON dino",
    )
    expected += (
        "INPUT reconstructions",
        "BUTTON Enlarge query",
        "SELECT Colour",
        "INPUT Search",
        "CANVAS map",
        "BUTTON Sort",
    )
    for begin in expected:
        assert any(name.startswith(begin) for name in reached), begin
    nameless = page.evaluate(
        "all('button').filter(b => !(b.getAttribute('aria-label') || b.textContent.trim())).length"
    )
    assert nameless == 0
    place = chart(page, "loss").locator(".drawn")
    place.press("+")
    narrow = page.evaluate("state.zooms.step")
    place.press("ArrowRight")
    assert page.evaluate("state.zooms.step")[0] > narrow[0]
    place.press("0")
    assert page.evaluate("state.zooms.step") is None


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_all_texts_can_be_read(opened: Opened, written: Path, theme: str) -> None:
    page = opened(written.as_uri(), theme=theme)
    for title in ("loss", "of several runs", "map of the images"):
        chart(page, title)
    assert len(page.evaluate(CONTRASTS)) > 150
    assert hard_to_read(page) == []
    dark = theme == "dark"
    assert page.evaluate("dark()") is dark
    page.locator("#theme").click()
    assert page.evaluate("dark()") is not dark
    page.reload()
    assert page.evaluate("dark()") is not dark and page.evaluate("getComputedStyle(document.body).colorScheme") != theme


@pytest.mark.parametrize("width", [360, 768, 1280])
def test_a_page_is_as_wide_as_the_screen(opened: Opened, written: Path, width: int) -> None:
    page = opened(written.as_uri(), width=width)
    for title in ("loss", "map of the images", "many classes"):
        chart(page, title)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    tops = page.locator(".chart").evaluate_all("all => all.map(one => one.getBoundingClientRect().top)")
    assert (tops[0] == tops[1]) is (width > 500)


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    """The address of a folder on this machine."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(tmp_path)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/index.html"
    server.shutdown()
    server.server_close()
    thread.join()


def address(served: str, file: Path, over: str) -> str:
    return served if over == "http" else file.as_uri()


@pytest.mark.parametrize("over", ["http", "file"])
def test_a_page_reads_itself_anew_until_what_it_tells_of_is_done(
    opened: Opened, tmp_path: Path, served: str, over: str
) -> None:
    file = tmp_path / "index.html"
    file.write_text(html.write(Document("a run", [Text("It runs.")]), tmp_path, refresh=0.5), encoding="utf-8")
    page = opened(address(served, file, over))
    file.write_text(html.write(Document("a run", [Text("It is done.")]), tmp_path), encoding="utf-8")
    page.get_by_text("It is done.").wait_for()
    assert not page.locator("body").get_attribute("data-refresh")


@pytest.mark.parametrize("over", ["http", "file"])
def test_a_page_that_reads_itself_anew_keeps_what_was_set(
    opened: Opened, tmp_path: Path, served: str, over: str
) -> None:
    file = tmp_path / "index.html"
    document = every_part(tmp_path)
    file.write_text(html.write(document, tmp_path, refresh=3600), encoding="utf-8")
    page = opened(address(served, file, over))
    figure = chart(page, "loss")
    figure.get_by_label("Zoom in").click()
    figure.locator("summary").click()
    page.locator("figure[aria-label='reconstructions']").get_by_label("Previous image").click()
    chart(page, "map of the images").get_by_label("Colour by").select_option("cluster")
    page.evaluate("document.activeElement.blur(); scrollTo(0, 700); window.marked = true")
    zoomed = page.evaluate("state.zooms.step")
    later = document._replace(parts=[Text("It is done."), *document.parts[1:]])
    file.write_text(html.write(later, tmp_path), encoding="utf-8")
    page.evaluate("void setTimeout(renew)")
    page.get_by_text("It is done.").wait_for(state="attached")
    assert page.evaluate("window.marked") is (True if over == "http" else None)
    page.wait_for_function("() => scrollY === 700")
    assert page.evaluate("state.zooms.step") == zoomed and page.locator("details[open]").count() == 1
    assert page.locator("figure[aria-label='reconstructions'] .frame:visible").get_attribute("data-name") == "step 3"
    assert chart(page, "map of the images").get_by_label("Colour by").input_value() == "cluster"
