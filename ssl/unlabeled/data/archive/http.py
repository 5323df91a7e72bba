"""Ranges of files over `http(s)://`, every answer held against what was asked: servers, proxies and caches that ignore
`Range`, cut bodies off, send a login page or another version of the file would otherwise look like bad images."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from unlabeled.errors import first_line

SECONDS = 120.0  # for one range, whole
SILENCE = 30.0  # seconds without a byte


class Identity(NamedTuple):
    """A remote file as it was seen first: size in bytes, and the tag or date that tells it from a later one."""

    size: int
    tag: str


class Changed(Exception):
    """The file is not the one that was seen first."""


class Unsuitable(Exception):
    """The server will never answer as is needed: single ranges cannot be read from it."""


def read(system: Any, url: str, start: int, size: int, file: Identity | None = None) -> tuple[bytes, Identity]:
    """The bytes [start, start + size) of a file, size at least 1, through a file system of fsspec's; and the file.

    `file` is as it was seen first; None = this is the first time, when the file may end before.

    Raises:
        Changed: it is another file by now.
        Unsuitable: the server does not answer ranges, or packs what it sends.
        Exception: anything else; the next try may succeed.
    """
    from fsspec.asyn import sync

    asked = {"Range": f"bytes={start}-{start + size - 1}", "Accept-Encoding": "identity"}
    if file and file.tag.startswith('"'):  # a weak tag (W/"...") matches nothing here: RFC 9110 section 13.1.1
        asked["If-Match"] = file.tag
    status, headers, data = sync(system.loop, _fetch, system, url, asked, size)
    if status == 412 or (file is not None and status == 416):
        raise Changed
    _refuse_other_kinds(status, headers)
    sent = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", headers.get("Content-Range", "").strip(), re.ASCII | re.I)
    if sent is not None and file is None and sent[3] != "*":
        size = min(size, int(sent[3]) - start)
    if sent is None or (int(sent[1]), int(sent[2])) != (start, start + size - 1):
        found = headers.get("Content-Range", "no Content-Range")
        raise ValueError(f"asked for bytes {start}-{start + size - 1}, was sent {found[:80]}")
    now = _identity(sent[3], headers, file)
    if len(data) != size:
        raise ValueError(f"asked for {size:,} bytes, was sent {len(data):,}")
    return data, now


def _identity(total: str, headers: Mapping[str, str], seen: Identity | None) -> Identity:
    """The file that an answer is of. Raises Changed when it is not the one that was seen first."""
    if seen is None:
        if total == "*":
            raise Unsuitable("the server does not say how large the file is")
        return Identity(int(total), headers.get("ETag") or headers.get("Last-Modified") or "")
    tag = headers.get("ETag" if '"' in seen.tag else "Last-Modified", "")
    same = not (tag and seen.tag) or tag.removeprefix("W/") == seen.tag.removeprefix("W/")
    if total not in ("*", f"{seen.size}") or not same:
        raise Changed
    return seen


async def _fetch(system: Any, url: str, headers: dict[str, str], most: int) -> tuple[int, Mapping[str, str], bytes]:
    """Status, headers, and of a range's body no more than `most` bytes, however many are sent."""
    import aiohttp

    session, options = await system.set_session(), dict(system.kwargs)
    headers = {**options.pop("headers", {}), **headers}
    limits = aiohttp.ClientTimeout(total=SECONDS, sock_connect=SILENCE, sock_read=SILENCE)
    try:
        async with session.get(_address(system, url), headers=headers, timeout=limits, **options) as answer:
            body = bytearray()
            while answer.status == 206 and len(body) < most and (part := await answer.content.read(most - len(body))):
                body += part
            return answer.status, answer.headers, bytes(body)
    except (aiohttp.TooManyRedirects, aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError) as error:
        raise Unsuitable(f"the server leads on to where nobody can follow ({type(error).__name__})") from error


def _address(system: Any, url: str) -> Any:
    try:
        address = system.encode_url(url)
        if address.host:
            return address
    except ValueError as error:
        raise Unsuitable(f"this is no address: {first_line(error)}") from error
    raise Unsuitable("this is no address: it names no server")


def _refuse_other_kinds(status: int, headers: Mapping[str, str]) -> None:
    """Raise unless an answer is a range of the plain file."""
    kind = headers.get("Content-Type", "").partition(";")[0].strip().lower()
    packed = headers.get("Content-Encoding", "identity").strip().lower()
    if status in (200, 206) and kind == "text/html":
        raise Unsuitable("the server sends a web page instead of the file: does the address need a login?")
    if status in (200, 206) and packed not in ("", "identity"):
        raise Unsuitable(f"the server packs the file with {packed[:20]}, so single pictures cannot be read from it")
    if status in range(400, 500) and status not in (408, 425, 429):
        raise Unsuitable(f"the server answers {status}")
    if status == 200:
        raise Unsuitable("the server ignores ranges and would send the whole file for every picture")
    if status != 206:
        raise OSError(f"the server answers {status}")
