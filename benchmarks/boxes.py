"""A detector of horses, cars, pedestrians and bicyclists: from scratch, from a pretrained backbone, with Soft Teacher.

    python benchmarks/boxes.py EXPORT weizmann_horses_seg.tar camvid_seg.tar [--seeds 0 1] [--epochs 20]
        [--runs runs/boxes] [--processes N] [--json]

Boxes are those of the connected parts of masks, so that objects that touch are one. Test are the 50 and 101 pictures
that the sets keep apart. Each run is `recipes/finetune/detect_cpu.yaml` on one thread that also loads the pictures;
with a tenth of the labels as many steps are taken as with all. The set and the runs land in the folder of `--runs`;
what is there is not made again.
"""

from __future__ import annotations

import argparse
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from common import finish, machine, once, over, table
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import find_objects, label

from unlabeled.processes import cores

NAMES = ("horse", "car", "pedestrian", "bicyclist")
HORSES, STREETS = {1: 0}, {8: 1, 9: 2, 10: 3}  # classes by the values of the masks
LEAST = 0.001  # share of a picture's pixels that an object has at least
TENTH = ("task.fraction=0.1",)
SOFT = ("task.ema=null", "task.unlabelled={ratio: 3, begin: 0.4}")
WAYS: dict[str, tuple[str, ...]] = {
    "from scratch, all boxes": ("SCRATCH",),
    "pretrained, all boxes": (),
    "from scratch, a tenth": ("SCRATCH", *TENTH),
    "pretrained, a tenth": TENTH,
    "pretrained, a tenth, Soft Teacher": (*TENTH, *SOFT),
}
SCORES = ("map", "map50", "map75")


def main() -> None:
    """Make the set, run what has not been run, then the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("export", help="an encoder")
    parser.add_argument("horses", type=Path, help="weizmann_horses_seg.tar")
    parser.add_argument("streets", type=Path, help="camvid_seg.tar")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="which (default all)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="of labels and runs (default 0 1)")
    parser.add_argument("--epochs", type=float, default=20, help="over all pictures (default 20)")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="other settings of all")
    parser.add_argument("--runs", type=Path, default=Path("runs/boxes"), help="where the set and the runs land")
    parser.add_argument("--processes", type=int, default=cores(), help="runs at a time (default: one per core)")
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    chosen = parser.parse_args()

    counts = made(chosen.runs / "set", chosen.horses, chosen.streets)
    print(", ".join(f"{split}: {pictures} pictures, {boxes} boxes" for split, (pictures, boxes) in counts.items()))
    jobs = [(way, seed) for seed in chosen.seeds for way in chosen.ways]
    with ThreadPoolExecutor(chosen.processes) as pool:
        results = dict(zip(jobs, pool.map(lambda job: run(chosen, counts["train"][0], *job), jobs), strict=True))
    rows = [line(way, [results[way, seed] for seed in chosen.seeds]) for way in chosen.ways]
    print(table(("", "AP", "at 0.5", "at 0.75", "interval of the first", "steps", "CPU minutes"), rows))
    print(machine())
    finish(chosen, {f"{way} {seed}": result for (way, seed), result in results.items()})


def made(folder: Path, horses: Path, streets: Path) -> dict[str, tuple[int, int]]:
    """Write the set as a YOLO folder, unless it is there; returns the number of pictures and boxes of both splits."""
    for split, other in (("train", "train"), ("val", "test")):
        if not (folder / "labels" / split).exists():
            write(folder, split, horses, other, HORSES)
            write(folder, split, streets, split, STREETS)
    (folder / "data.yaml").write_text(f"names: [{', '.join(NAMES)}]\n", encoding="utf-8")
    files = {split: list((folder / "labels" / split).glob("*.txt")) for split in ("train", "val")}
    return {
        split: (len(some), sum(len(file.read_text(encoding="utf-8").splitlines()) for file in some))
        for split, some in files.items()
    }


def write(folder: Path, split: str, tar: Path, part: str, classes: dict[int, int]) -> None:
    """Write the pictures of a part of a tar, and the boxes of their masks."""
    for kind in ("images", "labels"):
        (folder / kind / split).mkdir(parents=True, exist_ok=True)
    with tarfile.open(tar) as archive:
        for member in archive:
            path = Path(member.name)
            if not member.isfile() or path.parts[0] != part:
                continue
            masks = Path(f"{part}_masks", *path.parts[1:]).with_suffix(".png")
            mask = np.array(Image.open(BytesIO(content(archive, str(masks)))))
            name = f"{tar.stem}_{path.stem}"
            (folder / "images" / split / f"{name}{path.suffix}").write_bytes(content(archive, member.name))
            lines = [" ".join(map(str, box)) for box in boxes(mask, classes)]
            (folder / "labels" / split / f"{name}.txt").write_text("\n".join(lines), encoding="utf-8")


def content(archive: tarfile.TarFile, name: str) -> bytes:
    """A file of a tar."""
    file = archive.extractfile(name)
    assert file is not None
    return file.read()


def boxes(mask: NDArray[Any], classes: dict[int, int]) -> Iterator[tuple[float, ...]]:
    """Class, centre and sides, as shares of the picture, of each connected part of a mask that is large enough."""
    height, width = mask.shape[:2]
    for value, number in classes.items():
        parts, _ = label(mask == value)
        for n, (rows, columns) in enumerate(find_objects(parts), 1):
            if (parts[rows, columns] == n).sum() < LEAST * mask.size:
                continue
            x, y = (columns.start + columns.stop) / 2 / width, (rows.start + rows.stop) / 2 / height
            yield number, x, y, (columns.stop - columns.start) / width, (rows.stop - rows.start) / height


def run(chosen: argparse.Namespace, pictures: int, way: str, seed: int) -> dict[str, Any]:
    """The result of a way."""
    settings = [one for one in WAYS[way] if one != "SCRATCH"]
    encoder = f"scratch:{chosen.export}" if "SCRATCH" in WAYS[way] else chosen.export
    few, soft = "task.fraction=0.1" in settings, way.endswith("Soft Teacher")
    labelled = max(1, round(pictures / 10)) if few else pictures
    # as many pictures with boxes a step, and as many steps
    batch, epochs = (
        (32, chosen.epochs * 4 * pictures / (pictures + labelled)) if soft else (8, chosen.epochs * pictures / labelled)
    )
    output = chosen.runs / f"{way.replace(',', '').replace(' ', '_')}_{seed}"
    own = (f"encoder={encoder}", f"data.path={chosen.runs / 'set'}", f"seed={seed}", f"task.fraction_seed={seed}")
    length = (f"train.epochs={epochs:.4f}", f"optim.warmup_epochs={epochs / 20:.4f}", f"train.batch_size={batch}")
    return once(output, "finetune", "detect_cpu", *own, *length, *settings, *chosen.set)


def line(way: str, results: list[dict[str, Any]]) -> list[str]:
    """A row of the table."""
    scores = [over([one[score] for one in results]) for score in SCORES]
    low, high = results[0]["interval"]
    cost = [f"{results[0]['cost']['steps']}", over([one["cost"]["cpu_s"] / 60 for one in results], 0)]
    return [way, *scores, f"{low:.1f} to {high:.1f}", *cost]


if __name__ == "__main__":
    main()
