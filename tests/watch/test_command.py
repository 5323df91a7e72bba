"""`unlabeled watch`: how it begins, what it says, how it ends."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import urllib.request
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from served import make_run, serving
from support import ROOT, free_port

from unlabeled.__main__ import main
from unlabeled.commands import watch
from unlabeled.watch import server as module
from unlabeled.watch.site import Site


@contextmanager
def watching(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "unlabeled", "watch", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "ssl"), "SSH_CONNECTION": "1 2 3 4"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as one:
        try:
            yield one
        finally:
            one.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_until_it_is_told_to_stop(tmp_path: Path, number: signal.Signals) -> None:
    make_run(tmp_path / "runs" / "one")
    port = free_port()
    with watching(str(tmp_path / "runs"), "--port", f"{port}") as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == f"1 run in {tmp_path}/runs at http://127.0.0.1:{port}/   (Ctrl-C ends)\n"
        assert f"ssh -L {port}:127.0.0.1:{port}" in process.stdout.readline()
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as answer:
            assert b"/run/one/" in answer.read()
        process.send_signal(number)
        assert process.wait(5) == 0 and process.stderr.read() == ""


def test_it_waits_for_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    with watching(str(tmp_path / "runs"), "--port", f"{free_port()}") as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline().startswith(f"{tmp_path}/runs does not exist yet: waiting for it (Ctrl-C ends)")
        assert "after its first lines" in process.stdout.readline()
        make_run(tmp_path / "made" / "one")
        (tmp_path / "made").rename(tmp_path / "runs")
        assert process.stdout.readline().startswith(f"1 run in {tmp_path}/runs at ")


def test_waiting_ends_at_once(tmp_path: Path) -> None:
    with watching(str(tmp_path / "nowhere")) as process:
        assert process.stdout is not None and process.stderr is not None
        assert "nowhere does not exist yet" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(5) == 0 and process.stderr.read() == ""


def test_a_port_that_is_taken_is_said(tmp_path: Path) -> None:
    with serving(Site(tmp_path).answer) as server:
        with watching(str(tmp_path), "--port", f"{server.server_port}", "--open") as process:
            assert process.stdout is not None
            said = [process.stdout.readline() for _ in range(4)]
    assert said[0].startswith(f"no runs in {tmp_path} yet") and server.url not in said[0]
    assert said[1].startswith(f"port {server.server_port} is taken: ")


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("file", [], "file is a file; expected a folder with runs in it"),
        ("file/below", [], "file/below does not exist, and "),
        ("", ["--port", "0"], "--port 0: expected a number from 1 to 65535"),
        ("", ["--port", "99999"], "--port 99999: expected a number from 1 to 65535"),
    ],
)
def test_what_cannot_be_served(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, options: list[str], expected: str
) -> None:
    (tmp_path / "file").touch()
    assert main(["watch", str(tmp_path / name), *options]) == 2
    said = capsys.readouterr().err
    assert expected in said and "Traceback" not in said


def test_a_port_that_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["watch", "runs", "--port", "http"])
    assert "invalid int value: 'http'" in capsys.readouterr().err


def test_a_folder_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(ValueError, match="cannot be read"):
        watch.run(argparse.Namespace(runs=tmp_path))


def test_the_browser_is_opened_where_there_is_a_display(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", opened.append)
    monkeypatch.setattr(sys, "platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    watch._open("http://a")
    assert not opened and capsys.readouterr().out == "--open: there is no display here\n"
    monkeypatch.setenv("DISPLAY", ":0")
    watch._open("http://b")
    assert opened == ["http://b"] and not capsys.readouterr().out


def test_no_option_binds_to_the_network() -> None:
    parser = argparse.ArgumentParser()
    watch.add_arguments(parser)
    assert {action.dest for action in parser._actions} == {"help", "runs", "port", "open"}
    assert module.ADDRESS == "127.0.0.1"


def test_nothing_heavy_is_imported() -> None:
    heavy = ("torch", "timm", "torchvision", "matplotlib")
    code = f"import sys, unlabeled.watch.site, unlabeled.watch.server; print(*[n for n in {heavy} if n in sys.modules])"
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "ssl")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.split() == []
