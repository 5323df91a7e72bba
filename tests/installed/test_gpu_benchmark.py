"""The benchmark for a GPU runs every part, on a CPU with small sizes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from support import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import gpu
import gpu_parts


def test_every_part_runs_on_a_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gpu.main(["--dry", "--out", str(tmp_path / "gpu.json")])
    found = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))
    assert list(found) == ["about", *gpu_parts.PARTS]
    failed = {name: figures["failed"] for name, figures in found.items() if "failed" in figures}
    assert not failed
    assert all(len(figures) > 1 for figures in found.values())  # more than the seconds that it took
    assert "| checkpoint" in capsys.readouterr().out


def test_a_part_that_fails_or_takes_too_long_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def endless(_place: gpu_parts.Place) -> gpu_parts.Figures:
        yield "begun", 1
        while True:
            pass

    def wrong(_place: gpu_parts.Place) -> gpu_parts.Figures:
        yield "begun", 2
        raise ValueError("no such kernel")

    parts = {"ceilings": gpu_parts.Part(0.2, endless), "correct": gpu_parts.Part(5, wrong)}
    monkeypatch.setattr(gpu, "part", parts.__getitem__)
    gpu.main(["--dry", "--out", str(tmp_path / "gpu.json"), "--parts", "ceilings", "correct"])
    found = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))
    assert found["ceilings"]["begun"] == 1 and "stopped after" in found["ceilings"]["failed"]
    assert found["correct"]["begun"] == 2 and found["correct"]["failed"] == "ValueError: no such kernel"
