"""The server: who may ask, how, and that nobody keeps it from answering others."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator, Sequence
from http import HTTPStatus

import pytest
from served import ask, send, serving
from support import free_port

from unlabeled.errors import UserError
from unlabeled.watch import server as module
from unlabeled.watch.frame import Page, framed
from unlabeled.watch.server import Refused, Server, listen


def answer(path: str, query: Sequence[tuple[str, str]]) -> Page:
    if path == "/fails":
        raise RuntimeError("a secret <b>word</b>")
    if path == "/refused":
        raise Refused(HTTPStatus.NOT_FOUND, "gone <i>away</i>")
    return framed("A page", f"<p>{path} {query}</p>" + "x" * (300_000 if path == "/large" else 0))


@pytest.fixture
def server() -> Iterator[Server]:
    with serving(answer) as one:
        yield one


def test_it_listens_on_the_loopback_address_alone(server: Server) -> None:
    assert server.socket.getsockname()[0] == "127.0.0.1"
    others = {found[4][0] for found in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)}
    for address in others - {"127.0.0.1"}:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((address, server.server_port), timeout=1)


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost", "[::1]"])
def test_hosts_of_this_machine(server: Server, name: str) -> None:
    assert ask(server, "/", host=f"{name}:{server.server_port}").status == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example:PORT", "127.0.0.1", "127.0.0.1:1", "127.0.0.1.evil.example:PORT", "localhost:PORT:", "", "::1"],
)
def test_names_that_were_made_to_point_here_are_refused(server: Server, host: str) -> None:
    found = ask(server, "/", host=host.replace("PORT", str(server.server_port)))
    assert found.status == 403 and "A page" not in found.text


def test_a_request_without_or_with_two_hosts_is_refused(server: Server) -> None:
    own = f"Host: 127.0.0.1:{server.server_port}\r\n"
    assert send(server, b"GET / HTTP/1.0\r\n\r\n").status == 403
    assert send(server, f"GET / HTTP/1.1\r\nHost: evil.example\r\n{own}\r\n".encode()).status == 403
    assert send(server, b"GET http://evil.example/ HTTP/1.1\r\nHost: evil.example\r\n\r\n").status == 403


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "CONNECT", "PATCH", "get", "X"])
def test_it_only_reads(server: Server, method: str) -> None:
    found = ask(server, "/", method)
    assert found.status == 405 and found.headers["Allow"] == "GET, HEAD" and "A page" not in found.text


def test_the_head_of_a_page_is_that_of_the_page(server: Server) -> None:
    head, page = ask(server, "/", "HEAD"), ask(server, "/")
    assert head.status == 200 and head.text == "" and page.text
    assert {**head.headers, "Date": ""} == {**page.headers, "Date": ""}
    assert int(head.headers["Content-Length"]) == len(page.text.encode())


@pytest.mark.parametrize("path", ["/", "/refused", "/fails", "/" + "a" * 9000])
def test_headers_of_every_answer(server: Server, path: str) -> None:
    headers = ask(server, path).headers
    assert headers["X-Content-Type-Options"] == "nosniff" and headers["Referrer-Policy"] == "no-referrer"
    assert headers["X-Frame-Options"] == "DENY" and headers["Cache-Control"] == "private, no-cache"
    assert headers["Cross-Origin-Resource-Policy"] == headers["Cross-Origin-Opener-Policy"] == "same-origin"
    policy = headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none';") and "frame-ancestors 'none'" in policy and "unsafe" not in policy
    assert not any(name.startswith("Access-Control") or name in ("Set-Cookie", "Location") for name in headers)
    assert headers["Server"] == "unlabeled"


def test_a_page_that_is_known_is_not_sent_again(server: Server) -> None:
    tag = ask(server, "/").headers["ETag"]
    again = ask(server, "/", If_None_Match=tag)
    assert again.status == 304 and not again.text and again.headers["ETag"] == tag
    assert ask(server, "/other", If_None_Match=tag).status == 200


def test_refusals_are_words(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    found = ask(server, "/refused")
    assert found.status == 404 and "gone &lt;i&gt;away&lt;/i&gt;" in found.text
    found = ask(server, "/fails")
    assert found.status == 500 and "a secret &lt;b&gt;word" in found.text and "Traceback" not in found.text
    assert "RuntimeError: a secret" in capsys.readouterr().err


@pytest.mark.parametrize(
    "request_", [b"\x00\xff\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"GET / FTP/1\r\n\r\n"]
)
def test_what_is_no_request_is_answered_in_words(server: Server, request_: bytes) -> None:
    found = send(server, request_)
    assert found.status in (400, 505) and "<h1>Not here</h1>" in found.text


def test_addresses_and_headers_of_any_length(server: Server) -> None:
    assert ask(server, "/" + "a" * 9_000).status == ask(server, "/" + "a" * 70_000).status == 414
    assert ask(server, "/", X="a" * 70_000).status == 431
    assert send(server, b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 200 + b"\r\n").status == 431
    assert ask(server, "/?" + "&".join("a=b" for _ in range(1500))).status == 200


def test_a_path_is_decoded_once(server: Server) -> None:
    assert "<p>/a b%2e [('run', 'x&y')]</p>" in ask(server, "/a%20b%252e?run=x%26y").text


def _takes(connection: socket.socket, part: bytes) -> bool:
    try:
        connection.sendall(part)
        return True
    except OSError:
        return False


def test_slow_and_silent_ones_block_nobody_and_are_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE", 0.3)
    monkeypatch.setattr(module, "WAITING", 8)
    with serving(answer) as server:
        # more than may wait; each sends a byte now and then, so that no single pause is long
        slow = [socket.create_connection(("127.0.0.1", server.server_port), timeout=5) for _ in range(12)]
        assert ask(server, "/").status == 200
        end = time.monotonic() + 5
        alive = list(slow)
        while alive and time.monotonic() < end:
            alive = [connection for connection in alive if _takes(connection, b"G")]
            time.sleep(0.05)
        assert not alive and not server.waiting
        for connection in slow:
            connection.close()


def test_more_than_may_wait_close_the_oldest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WAITING", 4)
    with serving(answer) as server:
        waiting = [socket.create_connection(("127.0.0.1", server.server_port), timeout=5) for _ in range(6)]
        assert [connection.recv(1) for connection in waiting[:2]] == [b"", b""]
        assert ask(server, "/").status == 200
        waiting[-1].sendall(f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{server.server_port}\r\n\r\n".encode())
        assert waiting[-1].recv(12) == b"HTTP/1.0 200"
        for connection in waiting:
            connection.close()


def test_a_reader_that_takes_nothing_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 0 < module._Handler.timeout <= 30
    monkeypatch.setattr(module._Handler, "timeout", 0.2)
    page = Page(b"x" * 30_000_000, "a", "default-src 'none'")
    with serving(lambda path, query: page) as server:
        request = f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{server.server_port}\r\n\r\n".encode()
        with socket.create_connection(("127.0.0.1", server.server_port), timeout=5) as connection:
            connection.sendall(request)
            time.sleep(0.6)
            got = 0
            while part := connection.recv(1 << 20):
                got += len(part)
        assert got < len(page.body)


def test_a_reader_that_takes_a_part_at_a_time_gets_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module._Handler, "timeout", 0.3)
    page = Page(b"x" * 8_000_000, "a", "default-src 'none'")
    with serving(lambda path, query: page) as server:
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
            connection.settimeout(5)
            connection.connect(("127.0.0.1", server.server_port))
            connection.sendall(f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{server.server_port}\r\n\r\n".encode())
            got = 0
            while part := connection.recv(1 << 20):  # 64 kB at most
                got += len(part)
                time.sleep(0.008)
        assert got > len(page.body)


def test_who_leaves_is_not_spoken_of(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(3):
        with socket.create_connection(("127.0.0.1", server.server_port), timeout=5) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # gone with a reset
            connection.sendall(f"GET /large HTTP/1.1\r\nHost: 127.0.0.1:{server.server_port}\r\n\r\n".encode())
    assert ask(server, "/").status == 200
    assert capsys.readouterr().err == ""


def test_a_port_that_is_taken_is_passed_over() -> None:
    with serving(answer) as first, listen(first.server_port, answer) as second:
        assert first.server_port < second.server_port < first.server_port + module.TRIES


@pytest.mark.parametrize("port", [0, -1, 65536, 10**9])
def test_ports_that_are_none(port: int) -> None:
    with pytest.raises(UserError, match=f"--port {port}: expected a number from 1 to 65535"):
        listen(port, answer)


def test_ports_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Server) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(module, "TRIES", 1)
    with serving(answer) as taken, pytest.raises(UserError, match="are taken"):
        listen(taken.server_port, answer)
    monkeypatch.setattr(Server, "server_bind", refuse)
    with pytest.raises(UserError, match="--port 80 is not allowed here"):
        listen(80, answer)


def test_nobody_is_asked_for_the_name_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    def ask_the_network(*_: object) -> str:
        raise AssertionError("a question to the network")

    monkeypatch.setattr(socket, "getfqdn", ask_the_network)
    with listen(free_port(), answer) as server:
        assert server.server_name == "127.0.0.1"
