"""A folder that is served in a thread, requests to it as raw as an attacker's, and runs to put into it."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from email.parser import BytesParser
from pathlib import Path
from typing import NamedTuple

from support import free_port

from unlabeled.watch.server import Answer, Server, listen

RECIPE = "name: NAME\ntrain:\n  epochs: 2.0\nmethod:\n  name: mae\n"


class Reply(NamedTuple):
    """An answer: status, headers and text."""

    status: int
    headers: dict[str, str]
    text: str


@contextmanager
def serving(answer: Answer) -> Iterator[Server]:
    with listen(free_port(), answer) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join(5)


def ask(server: Server, path: str, method: str = "GET", host: str | None = None, **headers: str) -> Reply:
    """Ask for a path exactly as it is written; `_` stands for `-` in names of headers."""
    host = f"127.0.0.1:{server.server_port}" if host is None else host
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", *(f"{k.replace('_', '-')}: {v}" for k, v in headers.items())]
    return send(server, "\r\n".join([*lines, "", ""]).encode())


def send(server: Server, request: bytes) -> Reply:
    """Send bytes and read to the end of the answer."""
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=5) as connection:
        connection.sendall(request)
        with connection.makefile("rb") as opened:
            return reply(opened.read())


def reply(answer: bytes) -> Reply:
    head, _, body = answer.partition(b"\r\n\r\n")
    first, _, rest = head.partition(b"\r\n")
    return Reply(int(first.split()[1]), dict(BytesParser().parsebytes(rest)), body.decode())


def make_run(folder: Path, steps: int = 3, name: str = "", loss: float = 1.0) -> Path:
    """A run that has logged some steps, named as its folder unless it has a name."""
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(RECIPE.replace("NAME", name or folder.name), encoding="utf-8")
    lines = [json.dumps({"step": step, "loss": loss, "epoch": step / 10}) + "\n" for step in range(1, steps + 1)]
    (folder / "metrics.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder
