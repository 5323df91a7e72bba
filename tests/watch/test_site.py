"""The pages of a folder over HTTP: the list, a run, several, and what is refused."""

from __future__ import annotations

import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import quote

import pytest
from PIL import Image
from served import ask, make_run, serving
from support import ROOT

from unlabeled.launch.stage import OWN
from unlabeled.page import run as page_of_run
from unlabeled.report import html
from unlabeled.report.document import Document, Figure, Text
from unlabeled.watch import listing, pages, runs
from unlabeled.watch.found import MARK
from unlabeled.watch.server import Server
from unlabeled.watch.site import Site

FOLDERS = ("checkpoints", "export", "logs", "pictures", "look", ".export-writing", ".export-former")
SECRET = "a secret that lies outside"
NAMES = ["<script>alert(1)</script>", "a b&c=d?e#f%2e", "'\"><img src=x onerror=alert(1)>", "ünï", "new\nline"]


@pytest.fixture(autouse=True)
def _always_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "SEARCHED_FOR", 0.0)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "runs"
    make_run(root / "first", loss=0.125)
    make_run(root / "sweep" / "second", loss=3.5)
    (tmp_path / "secret.txt").write_text(SECRET, encoding="utf-8")
    (root / "notes.txt").write_text("notes that are no run", encoding="utf-8")
    return root


@pytest.fixture
def server(root: Path) -> Iterator[Server]:
    with serving(Site(root).answer) as one:
        yield one


class _Elements(HTMLParser):
    """The elements of a page, with their attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def attributes(self) -> set[str]:
        return {name for _, found in self.found for name in found}

    def of(self, tag: str, attribute: str) -> list[str]:
        return [value for name, found in self.found if name == tag and (value := found.get(attribute)) is not None]


def rows(page: str) -> dict[str, str]:
    """The text of every row of the list, by the name in it."""
    cells = re.findall(r"<tr id.*?</tr>", page, re.DOTALL)
    texts = [re.sub(r"<[^>]*>", " ", cell) for cell in cells]
    return {text.split()[0]: text for text in texts}


def test_the_list_leads_to_every_run(server: Server) -> None:
    found = ask(server, "/")
    assert found.status == 200 and "0.125" in found.text and "3.5" in found.text and "mae" in found.text
    links = [link for link in _Elements(found.text).of("a", "href") if link.startswith("/run/")]
    assert sorted(links) == ["/run/first/", "/run/sweep/second/"]
    assert [ask(server, link).status for link in links] == [200, 200]
    assert set(rows(found.text)) == {"first", "sweep/second"}


def test_the_page_of_a_run(server: Server) -> None:
    found = ask(server, "/run/sweep/second/")
    assert found.status == 200 and "second (pretrain)" in found.text
    elements = _Elements(found.text)
    assert "/" in elements.of("a", "href") and elements.of("body", "data-refresh") == [f"{pages.REFRESH:g}"]
    policy = found.headers["Content-Security-Policy"]
    assert "script-src 'sha256-" in policy and "frame-ancestors 'none'" in policy and "default-src 'none'" in policy


def test_several_runs_beside_each_other(server: Server) -> None:
    found = ask(server, "/compare?run=first&run=sweep/second&run=first")
    assert found.status == 200 and "first" in found.text and "second" in found.text
    for query, status in {
        "": 400,
        "?run=first": 400,
        "?run=first&run=other": 404,
        "?run=first&run=../runs/first": 404,
    }.items():
        assert ask(server, f"/compare{query}").status == status
    many = "&".join(f"run={i}" for i in range(13))
    assert "13 runs are ticked; 2 to 12" in ask(server, f"/compare?{many}").text


@pytest.mark.parametrize(
    "path",
    [
        "/../secret.txt",
        "/run/../secret.txt",
        "/run/../../secret.txt/",
        "/run/first/../../../secret.txt",
        "/run/%2e%2e/secret.txt",
        "/run/..%2fsecret.txt",
        "/run/%2e%2e%2fsecret.txt",
        "/run/..%5csecret.txt",
        "/run/..\\secret.txt",
        "/run/%252e%252e/secret.txt",
        "/run//etc/passwd",
        "/run/%2fetc%2fpasswd",
        "/etc/passwd",
        "//etc/passwd",
        "/run/first/recipe.yaml",
        "/run/first/metrics.jsonl",
        "/run/first%00/",
        "/run/first/%00",
        "/run/./first/",
        "/run/first//",
        "/run/sweep/",
        "/run/sweep/../first/",
        "/notes.txt",
        "/run/notes.txt",
        "/run/",
        "/run",
        "/run/~root/",
        "/run/file:///etc/passwd",
        "/run/%c0%ae%c0%ae/secret.txt",
        "/compare?run=../secret.txt&run=/etc/passwd",
        "/compare?run=%252e%252e%252fsecret.txt&run=first",
    ],
)
def test_nothing_else_has_an_address(server: Server, path: str) -> None:
    found = ask(server, path)
    assert found.status == 404
    assert SECRET not in found.text and "root:" not in found.text and "no run</" not in found.text


def test_links_of_runs_show_nothing_of_outside(server: Server, root: Path, tmp_path: Path) -> None:
    linked = make_run(root / "linked")
    for name, target in (("plan.json", tmp_path / "secret.txt"), ("events.jsonl", Path("/etc/passwd"))):
        (linked / name).symlink_to(target)
    pictured = make_run(root / "pictured")
    (pictured / "pictures").mkdir()
    assert ask(server, "/run/pictured/").status == 200
    (pictured / "pictures" / "step-00000001.png").symlink_to(tmp_path / "secret.txt")
    outside = make_run(tmp_path / "outside")
    (root / "away").symlink_to(outside)
    listed = ask(server, "/")
    assert listed.status == 200
    assert rows(listed.text)["linked"].count("leads outside") == rows(listed.text)["away"].count("leads outside") == 1
    for name in ("linked", "pictured", "away", "away/outside"):
        found = ask(server, f"/run/{name}/")
        assert found.status in (403, 404) and SECRET not in found.text and "root:" not in found.text, name
    assert ask(server, "/compare?run=linked&run=first").status == 403
    assert ask(server, "/compare?run=pictured&run=first").status == 403


def test_a_page_that_names_files_outside_does_not_get_them(
    server: Server, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files that a run's own JSON may name, such as the sheet of a map."""
    Image.new("RGB", (4, 4), (1, 2, 3)).save(tmp_path / "outside.png")
    Image.new("RGB", (4, 4), (1, 2, 3)).save(root / "first" / "inside.png")
    shown = ["../../outside.png", str(tmp_path / "outside.png"), "inside.png"]
    document = Document("x", [Figure(file, file) for file in shown])
    monkeypatch.setattr(page_of_run, "document", lambda *_: document)
    assert ask(server, "/run/first/").text.count("data:image/png") == 1


@pytest.mark.parametrize("name", NAMES)
def test_names_are_harmless_and_lead_to_their_runs(server: Server, root: Path, name: str) -> None:
    folder = name.replace("/", "|")
    make_run(root / folder, name="n")
    found = ask(server, "/")
    elements = _Elements(found.text)
    assert len(elements.of("script", "src")) == len(elements.of("img", "src")) == 0
    assert sum(tag == "script" for tag, _ in elements.found) == 2
    assert not any(attribute.startswith("on") for attribute in elements.attributes())
    (link,) = set(elements.of("a", "href")) - {"#main", "/run/first/", "/run/sweep/second/"}
    assert link == f"/run/{quote(folder)}/" and ask(server, link).status == 200
    (value,) = set(elements.of("input", "value")) - {"first", "sweep/second"}
    assert ask(server, f"/compare?run={quote(value)}&run=first").status == 200
    refused = ask(server, f"/run/{quote(folder)}x/")
    assert refused.status == 404 and "<script>alert" not in refused.text and "<img" not in refused.text


def test_a_name_may_be_any_bytes(server: Server, root: Path) -> None:
    make_run(root / os.fsdecode(b"odd\xff\xfe"), name="odd")
    found = ask(server, "/")
    assert "/run/odd%FF%FE/" in found.text and ask(server, "/run/odd%FF%FE/").status == 200
    assert ask(server, "/compare?run=odd%25FF%25FE&run=first").status == 200


def test_what_stands_in_a_run_is_harmless(server: Server, root: Path) -> None:
    make_run(root / "hostile", name="'<script>alert(1)</script>'")
    (root / "hostile" / "recipe.yaml").write_text("method:\n  name: <script>alert(2)</script>\n", encoding="utf-8")
    for path in ("/", "/run/hostile/"):
        assert "<script>alert" not in ask(server, path).text


BROKEN = {
    "metrics.jsonl": [
        b"",
        b"\xff\x00{",
        b'{"step": 1',
        b"[]\n5\nnull\n",
        b'{"step": "x", "loss": []}\n',
        b"[" * 100_000,
        b'{"step": 1' + b"0" * 400 + b', "loss": 1}\n',
        b'{"step": -5, "loss": NaN, "epoch": 1e-320}\n',
    ],
    "plan.json": [b"", b"[]", b'{"steps": -1, "started": "x", "lines": 5}', b'{"steps": 1' + b"0" * 400 + b"}"],
    "recipe.yaml": [b"\xff", b"name:\nmethod:\n  name:\n", b"train:\n  epochs: 1e308\n", b"{" * 1000],
    "events.jsonl": [b'{"state": [], "text": 5}\n', b'{"state": "ended", "seconds": 1e400}\n', b"\0"],
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_runs_are_listed_beside_others(server: Server, root: Path, name: str) -> None:
    for i, content in enumerate(BROKEN[name]):
        broken = make_run(root / f"broken-{i}")
        (broken / name).write_bytes(content)
    found = ask(server, "/")
    assert found.status == 200 and "0.125" in found.text and "Traceback" not in found.text
    assert set(rows(found.text)) == {"first", "sweep/second", *(f"broken-{i}" for i in range(len(BROKEN[name])))}
    for i in range(len(BROKEN[name])):
        assert "Traceback" not in ask(server, f"/run/broken-{i}/").text


@pytest.mark.parametrize("seconds", [-(10.0**9), 10.0**12, 10.0**30])
def test_times_beyond_reason(server: Server, monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    state = runs.state
    monkeypatch.setattr(runs, "state", lambda folder: state(folder)._replace(modified=seconds))
    assert ask(server, "/").status == 200


def test_a_run_that_goes_while_its_page_is_made(server: Server, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(folder: Path, *_: object) -> Document:
        shutil.rmtree(folder)
        raise FileNotFoundError(2, "No such file or directory", str(folder))

    monkeypatch.setattr(page_of_run, "document", gone)
    found = ask(server, "/run/first/")
    assert found.status == 404 and "gone" in found.text
    assert list(rows(ask(server, "/").text)) == ["sweep/second"] and ask(server, "/run/first/").status == 404


def test_a_page_that_fails_is_said_in_words(
    server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> Document:
        raise KeyError("a bug")

    monkeypatch.setattr(page_of_run, "document", fail)
    found = ask(server, "/run/first/")
    assert found.status == 500 and "a bug" in found.text and "Traceback" not in found.text
    assert "watch: /run/first/: KeyError: 'a bug'" in capsys.readouterr().err
    monkeypatch.undo()
    assert ask(server, "/run/first/").status == 200


def test_a_page_is_made_once_for_each_change(server: Server, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    document = page_of_run.document

    def counted(*given: object) -> Document:
        made.append(given)
        return document(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(page_of_run, "document", counted)
    monkeypatch.setattr(pages, "SHARE", 1e9)
    (root / "first" / "export").mkdir()  # ended: its words do not change with time
    tag = ask(server, "/run/first/").headers["ETag"]
    assert ask(server, "/run/first/", If_None_Match=tag).status == 304 and len(made) == 1
    for name in ("index.html", "index.html.writing"):  # the run's own page is made of the same files
        (root / "first" / name).touch()
    assert ask(server, "/run/first/").headers["ETag"] == tag and len(made) == 1
    with (root / "first" / "metrics.jsonl").open("a", encoding="utf-8") as opened:
        opened.write('{"step": 4, "loss": 0.0625}\n')
    again = ask(server, "/run/first/", If_None_Match=tag)
    assert again.status == 200 and "0.0625" in again.text and len(made) == 2
    (root / "first" / "pictures").mkdir()
    (root / "first" / "pictures" / "step-00000004.png").touch()
    assert ask(server, "/run/first/").status == 200 and len(made) == 3
    assert made[0][1] is made[2][1], "the reader is kept, so that only what is new is read"
    # a page that takes long is not made again at once
    monkeypatch.setattr(pages, "SHARE", 1e-9)
    for step in (5, 6):
        with (root / "first" / "metrics.jsonl").open("a", encoding="utf-8") as opened:
            opened.write(f'{{"step": {step}, "loss": 0.5}}\n')
        ask(server, "/run/first/")
    assert len(made) == 4


def test_one_at_a_time_makes_a_page_and_other_pages_do_not_wait(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, go_on = [], threading.Event()
    document = page_of_run.document

    def slow(folder: Path, *given: object) -> Document:
        if folder.name == "first":
            made.append(folder)
            assert go_on.wait(5)
        return document(folder, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(page_of_run, "document", slow)
    found: list[int] = []
    threads = [threading.Thread(target=lambda: found.append(ask(server, "/run/first/").status)) for _ in range(4)]
    for thread in threads:
        thread.start()
    assert ask(server, "/").status == ask(server, "/run/sweep/second/").status == 200
    go_on.set()
    for thread in threads:
        thread.join(5)
    assert found == [200] * 4 and len(made) == 1


def test_few_pages_are_kept(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "KEPT", 2)
    site = Site(root)
    for i in range(4):
        make_run(root / f"{i}")
        site.answer(f"/run/{i}/", [])
    assert list(site.pages._slots) == [("2",), ("3",)]


def test_a_report_is_shown_as_a_stranger(server: Server, root: Path) -> None:
    (root / "report").mkdir()
    (root / "report" / "index.html").write_bytes(b"<!doctype html><head>" + MARK + b"<h1>kNN 70 %</h1>")
    assert "a report" in ask(server, "/").text
    found = ask(server, "/run/report/")
    assert "kNN 70 %" in found.text and found.headers["Content-Security-Policy"].startswith("sandbox allow-scripts; ")
    assert ask(server, "/compare?run=report&run=first").status == 404


def test_every_page_of_ours_bears_the_mark() -> None:
    page = html.write(Document("a", [Text("b")]), Path()).encode()
    assert MARK in page[:4096]


def test_a_folder_that_is_a_run_or_empty(tmp_path: Path) -> None:
    with serving(Site(make_run(tmp_path / "alone")).answer) as server:
        assert 'href="/run/"' in ask(server, "/").text and "alone (pretrain)" in ask(server, "/run/").text
    (tmp_path / "empty").mkdir()
    with serving(Site(tmp_path / "empty").answer) as server:
        found = ask(server, "/")
        assert found.status == 200 and "No runs in" in found.text
        make_run(tmp_path / "empty" / "new")
        assert "/run/new/" in ask(server, "/").text


def test_nothing_is_written_into_the_folder(server: Server, root: Path) -> None:
    def everything() -> dict[str, tuple[int, int]]:
        return {str(file): (file.stat().st_mtime_ns, file.stat().st_size) for file in [root, *root.rglob("*")]}

    before = everything()
    for path in ("/", "/run/first/", "/compare?run=first&run=sweep/second", "/nothing"):
        ask(server, path)
    assert everything() == before


def test_live_runs_stand_first_and_the_newest_of_the_others(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    for name, age in {"old": 9000, "new": 1000, "b": 5, "a": 0}.items():
        run = make_run(root / name)
        (run / "plan.json").write_text(f'{{"started": {now - age - 30}, "steps": 10}}', encoding="utf-8")
        for file in run.iterdir():
            os.utime(file, (now - age, now - age))
    shutil.rmtree(root / "first")
    shutil.rmtree(root / "sweep")
    page = listing.listing("runs", runs.Runs(root.resolve())).body.decode()
    assert re.findall(r'<a href="/run/(\w+)/">', page) == ["a", "b", "new", "old"]
    assert "2 running" in page and re.search(r'<progress max="1" value="0.300">', page)


OPENED: list[str] | None = None  # files that are opened, while it is a list


def _note(event: str, arguments: tuple[object, ...]) -> None:
    if OPENED is not None and event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
        OPENED.append(os.fsdecode(arguments[0]))


sys.addaudithook(_note)


def test_pages_open_no_file_that_was_not_looked_at_before(
    server: Server, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a run leaves, and more that it does not: only files of the run's own folder, `look` and `pictures`."""
    run = root / "first"
    for name in (*OWN, "look/map.json", "look/about.json", "look/errors.json", "look/errors.jpg", "look/where.png"):
        file = run / name
        if name in FOLDERS:
            file.mkdir(exist_ok=True)
            (file / "config.json").write_text("{}", encoding="utf-8")
        elif not file.exists():
            file.parent.mkdir(exist_ok=True)
            file.write_text('{"step": 1, "text": "a", "tone": "note", "state": "started"}\n', encoding="utf-8")
    for kind in ("attention", "pca"):
        Image.new("RGB", (4, 4)).save(run / "look" / f"{kind}-step-1.png")
    Image.new("RGB", (4, 4)).save(run / "pictures" / "step-00000001.png")
    monkeypatch.setattr(sys.modules[__name__], "OPENED", opened := [])
    for path in ("/", "/run/first/", "/compare?run=first&run=sweep/second"):
        assert ask(server, path).status == 200
    monkeypatch.setattr(sys.modules[__name__], "OPENED", None)
    inside = [Path(file).relative_to(root) for file in opened if file.startswith(str(root))]
    read = {file.relative_to("first").parts for file in inside if file.is_relative_to("first")}
    assert {("metrics.jsonl",), ("recipe.yaml",), ("events.jsonl",), ("pictures", "step-00000001.png")} <= read
    assert {parts for parts in read if len(parts) > 1 and parts[0] not in ("look", "pictures")} == set()
    outside = {file for file in opened if not file.startswith((str(root), str(ROOT), sys.prefix, sys.base_prefix))}
    assert {file for file in outside if not file.startswith(("/etc/mime", "/usr/"))} == set()
