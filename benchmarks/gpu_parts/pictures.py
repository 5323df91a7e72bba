"""JPEGs of noise with structure, as large as photos of ImageNet, always the same."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

WIDTH, HEIGHT, DIFFERENT = 500, 375, 64


def jpegs(count: int) -> list[bytes]:
    """So many files; the first DIFFERENT are others, the rest repeats them."""
    rng = np.random.default_rng(0)
    different = [_jpeg(rng) for _ in range(min(count, DIFFERENT))]
    return [different[i % DIFFERENT] for i in range(count)]


def _jpeg(rng: np.random.Generator) -> bytes:
    """Noise of several scales, so that it compresses as photos do."""
    picture = np.full((HEIGHT, WIDTH, 3), 128, dtype=np.float32)
    for side, strength in ((4, 90), (16, 40), (64, 20), (256, 8)):
        noise = rng.normal(0, strength, (side, side, 3)).clip(-127, 127).astype(np.int16) + 128
        layer = Image.fromarray(noise.clip(0, 255).astype(np.uint8)).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
        picture += np.asarray(layer, dtype=np.float32) - 128
    file = io.BytesIO()
    Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


def tar_of(files: list[bytes], path: Path) -> Path:
    """A tar with the files, numbered."""
    with tarfile.open(path, "w") as tar:
        for number, data in enumerate(files):
            member = tarfile.TarInfo(f"{number:06d}.jpg")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path
