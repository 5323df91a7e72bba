"""The notebook runs from top to bottom in a folder of its own, and draws what it says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support import ROOT

NOTEBOOK = ROOT / "examples/first_hour.ipynb"


def outputs_of(notebook: Any) -> list[dict[str, Any]]:
    return [output for cell in notebook["cells"] for output in cell.get("outputs", [])]


def test_it_is_kept_without_outputs() -> None:
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert outputs_of(notebook) == []
    assert all(cell.get("execution_count") is None for cell in notebook["cells"])


def test_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "ssl"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    found = outputs_of(notebook)
    assert not [output for output in found if output["output_type"] == "error"]
    drawn = [output["data"] for output in found if "data" in output]
    run = next(one["text/html"] for one in drawn if "simclr_shapes (pretrain)" in one.get("text/html", ""))
    assert "<polyline" in run and "<script" not in run
    assert any("image/png" in one for one in drawn)  # the neighbours
    printed = "".join(output.get("text", "") for output in found)
    accuracy = float(printed.partition(" % of 180 pictures")[0].split()[-1])
    assert accuracy > 40  # 33.3 by chance
