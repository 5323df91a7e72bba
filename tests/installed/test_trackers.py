"""Whole runs with Weights & Biases and with Trackio, killed and gone on: what they know is what metrics.jsonl says.

Trackio is installed into an environment of its own: it wants an older Pillow.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]

RUN = """
import sys
from support import TINY_PRETRAIN, launch
folder, tracker = sys.argv[1:]
with open(f"{folder}/tiny.yaml", "w") as file:
    file.write(TINY_PRETRAIN)
arguments = [f"{folder}/tiny.yaml", f"run.output={folder}/run", f"run.trackers=[{tracker}]", "run.pictures_every=6"]
if __name__ == "__main__":
    assert launch("pretrain", arguments, kill={"step": 8}) == [-9]
    assert launch("pretrain", arguments) == [0]
"""

READ = """
import json, sys
from trackio.sqlite_storage import SQLiteStorage as storage
[run] = storage.get_runs("unlabeled")
print(json.dumps(storage.get_logs("unlabeled", run), default=str))
"""


def run(python: str, code: str, *arguments: str, **environment: str) -> str:
    """What a script in a file prints."""
    folder = Path(arguments[0])
    (folder / "script.py").write_text(code, encoding="utf-8")
    known = {"PYTHONPATH": f"{ROOT / 'ssl'}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1", **environment}
    command = [python, str(folder / "script.py"), *arguments]
    done = subprocess.run(command, env={**os.environ, **known}, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def metrics(folder: Path) -> list[dict[str, Any]]:
    text = (folder / "run" / "metrics.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture(scope="module")
def python_with_trackio(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An environment with Trackio before everything that is installed here."""
    folder = tmp_path_factory.mktemp("trackio")
    venv.create(folder, with_pip=False)
    [own] = folder.glob("lib/python*/site-packages")
    here = [path for path in sys.path if path.endswith("site-packages")]
    (own / "others.pth").write_text("\n".join(here), encoding="utf-8")
    python = str(folder / "bin" / "python")
    command = [python, "-m", "pip", "install", "--quiet", "--target", str(own), "trackio"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if done.returncode:
        pytest.skip(f"pip cannot install trackio: {done.stderr.splitlines()[-1]}")
    return python


def test_trackio_knows_every_step_of_a_killed_run(tmp_path: Path, python_with_trackio: str) -> None:
    store = str(tmp_path / "store")
    run(python_with_trackio, RUN, str(tmp_path), "trackio", TRACKIO_DIR=store)
    logged = json.loads(run(python_with_trackio, READ, str(tmp_path), TRACKIO_DIR=store).splitlines()[-1])
    sent = [(row["step"], row["loss"]) for row in logged if "loss" in row]
    expected = [(line["step"], line["loss"]) for line in metrics(tmp_path)]
    # of what was logged just before SIGKILL, Trackio may have written a part; the second run begins after step 6
    before = [step for step, _ in sorted(set(sent)) if step <= 6]
    assert before == list(range(1, len(before) + 1)) and set(sent) <= {*expected}
    assert {*expected[6:]} <= set(sent)
    shown = {row["step"]: row["pictures"] for row in logged if "pictures" in row}
    assert {12, 15} <= {*shown} <= {6, 12, 15}
    for step, picture in shown.items():
        [file] = Path(store).rglob(Path(picture["file_path"]).name)
        assert picture["_type"] == "trackio.image" and file.stat().st_size > 0, step


def test_wandb_knows_every_step_of_a_killed_run(tmp_path: Path) -> None:
    sys.path.insert(0, str(ROOT / "tests" / "train"))
    from test_wandb import rows

    run(sys.executable, RUN, str(tmp_path), "wandb", WANDB_MODE="offline")
    files = sorted((tmp_path / "run" / "logs").glob("wandb/offline-run-*/*.wandb"))
    assert len(files) == 2 and len({file.name for file in files}) == 1
    first, second = ([row for row in rows(file) if "loss" in row] for file in files)
    expected = metrics(tmp_path)
    assert second == expected[6:]
    # of what was logged just before SIGKILL, wandb may have written a part
    assert [(row["step"], row["loss"]) for row in first] == [(e["step"], e["loss"]) for e in expected[: len(first)]]
    assert len(list(files[1].parent.glob("files/media/images/*.png"))) == 2
