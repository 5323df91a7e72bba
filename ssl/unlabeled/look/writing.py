"""The files of `look/`: attention, components, the map. Each is written whole or not at all."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from unlabeled.backbone.encoder import Encoder
from unlabeled.files import json_object, write_text
from unlabeled.look import attention, components, drawing
from unlabeled.look.mapped import FILE, SHEET, Mapped
from unlabeled.look.parts import ABOUT
from unlabeled.look.thumbnails import Thumbs, write_sheet

MOST_HEADS = 12


class Examples(NamedTuple):
    """The images that are looked at: uint8 `pixels` [B, C, H, W], the same `normalized` on the encoder's device."""

    pixels: Tensor
    normalized: Tensor


def name(kind: str, step: int | None) -> str:
    """The file of a kind of picture, `attention` or `pca`, at a step; None = of no run."""
    return f"{kind}.png" if step is None else f"{kind}-step-{step:08d}.png"


def write_attention(folder: Path, step: int | None, encoder: Encoder, seen: Examples) -> Path:
    """Draw the images, and below each its maps; returns the PNG. Raises UserError when there are none to draw."""
    found = attention.of(encoder, seen.normalized)
    shown = 1 + min(MOST_HEADS, found.maps.shape[1] - 1)
    tile = drawing.tile_of((seen.pixels.shape[-2], seen.pixels.shape[-1]))
    rows = [drawing.images(seen.pixels, tile).unsqueeze(1), drawing.heat(found.maps[:, :shown], tile)]
    drawing.write(file := folder / name("attention", step), torch.cat(rows, dim=1))
    below = " Below: the pictures; the mean of all heads; each head." if shown > 1 else ""
    if shown < found.maps.shape[1]:
        below = f" Below: the pictures; the mean of all heads; the first {MOST_HEADS} heads."
    told = f"{found.how[0].upper()}{found.how[1:]}.{below} Each map goes from its least value (black) to its largest."
    _note(folder, "attention", told)
    return file


def write_components(folder: Path, step: int | None, encoder: Encoder, seen: Examples) -> Path:
    """Draw the images, and below each its patches coloured by principal components; returns the PNG.

    Order and signs of the components follow the newest earlier drawing. Raises UserError when there is nothing to draw.
    """
    scores = components.of(encoder, seen.normalized)
    tile = drawing.tile_of((seen.pixels.shape[-2], seen.pixels.shape[-1]))
    if (before := _before(folder, "pca", step)) is not None:
        shape = (scores.shape[0], scores.shape[1], scores.shape[2])
        if (drawn := drawing.read_cells(before, 1, shape, tile)) is not None:
            scores = components.aligned(scores, drawn.double())
    colours = drawing.cells(components.colours(scores).unsqueeze(1), tile)
    rows = [drawing.images(seen.pixels, tile).unsqueeze(1), colours]
    drawing.write(file := folder / name("pca", step), torch.cat(rows, dim=1))
    told = (
        "The first three principal components of the patches of all these pictures together, as red, green and blue: "
        "patches of one colour are alike to the encoder."
    )
    _note(folder, "pca", told if step is None else f"{told} Order and signs follow the drawing before.")
    return file


def write_map(folder: Path, mapped: Mapped, thumbs: Thumbs) -> None:
    """Write `map.jpg`, then `map.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    write_sheet(folder / SHEET, thumbs)
    write_text(folder / FILE, mapped.model_dump_json(exclude_defaults=True))


def _before(folder: Path, kind: str, step: int | None) -> Path | None:
    """The newest drawing of an earlier step."""
    found = {int(match[1]): file for file in folder.glob(f"{kind}-step-*.png") if (match := _STEP.search(file.name))}
    earlier = [number for number in found if step is not None and number < step]
    return found[max(earlier)] if earlier else None


_STEP = re.compile(r"-step-(\d+)\.png$")


def _note(folder: Path, kind: str, text: str) -> None:
    """Keep what is to be said of a kind of pictures."""
    file = folder / ABOUT
    known = json_object(file.read_bytes()) if file.exists() else {}
    if known.get(kind) != text:
        write_text(file, json.dumps({**known, kind: text}, indent=1) + "\n")
