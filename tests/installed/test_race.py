"""The race against other packages, with a program in a peer's place that writes what the peer writes."""

from __future__ import annotations

import io
import json
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import race
from racers import RACERS, racer

PEER = """#!{python}
import sys, timm, torch
from pathlib import Path
told = dict(argument.partition("=")[::2] for argument in sys.argv[2:])
assert len([*Path(told["data"]).rglob("*.png")]) in (24, 8) and float(told["epochs"]) % 1 == 0
folder = Path(told["out"]) / "exported_models"
folder.mkdir(parents=True)
torch.save(timm.create_model("test_resnet", zero_init_last=False).state_dict(), folder / "exported_last.pt")
"""


def pictures(file: Path) -> Path:
    rng = np.random.default_rng(0)
    with tarfile.open(file, "w") as tar:
        for split, count in (("train", 16), ("test", 4)):
            for number in range(3 * count):
                stream = io.BytesIO()
                Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(stream, "png")
                member = tarfile.TarInfo(f"{split}/{'abc'[number // count]}/{number}.png")
                member.size = stream.tell()
                stream.seek(0)
                tar.addfile(member, stream)
    return file


def test_a_race_is_run_once_and_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    peer = tmp_path / "venv" / "lightly-train"
    peer.parent.mkdir()
    peer.write_text(PEER.format(python=sys.executable), encoding="utf-8")
    peer.chmod(0o755)
    out = tmp_path / "race.json"
    told = [
        str(pictures(tmp_path / "set.tar")),
        "--pictures",
        "24",
        "--minutes",
        "0.2",
        "--seeds",
        "0",
        "--few",
        "0.25",
    ]
    told += ["--methods", "simclr", "mocov3"]  # the second is no peer's: nothing to race
    told += ["--network", "test_resnet", "--batch", "8", "--peers", f"lightly_train={peer.parent / 'python'}"]
    told += ["--runs", str(tmp_path / "runs"), "--out", str(out)]
    race.main(told)
    found = json.loads(out.read_text(encoding="utf-8"))
    names = ("lightly_train", "unlabeled")
    assert found.keys() == {"machine", *(f"simclr/{name}/{of}" for name in names for of in ("speed", "0"))}
    sides = [found[f"simclr/{name}/0"] for name in names]
    assert all({"epochs", "cpu_minutes", "untrained", *race.scores_of(0.25)} <= side.keys() for side in sides)
    lines = [line.split("|")[1:3] for line in capsys.readouterr().out.splitlines() if line.startswith("| simclr")]
    assert [name.strip() for _, name in lines] == [*names]

    peer.unlink()  # nothing is run again
    race.main(told)
    assert json.loads(out.read_text(encoding="utf-8")) == found


def test_every_racer_has_its_methods() -> None:
    assert all("simclr" in racer(name).methods for name in RACERS)
