"""A web server for this machine alone: answers GET and HEAD with the pages that it is given, refuses in words.

It listens on the loopback address. A page of another site that has made its name point here (DNS rebinding) is refused
by the Host header, https://owasp.org/www-community/attacks/DNS_Rebinding is one description.
"""

from __future__ import annotations

import errno
import http.client
import http.server
import socket
import socketserver
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from html import escape
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qsl, unquote

from unlabeled.errors import UserError, first_line
from unlabeled.text import say
from unlabeled.watch.frame import Page, framed

ADDRESS = "127.0.0.1"
NAMES = (ADDRESS, "localhost", "[::1]")
PATIENCE = 10.0  # seconds for a request to arrive, and for a reader to take a part of the answer
PART = 1 << 16  # bytes
WAITING = 64  # connections without a request; more close the oldest
LONGEST = 8_000  # characters of an address
TRIES = 100  # ports
REFUSAL = """<header class="top"><div class="name"><a class="home" href="/">all runs</a><h1>Not here</h1></div></header>
<main class="list"><p>{words}</p></main>"""
HEADERS = {
    "Cache-Control": "private, no-cache",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class Refused(Exception):
    """A request without a page; the words are for its reader."""

    def __init__(self, status: HTTPStatus, words: str) -> None:
        super().__init__(words)
        self.status, self.words = status, words


Answer = Callable[[str, list[tuple[str, str]]], Page]
"""The page of a decoded path and the pairs of the query. Raises Refused."""


class Server(http.server.ThreadingHTTPServer):
    """Answers each connection in a thread of its own.

    Args:
        port: on the loopback address.
        answer: makes the pages.

    Raises:
        OSError: the port cannot be had.
    """

    daemon_threads = True
    request_queue_size = WAITING

    def __init__(self, port: int, answer: Answer) -> None:
        self.answer = answer
        self.waiting: dict[socket.socket, float] = {}  # since when a connection has been without a whole request
        super().__init__((ADDRESS, port), _Handler)

    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)  # without the base class's look for the machine's name in the network
        self.server_name, self.server_port = ADDRESS, self.server_address[1]

    @property
    def url(self) -> str:
        return f"http://{ADDRESS}:{self.server_port}/"

    @property
    def hosts(self) -> set[str]:
        """What a browser on this machine says as the Host."""
        bare = set(NAMES) if self.server_port == http.client.HTTP_PORT else set()
        return bare | {f"{name}:{self.server_port}" for name in NAMES}

    def process_request(self, request: Any, client_address: Any) -> None:
        self.waiting[request] = time.monotonic()
        self._let_go(list(self.waiting)[:-WAITING])
        super().process_request(request, client_address)

    def service_actions(self) -> None:
        """Close the connections whose request does not come; called twice a second."""
        before = time.monotonic() - PATIENCE
        self._let_go([request for request, since in list(self.waiting.items()) if since < before])

    def _let_go(self, requests: list[socket.socket]) -> None:
        for request in requests:
            self.waiting.pop(request, None)
            with suppress(OSError):
                request.shutdown(socket.SHUT_RDWR)

    def shutdown_request(self, request: Any) -> None:
        self.waiting.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say what went wrong between here and a browser, unless it has just gone."""
        error = sys.exc_info()[1]
        if error is not None and not isinstance(error, OSError):
            say(f"watch: {type(error).__name__}: {first_line(error)}")


class _Handler(http.server.BaseHTTPRequestHandler):
    """One connection, one request (HTTP/1.0)."""

    server: Server
    timeout = PATIENCE
    default_request_version = "HTTP/1.0"

    def do_GET(self) -> None:
        self.server.waiting.pop(self.connection, None)
        try:
            page = self._page()
        except Refused as error:
            self._refuse(error.status, error.words)
            return
        except Exception as error:
            say(f"watch: {self.path}: {type(error).__name__}: {first_line(error)}")
            self._refuse(HTTPStatus.INTERNAL_SERVER_ERROR, f"This page cannot be made: {first_line(error)}")
            return
        same = self.headers.get("If-None-Match") == f'"{page.tag}"'
        self._send(HTTPStatus.NOT_MODIFIED if same else HTTPStatus.OK, page)

    do_HEAD = do_GET

    def _page(self) -> Page:
        if self.headers.get_all("Host", []) not in ([host] for host in self.server.hosts):
            raise Refused(HTTPStatus.FORBIDDEN, f"This page answers to {self.server.url} only, with the same port.")
        if len(self.path) > LONGEST:
            raise Refused(HTTPStatus.REQUEST_URI_TOO_LONG, f"An address has at most {LONGEST:,} characters here.")
        path, _, query = self.path.partition("?")
        try:
            pairs = parse_qsl(query, keep_blank_values=True, errors="surrogateescape")
        except ValueError as error:
            raise Refused(HTTPStatus.BAD_REQUEST, "The part of the address behind ? cannot be read.") from error
        return self.server.answer(unquote(path, errors="surrogateescape"), pairs)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer what the base class refuses in our words; it knows no methods but GET and HEAD."""
        status = HTTPStatus(code)
        if status == HTTPStatus.NOT_IMPLEMENTED:
            status = HTTPStatus.METHOD_NOT_ALLOWED
        self._refuse(status, f"{status.phrase}: {status.description or 'this request cannot be answered'}.")

    def _refuse(self, status: HTTPStatus, words: str) -> None:
        self._send(status, framed("Not here", REFUSAL.format(words=escape(words))))

    def _send(self, status: HTTPStatus, page: Page) -> None:
        self.send_response(status)
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Security-Policy", page.policy)
        if status in (HTTPStatus.OK, HTTPStatus.NOT_MODIFIED):
            self.send_header("ETag", f'"{page.tag}"')
        if status == HTTPStatus.METHOD_NOT_ALLOWED:
            self.send_header("Allow", "GET, HEAD")
        if status != HTTPStatus.NOT_MODIFIED:
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(page.body)))
        self.end_headers()
        if self.command != "HEAD" and status != HTTPStatus.NOT_MODIFIED:
            for begin in range(0, len(page.body), PART):  # a slow reader gets time for each part
                self.wfile.write(page.body[begin : begin + PART])

    def version_string(self) -> str:
        return "unlabeled"

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing of single requests."""


def listen(port: int, answer: Answer) -> Server:
    """A server on a port, or on the next one that is free. Raises UserError."""
    if not 1 <= port <= 65535:
        raise UserError(f"--port {port}: expected a number from 1 to 65535. Leave it out for a free one from 8000 up.")
    last = min(port + TRIES, 65536) - 1
    servers = (_listen(candidate, answer) for candidate in range(port, last + 1))
    if (server := next(filter(None, servers), None)) is None:
        raise UserError(f"all ports from {port} to {last} are taken. Choose another --port.")
    return server


def _listen(port: int, answer: Answer) -> Server | None:
    """A server on a port; None = it is taken. Raises UserError."""
    try:
        return Server(port, answer)
    except PermissionError as error:
        raise UserError(f"--port {port} is not allowed here. Use one from 1024 up.") from error
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return None
        raise UserError(f"cannot listen on {ADDRESS}:{port}: {error.strerror}. Choose another --port.") from error
