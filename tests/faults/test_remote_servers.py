"""Servers, proxies and caches that do not send what was asked for: never a bad picture, never a traceback."""

from __future__ import annotations

import functools
import gzip
import http.server
import io
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support import TINY_PRETRAIN, launch

from unlabeled.data.archive import http as ranges
from unlabeled.data.archive import remote
from unlabeled.data.archive.pictures import Pictures
from unlabeled.data.batch.workers import _said
from unlabeled.data.opened import Opened
from unlabeled.data.sources.files import Config as Files
from unlabeled.errors import Interrupted, UserError

pytest.importorskip("aiohttp")

Answer = Callable[["Server", bytes, int, int], None]


class Server(http.server.BaseHTTPRequestHandler):
    """Sends one file, in ranges, as `answers` say one after the other, then well; it has no manifest beside it."""

    data: bytes
    answers: list[Answer]
    etag = '"first"'

    def do_GET(self) -> None:
        if self.path.endswith(".manifest"):
            return self.head(404, {"Content-Length": 0})
        first, last = map(int, self.headers.get("Range", "bytes=0-0").removeprefix("bytes=").split("-"))
        answer = self.answers.pop(0) if self.answers else well
        answer(self, self.data, first, last)

    def head(self, status: int, headers: dict[str, Any]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, str(value))
        self.end_headers()

    def partly(self, body: bytes, first: int, last: int, **more: Any) -> None:
        """A range, its headers changed by `more`; None leaves one out."""
        headers = {
            "Content-Length": len(body),
            "Content-Range": f"bytes {first}-{last}/{len(self.data)}",
            "ETag": self.etag,
            **{name.replace("_", "-"): value for name, value in more.items()},
        }
        self.head(206, {name: value for name, value in headers.items() if value is not None})
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def leads_to(place: str) -> Answer:
    return lambda server, *_: server.head(302, {"Location": place, "Content-Length": 0})


def well(server: Server, data: bytes, first: int, last: int) -> None:
    if server.headers.get("If-Match", server.etag) != server.etag:
        server.head(412, {"Content-Length": 0})
    elif first >= len(data):
        server.head(416, {"Content-Length": 0, "Content-Range": f"bytes */{len(data)}"})
    else:
        server.partly(data[first : last + 1], first, min(last, len(data) - 1))


def another_range(server: Server, data: bytes, first: int, last: int) -> None:
    size = last - first + 1
    server.partly(data[:size], 0, size - 1)


def another_range_unsaid(server: Server, data: bytes, first: int, last: int) -> None:
    server.partly(data[: last - first + 1], first, last, Content_Range=None)


def short(server: Server, data: bytes, first: int, last: int) -> None:
    server.partly(data[first:last], first, last)


def cut(server: Server, data: bytes, first: int, last: int) -> None:
    server.partly(data[first:last], first, last, Content_Length=last - first + 1)
    server.close_connection = True


def whole(server: Server, data: bytes, first: int, last: int) -> None:
    server.head(200, {"Content-Length": len(data), "Content-Type": "application/x-tar", "ETag": server.etag})
    server.wfile.write(data)


def page(server: Server, data: bytes, first: int, last: int) -> None:
    body = b"<html>Please log in</html>" * 100
    server.head(200, {"Content-Length": len(body), "Content-Type": "text/html; charset=utf-8"})
    server.wfile.write(body)


def packed(server: Server, data: bytes, first: int, last: int) -> None:
    body = gzip.compress(data[first : last + 1])
    server.partly(body, first, last, Content_Encoding="gzip")


def all_packed(server: Server, data: bytes, first: int, last: int) -> None:
    body = gzip.compress(data)
    server.head(200, {"Content-Length": len(body), "Content-Encoding": "gzip"})
    server.wfile.write(body)


def refuses(status: int) -> Answer:
    def answer(server: Server, data: bytes, first: int, last: int) -> None:
        server.head(status, {"Content-Length": 0})

    return answer


def hangs_up(server: Server, data: bytes, first: int, last: int) -> None:
    server.close_connection = True


def no_http(server: Server, data: bytes, first: int, last: int) -> None:
    server.wfile.write(b"\x00\xff garbage\r\n\r\n" + bytes(100))
    server.close_connection = True


def silent(server: Server, data: bytes, first: int, last: int) -> None:
    server.partly(b"", first, last, Content_Length=last - first + 1)
    time.sleep(1)


def endless(server: Server, data: bytes, first: int, last: int) -> None:
    """The range, and then whatever the connection takes."""
    server.partly(data[first : last + 1], first, last, Content_Length=None, Connection="close")
    with suppress(OSError):
        for _ in range(10_000):
            server.wfile.write(bytes(1 << 16))
        raise AssertionError("nobody hung up")
    server.close_connection = True


def moved(server: Server, data: bytes, first: int, last: int) -> None:
    server.partly(data[first : last + 1], first, last, ETag='"second"')


def larger(server: Server, data: bytes, first: int, last: int) -> None:
    server.partly(data[first : last + 1], first, last, Content_Range=f"bytes {first}-{last}/{len(data) + 512}")


TROUBLE = [
    another_range,
    another_range_unsaid,
    short,
    cut,
    whole,
    page,
    packed,
    all_packed,
    hangs_up,
    no_http,
    silent,
    *map(refuses, (403, 404, 408, 429, 500, 503)),
]


@functools.cache
def archive() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for number in range(4):
            png = io.BytesIO()
            Image.fromarray(np.random.default_rng(number).integers(256, size=(9, 7, 3), dtype=np.uint8)).save(
                png, "PNG"
            )
            info = tarfile.TarInfo(f"cat/{number}.png")
            info.size = len(png.getvalue())
            tar.addfile(info, io.BytesIO(png.getvalue()))
    return buffer.getvalue()


@contextmanager
def serving(*answers: Answer) -> Iterator[tuple[str, list[Answer], type[Server]]]:
    """The address of a tar, what its server will answer next, and the server."""
    waiting = list(answers)
    handler = type("Handler", (Server,), {"data": archive(), "answers": waiting})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads, server.block_on_close = True, False
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/a.tar", waiting, handler
        server.shutdown()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "WAITS", (0.0, 0.0))
    monkeypatch.setattr(ranges, "SILENCE", 0.2)


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Pictures:
    file = tmp_path_factory.mktemp("tar") / "a.tar"
    file.write_bytes(archive())
    return Opened(Files(path=str(file))).original("train")


@pytest.mark.parametrize("trouble", TROUBLE, ids=lambda answer: answer.__name__)
def test_trouble_that_passes_is_not_noticed_and_trouble_that_stays_ends_with_75(trouble: Answer, local: Any) -> None:
    with serving() as (address, answers, _):
        source = Opened(Files(path=address)).original("train")
        answers += [trouble, trouble]
        assert torch.equal(source.image(2), local.image(2)) and not answers
        answers += [trouble] * 6  # a connection that breaks is opened again by aiohttp
        with pytest.raises(Interrupted, match=r"a\.tar' cannot be read: .+ Nothing is lost: the same command goes on"):
            source.image(1)
        answers.clear()
        assert torch.equal(source.image(1), local.image(1))


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (whole, "the server ignores ranges"),
        (page, "sends a web page instead of the file"),
        (packed, "packs the file with gzip"),
        (all_packed, "packs the file with gzip"),
        *((refuses(status), f"answers {status}") for status in (401, 403, 404, 410, 416)),
    ],
)
def test_a_server_that_will_not_do_is_named_at_once(answer: Answer, said: str) -> None:
    with serving(answer) as (address, answers, _), pytest.raises(UserError, match=said) as error:
        Opened(Files(path=address)).original("train")
    assert not answers and not isinstance(error.value, Interrupted)


@pytest.mark.parametrize("place", ["a.tar", "ftp://x/a.tar", "http://[::1"])
def test_a_server_that_leads_nowhere_is_named_at_once(place: str) -> None:
    with serving(*[leads_to(place)] * 20) as (address, _, _), pytest.raises(UserError, match="leads on to") as error:
        Opened(Files(path=address)).original("train")
    assert not isinstance(error.value, Interrupted)


@pytest.mark.parametrize("address", ["http://", "http://[::1/a.tar", "https://x:99999/a.tar"])
def test_what_is_no_address_is_named_at_once(address: str) -> None:
    with pytest.raises(UserError, match="this is no address") as error:
        Opened(Files(path=address)).original("train")
    assert not isinstance(error.value, Interrupted)


@pytest.mark.parametrize("address", ["ftp://127.0.0.1:1/a.tar", "http://127.0.0.1:1/*.tar"])
def test_nobody_there_ends_with_75(address: str) -> None:
    with pytest.raises(Interrupted, match=r"refused|Connect call failed"):
        Opened(Files(path=address)).original("train")


def test_a_packed_tar_is_named() -> None:
    with serving() as (address, _, server):
        server.data = gzip.compress(archive())
        with pytest.raises(UserError, match="is compressed with gzip"):
            Opened(Files(path=address)).original("train")


def test_trouble_while_the_headers_are_read_is_no_corrupt_tar(local: Any) -> None:
    for trouble in TROUBLE:
        with serving(well, trouble, trouble) as (address, _, _):
            assert Opened(Files(path=address)).original("train").fingerprint() == local.fingerprint()
    with serving(well, short, short, short) as (address, _, _), pytest.raises(Interrupted, match=r"was sent [\d,]+\."):
        Opened(Files(path=address)).original("train")


def test_an_endless_body_is_cut_off(local: Any) -> None:
    with serving() as (address, answers, _):
        source = Opened(Files(path=address)).original("train")
        answers += [endless]
        assert torch.equal(source.image(3), local.image(3)) and not answers


@pytest.mark.parametrize("answer", [moved, larger, refuses(412)])
def test_another_file_under_the_same_name_ends_the_run(answer: Answer) -> None:
    with serving() as (address, answers, _):
        source = Opened(Files(path=address)).original("train")
        answers += [answer]
        with pytest.raises(UserError, match="has changed since it was indexed") as error:
            source.image(0)
        assert not answers and not isinstance(error.value, Interrupted)


def test_every_range_names_the_file_that_was_seen_first(local: Any) -> None:
    with serving() as (address, _, server):
        source = Opened(Files(path=address)).original("train")
        server.etag = '"second"'
        with pytest.raises(UserError, match="has changed"):
            source.image(0)
        server.etag = '"first"'
        assert torch.equal(source.image(0), local.image(0))


def test_dates_do_where_there_are_no_tags(local: Any) -> None:
    def dated(date: str) -> Answer:
        def answer(server: Server, data: bytes, first: int, last: int) -> None:
            server.partly(data[first : last + 1], first, min(last, len(data) - 1), ETag=None, Last_Modified=date)

        return answer

    with serving(*[dated("Mon, 01 Jan 2024 00:00:00 GMT")] * 9) as (address, answers, _):
        source = Opened(Files(path=address)).original("train")
        answers[:] = [dated("Mon, 01 Jan 2024 00:00:00 GMT"), dated("Tue, 02 Jan 2024 00:00:00 GMT")]
        assert torch.equal(source.image(0), local.image(0))
        with pytest.raises(UserError, match="has changed"):
            source.image(0)


def test_other_file_systems_that_send_less(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fsspec.implementations.memory import MemoryFileSystem

    system = MemoryFileSystem()
    system.pipe("/a.tar", archive())
    source, read = Opened(Files(path="memory://a.tar")).original("train"), MemoryFileSystem.cat_file
    calls: list[int] = []

    def less(self: Any, path: str, start: int, end: int, **more: Any) -> bytes:
        calls.append(1)
        return read(self, path, start, end - (len(calls) < 3), **more)

    monkeypatch.setattr(MemoryFileSystem, "cat_file", less)
    assert source.image(0).shape == (3, 9, 7) and len(calls) == 3
    calls[:] = []
    monkeypatch.setattr(remote, "WAITS", ())
    for reads in (lambda: source.image(0), lambda: Opened(Files(path="memory://a.tar")).original("train")):
        calls[:] = []
        with pytest.raises(Interrupted, match=r"asked for [\d,]+ bytes, was sent [\d,]+"):
            reads()


@pytest.mark.parametrize("kind", [Interrupted, UserError])
def test_what_a_worker_met_keeps_its_exit_code(kind: type[UserError]) -> None:
    """torch hands a worker's error over as the text of its traceback."""
    text = (
        f"Caught {kind.__name__} in DataLoader worker process 0.\nTraceback ...\nunlabeled.errors.{kind.__name__}: so\n"
    )
    said = _said(text)
    assert type(said) is kind and str(said) == "so"


def impatient_run() -> None:
    remote.WAITS = (0.0,)


def test_a_run_whose_server_goes_ends_with_75_and_goes_on(tmp_path: Path) -> None:
    """In loader workers, for good; when the server is back the same command ends well."""
    with serving() as (address, answers, _):
        recipe = TINY_PRETRAIN.replace(
            "{name: shapes, train_size: 42, val_size: 20, size: 16}", f"{{name: files, path: '{address}'}}"
        ).replace("batch_size: 8", "batch_size: 2")
        (tmp_path / "r.yaml").write_text(recipe, encoding="utf-8")
        run = [str(tmp_path / "r.yaml"), f"run.output={tmp_path / 'run'}", "run.workers=1", "train.epochs=2"]
        answers += [well] * 4 + [refuses(503)] * 1000
        assert launch("pretrain", run, hook=impatient_run) == [75]
        answers.clear()
        assert launch("pretrain", run, hook=impatient_run) == [0]
    assert not (tmp_path / "run" / "bad_samples.jsonl").exists()
