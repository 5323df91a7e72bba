"""`unlabeled watch RUNS`: all runs of a folder in the browser, on this machine alone."""

from __future__ import annotations

import argparse
import os
import sys
import time
import webbrowser
from pathlib import Path

from unlabeled.errors import Stopped, UserError
from unlabeled.paths import user_path
from unlabeled.signals import EXIT_DONE, stop
from unlabeled.text import plain

SUMMARY = "all runs of a folder in the browser, live: listed, shown, compared"
WAIT = 0.5  # seconds between looks for a folder that is not there yet


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `watch`."""
    add = parser.add_argument
    add("runs", type=user_path, metavar="RUNS", help="a folder with runs in it, such as runs")
    add("--port", type=int, default=8000, help="on 127.0.0.1; the next free one if it is taken (default 8000)")
    add("--open", action="store_true", help="open the browser")


def run(options: argparse.Namespace) -> int:
    """Serve until a signal comes."""
    from unlabeled.watch.server import listen
    from unlabeled.watch.site import Site

    try:
        with stop.alone():
            _wait_for(options.runs)
        _check(options.runs)
        site = Site(options.runs)
        with stop.alone(), listen(options.port, site.answer) as server:
            _say(f"{site.summary()} at {server.url}   (Ctrl-C ends)")
            if server.server_port != options.port:
                _say(f"port {options.port} is taken: {server.server_port} instead")
            if "SSH_CONNECTION" in os.environ:
                port = server.server_port
                _say(f"on your own machine: ssh -L {port}:127.0.0.1:{port} THIS_MACHINE, then the same address")
            if options.open:
                _open(server.url)
            server.serve_forever()
    except Stopped:
        pass
    return EXIT_DONE


def _wait_for(folder: Path) -> None:
    """Return when a folder is there, which `pretrain` makes after its first lines. Raises UserError where it cannot be
    made."""
    if folder.exists():
        return
    if file := next((place for place in folder.parents if place.is_file()), None):
        raise UserError(f"{folder} does not exist, and {file} is a file; expected a folder with runs in it.")
    _say(f"{folder.absolute()} does not exist yet: waiting for it (Ctrl-C ends). `unlabeled pretrain` makes runs where")
    _say("it is started, after its first lines.")
    while not folder.exists():
        time.sleep(WAIT)


def _check(folder: Path) -> None:
    """Raise UserError where there is no folder to read."""
    if not folder.is_dir():
        raise UserError(f"{folder} is a file; expected a folder with runs in it, such as {folder.parent}.")
    if not os.access(folder, os.R_OK | os.X_OK):
        raise UserError(f"{folder} cannot be read. Make it readable, or name another folder.")


def _open(url: str) -> None:
    """Open the browser, where there is a display."""
    if sys.platform not in ("darwin", "win32") and not (os.environ.keys() & {"DISPLAY", "WAYLAND_DISPLAY"}):
        _say("--open: there is no display here")
    else:
        webbrowser.open(url)


def _say(text: str) -> None:
    print(plain(text), flush=True)
