"""How many pictures a second the workers make, of JPEGs and of prepared pictures, and what the GPU could do of it."""

from __future__ import annotations

import io
import os
from contextlib import closing, redirect_stderr, redirect_stdout
from pathlib import Path
from time import perf_counter

import torch
from torchvision.io import decode_jpeg

from gpu_parts.pictures import jpegs, tar_of
from gpu_parts.place import Figures, Part, Place
from unlabeled.__main__ import main as command
from unlabeled.data.batch.loader import Feed, ViewDataset
from unlabeled.data.batch.sampler import EpochSampler
from unlabeled.data.opened import Opened
from unlabeled.data.sources.files import Config as Files
from unlabeled.data.view.views import View
from unlabeled.pretrain.methods import dino, mae, mocov3

VIEWS: dict[str, tuple[View, ...]] = {
    "mae": mae.Config().views,
    "mocov3": mocov3.Config().views,
    "dino": (dino.GLOBAL_1, dino.GLOBAL_2, dino.LOCAL.model_copy(update={"count": 10})),
}
BATCH, PATCH, FOREVER = 64, 16, 1 << 40


def measure(place: Place) -> Figures:
    """Pictures/s by number of workers; a core is left for the program."""
    files = jpegs(place.size(4000, 16))
    tar = tar_of(files, place.folder / "jpegs.tar")
    yield "jpeg_kb", sum(map(len, files)) / len(files) / 1e3
    caches = {"jpeg": None, "prepared": prepared(tar, place)}
    most = max(1, (os.cpu_count() or 2) - 1)
    for workers in sorted({1, 8, most} if place.cuda else {0, 1}):
        for kind, cache in caches.items():
            for name, views in VIEWS.items():
                yield f"{kind}_{name}_{workers}_workers", rate(tar, cache, views, workers, place)
    if place.cuda:
        yield "decode_on_gpu", decoded(files[:512], place)


def prepared(tar: Path, place: Place, name: str = "prepared") -> Path:
    """The same pictures as `unlabeled prepare` keeps them: short side 256, not compressed."""
    out, said = place.folder / name, io.StringIO()
    data = f"data={{name: files, path: {tar}, train: '.', val: null, cache: {out}}}"
    with redirect_stdout(said), redirect_stderr(said):
        code = command(["prepare", "mae_vits16_1gpu", data])
    assert code == 0, said.getvalue()[-2000:]
    return out


def rate(tar: Path, cache: Path | None, views: tuple[View, ...], workers: int, place: Place) -> float:
    """Pictures/s of a loader, once all of its workers work."""
    kept = None if cache is None else str(cache)
    source = Opened(Files(name="files", path=str(tar), train=".", val=None, cache=kept)).train
    sampler = EpochSampler(len(source), min(BATCH, len(source)), FOREVER, seed=0)
    dataset, seconds = ViewDataset(source, views, PATCH, 0), 1.5 if place.cuda else 0.1
    with closing(Feed(dataset, sampler, workers=workers, timeout=60, device=place.device)) as feed:
        for _ in range(max(1, 2 * workers)):
            feed.next()
        started, done = perf_counter(), 0
        while (spent := perf_counter() - started) < seconds:
            batches, error = feed.next()
            assert error is None, error
            done += sum(len(batch.labels) for batch in batches)
    return done / spent


def decoded(files: list[bytes], place: Place) -> float:
    """Pictures/s that the GPU decodes by 64."""
    data = [torch.frombuffer(bytearray(file), dtype=torch.uint8) for file in files]
    groups = [data[i : i + 64] for i in range(0, len(data), 64)]
    spent = place.milliseconds(lambda: [decode_jpeg(group, device="cuda") for group in groups], repeats=3)
    return 1e3 * len(files) / spent


PART = Part(90, measure)
