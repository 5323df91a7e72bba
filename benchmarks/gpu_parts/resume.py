"""Does a run on a GPU go on exactly: 12 steps at once against 6 and 6, with deterministic kernels and without."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import torch
from safetensors.torch import load_file

from gpu_parts.cases import file_of, tiny
from gpu_parts.place import Figures, Part, Place
from unlabeled.launch.program import main as run_program

STEPS = 12
METHODS = {"mae": "mae-S-256", "dino": "dino-S-256", "ibot": "ibot-S-256"}
DRY = ("mae",)
SMALL = ("method.encoder.depth=2", "method.encoder.width=96", "method.encoder.heads=3")
HEAD = ("method.head.prototypes=512", "method.head.hidden=128")
SHORT = ("method.teacher_temperature_epochs=null", "method.frozen_epochs=null")  # their shares of a short run


def measure(place: Place) -> Figures:
    """The first tensor that differs and by how much, or that none does."""
    labels = {"deterministic": True, "usual": False} if place.cuda else {"usual": False}
    for label, deterministic in labels.items():
        for name in METHODS if place.cuda else DRY:
            case = METHODS[name]
            small = tiny(case) if place.dry else (*SMALL, *(HEAD if name != "mae" else ()))
            short = SHORT if name != "mae" else ()
            fields = (*small, *short, "train.batch_size=8", "train.precision=bf16")
            with kernels(deterministic):
                yield f"{name}_{label}", compared(place, str(file_of(case)), f"{name}_{label}", fields)


@contextmanager
def kernels(deterministic: bool) -> Iterator[None]:
    """Only kernels that give the same bits again, within."""
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def compared(place: Place, recipe: str, name: str, fields: tuple[str, ...]) -> str:
    """Whether a run that was cut in the middle ends in the same weights."""
    whole, halves = place.folder / f"{name}_whole", place.folder / f"{name}_halves"
    pretrain(place, recipe, whole, fields)
    shutil.copytree(whole, halves)
    shutil.rmtree(newest(halves))
    shutil.rmtree(halves / "export", ignore_errors=True)
    pretrain(place, recipe, halves, fields)
    one, other = (weights(newest(folder)) for folder in (whole, halves))
    for key, tensor in one.items():
        if not torch.equal(tensor, other[key]):
            return f"{key} differs by {(tensor.double() - other[key].double()).abs().max().item():.1e}"
    return f"equal, {len(one)} tensors"


def pretrain(place: Place, recipe: str, output: Path, fields: tuple[str, ...]) -> None:
    """Run to the end, or go on."""
    steps = 8 * STEPS  # pictures
    data = f"data={{name: shapes, train_size: {steps}, val_size: 1, size: 256}}"
    length = ("train.epochs=1", "optim.warmup_epochs=0", "run.checkpoint_every=6", "run.keep_last=10", "evaluate=null")
    quiet = ("run.workers=0", "run.page=false", "run.compile=false", f"run.device={place.device.type}")
    said = io.StringIO()
    with redirect_stdout(said), redirect_stderr(said):
        code = run_program("pretrain", [recipe, data, *length, *quiet, *fields, f"run.output={output}", "--force"])
    assert code == 0, said.getvalue()[-2000:]


def newest(folder: Path) -> Path:
    """The newest checkpoint of a run."""
    return max(path for path in (folder / "checkpoints").iterdir() if path.is_dir())


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint."""
    found: dict[str, torch.Tensor] = {}
    for file in sorted(checkpoint.glob("*.safetensors")):
        found |= {f"{file.stem}/{key}": tensor for key, tensor in load_file(file).items()}
    return found


PART = Part(60, measure)
