"""How long a step waits for a checkpoint: copied and written meanwhile, against serialised and written at once.

    python benchmarks/saving.py [--json] [--rounds N] [--threads N]

A ViT-L with AdamW's moments (303 M parameters, 3.6 GB) is saved by both in turn, to the folder
of temporary files. `at once` makes the bytes of every file, hashes, writes and flushes them, as `write_folder` does for
an export. The first save makes the buffers in host memory, and is shown by itself.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import safetensors.torch
import timm
import torch
from common import finish, forget_peak_memory, machine, median, options, peak_memory_mb, seconds, table

from unlabeled.files import remove
from unlabeled.manifest import Tensors, write_folder
from unlabeled.train.checkpoint import Checkpoints
from unlabeled.train.saving.background import Background

STATE = {"step": 1}


def tensors_of(name: str = "vit_large_patch16_224") -> dict[str, Tensors]:
    """Weights and moments of a model, with values that a disk cannot compress."""
    model = timm.create_model(name, num_classes=0).state_dict()
    moments = {f"{name}/{key}": torch.randn_like(t) for name, t in model.items() for key in ("exp_avg", "exp_avg_sq")}
    return {"model": model, "optimizer": moments}


def at_once(folder: Path, tensors: dict[str, Tensors]) -> None:
    """Save as an export is written."""
    remove(folder)
    folder.mkdir()
    files = {f"{stem}.safetensors": safetensors.torch.save(part) for stem, part in tensors.items()}
    write_folder(folder, {**files, "state.json": json.dumps(STATE).encode()})


def measure(chosen: argparse.Namespace) -> dict[str, float]:
    """Seconds that a step waits, and until a checkpoint is complete; most memory, MB."""
    torch.set_num_threads(chosen.threads)
    tensors = tensors_of()
    result = {"bytes": float(sum(t.nbytes for part in tensors.values() for t in part.values()))}
    waits: dict[str, list[float]] = {"at once": [], "meanwhile": [], "complete": []}
    peaks: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        saving = Background(Checkpoints(Path(folder) / "checkpoints", 1, None, print))
        result["first"] = seconds(lambda: saving.begin(0, tensors, STATE))
        saving.wait()
        for step in range(1, chosen.rounds + 1):
            forget_peak_memory()
            waits["at once"].append(seconds(lambda: at_once(Path(folder) / "at-once", tensors)))
            peaks["at once"] = peak_memory_mb()
            forget_peak_memory()
            waits["meanwhile"].append(seconds(lambda step=step: saving.begin(step, tensors, STATE)))  # type: ignore[misc]
            waits["complete"].append(waits["meanwhile"][-1] + seconds(saving.wait))
            peaks["meanwhile"] = peak_memory_mb()
    medians = {name: median(values) for name, values in waits.items()}
    return {**result, **medians, **{f"{name}, MB": peak for name, peak in peaks.items()}}


def main() -> None:
    """Print the table."""
    chosen = options((__doc__ or "").partition("\n")[0], 3)
    found = measure(chosen)
    print(f"{machine()}; {found['bytes'] / 1e9:.2f} GB, medians of {chosen.rounds} turns")
    rows = [
        ["at once", f"{found['at once']:.2f}", f"{found['at once']:.2f}", f"{found['at once, MB']:,.0f}"],
        ["meanwhile", f"{found['meanwhile']:.2f}", f"{found['complete']:.2f}", f"{found['meanwhile, MB']:,.0f}"],
        ["meanwhile, the first", f"{found['first']:.2f}", "", ""],
    ]
    print(table(["checkpoint", "a step waits, s", "complete after, s", "most memory, MB"], rows))
    finish(chosen, found)


if __name__ == "__main__":
    main()
