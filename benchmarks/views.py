"""From JPEG files to finished views, normalised float32 batches, on one core: ours, torchvision's on Pillow, lightly's.

    python benchmarks/views.py pictures.tar [--pictures 96] [--rounds N] [--json]

The same views for all: MAE's single crop, MoCo v3's two, DINO's two large and eight small ones. Each contender takes
the same files from memory, in turn; lightly's views are put together from its own transforms at the same settings. The
decode limit is what torchvision's decoder alone reaches in the same rounds. `mae_cached` is MAE's crop from what
`unlabeled prepare` makes of the same files, against the others from the files themselves.
"""

from __future__ import annotations

import io
import random
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import torchvision.transforms as T
from common import finish, machine, on_one_core, seconds, table
from PIL import Image, ImageFilter, ImageOps
from torchvision.io import ImageReadMode, decode_jpeg

from unlabeled.data.archive.prepare import encode, shrink
from unlabeled.data.archive.prepared import Settings
from unlabeled.data.batch.loader import Normalize, to_device
from unlabeled.data.batch.samples import Sample, collate
from unlabeled.data.decoding.decode import decode
from unlabeled.data.opened import Opened
from unlabeled.data.source import MAX_PIXELS
from unlabeled.data.sources.files import Config as Files
from unlabeled.data.view.views import View
from unlabeled.pretrain.methods import dino, mae, mocov3

BATCH, PATCH, LOCALS = 8, 16, 8
CPU = torch.device("cpu")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LOCAL = dino.LOCAL.model_copy(update={"count": LOCALS})
VIEWS: dict[str, tuple[View, ...]] = {
    "mae": mae.Config().views,
    "mocov3": mocov3.Config().views,
    "dino": (dino.GLOBAL_1, dino.GLOBAL_2, LOCAL),
}

CACHED = "_cached"
NAMES = [*VIEWS, f"mae{CACHED}"]
RIVALS = {"pil": "Pillow", "lightly": "lightly"}

Encoded = Sequence[bytes]
Work = Callable[[Encoded], Any]


# ---------------------------------------------------------------- contenders


def ours(views: Sequence[View]) -> Work:
    """As the loader and the engine do it."""
    normalize, rng = Normalize(MEAN, STD, CPU), np.random.default_rng(0)

    def work(files: Encoded) -> Any:
        pictures = [decode(data, MAX_PIXELS) for data in files]
        samples = [Sample([view.sample(picture, rng, PATCH) for view in views], 0, 0, []) for picture in pictures]
        return to_device(collate(samples), CPU, normalize)

    return work


class Blur:
    """DINO's and MoCo v3's blur: Pillow's, of a random radius."""

    def __init__(self, probability: float) -> None:
        self.probability = probability

    def __call__(self, picture: Image.Image) -> Image.Image:
        if random.random() >= self.probability:
            return picture
        return picture.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2.0)))


class Solarize:
    """Pillow's, at 128."""

    def __init__(self, probability: float) -> None:
        self.probability = probability

    def __call__(self, picture: Image.Image) -> Image.Image:
        return ImageOps.solarize(picture) if random.random() < self.probability else picture


def pillow(view: View) -> Any:
    """A view as the official repositories write it."""
    modes = {"bicubic": T.InterpolationMode.BICUBIC, "bilinear": T.InterpolationMode.BILINEAR}
    crop = T.RandomResizedCrop(view.shape, view.scale, view.ratio, modes[view.interpolation])
    steps: list[Any] = [crop, T.RandomHorizontalFlip(view.flip)]
    if view.jitter:
        steps += [T.RandomApply([T.ColorJitter(*view.jitter)], p=view.jitter_p), T.RandomGrayscale(view.grayscale)]
    steps += [Blur(view.blur)] if view.blur else []
    steps += [Solarize(view.solarize)] if view.solarize else []
    return T.Compose([*steps, T.ToTensor(), T.Normalize(MEAN, STD)])


def lightlys(name: str) -> Any:
    """lightly's views at the same settings."""
    from lightly.transforms import BYOLTransform, BYOLView1Transform, BYOLView2Transform, DINOTransform, MAETransform

    if name == "mae":
        return MAETransform(224, min_scale=VIEWS["mae"][0].scale[0])
    if name == "mocov3":
        low = VIEWS["mocov3"][0].scale[0]
        return BYOLTransform(BYOLView1Transform(min_scale=low), BYOLView2Transform(min_scale=low))
    colours = {"cj_strength": 1.0, "cj_bright": 0.4, "cj_contrast": 0.4, "cj_sat": 0.2, "cj_hue": 0.1}
    return DINOTransform(
        global_crop_scale=dino.GLOBAL_1.scale, local_crop_scale=LOCAL.scale, n_local_views=LOCALS, **colours
    )


def by_pillow(crops: Callable[[Image.Image], list[torch.Tensor]]) -> Work:
    """Decode with Pillow, make crops, stack each of them over the batch."""

    def work(files: Encoded) -> Any:
        made = [crops(Image.open(io.BytesIO(data)).convert("RGB")) for data in files]
        return [torch.stack(column) for column in zip(*made, strict=True)]

    return work


def cached(views: Sequence[View], files: Encoded, folder: Path) -> Work:
    """Ours from small copies of the files on disk, as `prepare` makes them."""
    work, settings = ours(views), Settings()
    places = {data: folder / f"{i}.npy" for i, data in enumerate(files)}
    for data, place in places.items():
        place.write_bytes(encode(shrink(decode(data, MAX_PIXELS), settings.short_side), settings))
    return lambda batch: work([places[data].read_bytes() for data in batch])


def contenders(name: str, files: Encoded, folder: Path, lightly: bool = True) -> dict[str, Work]:
    """Who takes part in one set of views."""
    kind = name.removesuffix(CACHED)
    each = [pillow(view) for view in VIEWS[kind] for _ in range(view.count)]
    found = {
        "ours": ours(VIEWS[kind]) if name == kind else cached(VIEWS[kind], files, folder),
        "Pillow": by_pillow(lambda picture: [make(picture) for make in each]),
    }
    return {**found, "lightly": by_pillow(lightlys(kind))} if lightly else found


def decoded(files: Encoded) -> Any:
    """What no loader that decodes whole pictures can beat."""
    return [decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB) for data in files]


# ---------------------------------------------------------------- measuring


def read(path: str, count: int) -> list[bytes]:
    """The bytes of the first pictures of a tar or a folder."""
    source = Opened(Files(path=path)).original("train")
    return [source.read(i) for i in range(min(count, len(source)))]


def rates(works: dict[str, Work], files: Sequence[bytes], rounds: int) -> dict[str, float]:
    """Pictures per second of each, medians over rounds in which they take turns batch by batch."""
    batches = [files[i : i + BATCH] for i in range(0, len(files), BATCH)]
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        spent = dict.fromkeys(works, 0.0)
        for batch in batches:
            for name, work in works.items():
                spent[name] += seconds(lambda work=work, batch=batch: work(batch))  # type: ignore[misc]
        for name, value in spent.items():
            times[name].append(value)
    return {name: len(files) / median(values) for name, values in times.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print a table, and one object with `--json`."""
    chosen = on_one_core("Views per second on one core: ours, Pillow's, lightly's.", 96, arguments)
    random.seed(0)
    torch.manual_seed(0)
    files = read(chosen.data, chosen.pictures)
    with tempfile.TemporaryDirectory() as folder:
        found = {
            name: rates({**contenders(name, files, Path(folder)), "decoding": decoded}, files, chosen.rounds)
            for name in NAMES
        }
    print(machine())
    heads = ("images/s", "ours", "Pillow", "lightly", "decoding", "x Pillow", "x lightly", "of decoding")
    print(table(heads, [row(name, rate) for name, rate in found.items()]))
    finish(chosen, {**{name: summary(rate) for name, rate in found.items()}, "decode_limit": limit(found)})


def summary(rate: dict[str, float]) -> dict[str, float]:
    """One set of views as JSON."""
    ratios = {f"vs_{other}": round(rate["ours"] / rate[who], 2) for other, who in RIVALS.items()}
    return {"images_per_s": round(rate["ours"], 1), **ratios}


def row(name: str, rate: dict[str, float]) -> tuple[str, ...]:
    """One set of views in the table."""
    share = [rate["ours"] / rate[who] for who in ("Pillow", "lightly", "decoding")]
    cells = [f"{rate[who]:.0f}" for who in ("ours", "Pillow", "lightly", "decoding")]
    return (name, *cells, *(f"{value:.2f}" for value in share))


def limit(found: dict[str, dict[str, float]]) -> float:
    """Pictures that are decoded per second, the median over the sets of views."""
    return round(median(rate["decoding"] for rate in found.values()), 1)


if __name__ == "__main__":
    main()
