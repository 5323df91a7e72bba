"""What a step of every method asks of a GPU: launches, bytes, arithmetic, memory and waits, counted without one.

    python benchmarks/count.py [--rows mae-S-256,dino-S-256] [--compiled] [--fields FIELD=VALUE ...] [--json]

Counted on fake tensors, see `counting.py`, under bfloat16. `device` is a roofline of an H200: every kernel takes as
long as its arithmetic (790 TFLOP/s in bfloat16, of which products reach 85 % and attention a half; 67 in float32), its
bytes (4.3 TB/s) or a launch (2 us), whatever is longest, one after the other. Images/s are estimates, not measured:
`eager` is 1.2 to 1.5 times the device's time, or 5 us an operator where that is more; `compiled` is 1.2 times the time
of products and attention and 0.4 times that of the rest. With `--compiled` regions are counted as a compiler would fuse
them (`fused.py`, one to two minutes a row), and images/s are 1.2 to 1.5 times that time.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

from common import finish, picked, table
from counting import Count, count_step

from unlabeled.recipe import load
from unlabeled.stages.pretrain import PretrainRecipe

RECIPES = Path(__file__).parents[1] / "recipes" / "pretrain"
BARE = [
    "data={name: shapes, train_size: 8192, val_size: 8, size: 256}",
    *("evaluate=null", "look=null", "train.precision=bf16", "train.epochs=100"),
    *("run.workers=0", "run.accumulate=1", "run.device=cpu"),
]
HEAD = ("method, batch", "operators", "launches", "x 6 us, ms", "TFLOP", "GB", "floor, ms", "device, ms", "of it views")
MORE = ("peak GB", "MB copied", "waits", "exchanges", "eager images/s", "compiled images/s")


class Row(NamedTuple):
    """A recipe, its fields that are others, pictures of a process, and processes."""

    recipe: str
    fields: tuple[str, ...]
    pictures: int
    processes: int = 1


def large(recipe: str, *fields: str) -> Row:
    """With a ViT-L/16."""
    return Row(recipe, ("method.encoder.model=vit_large_patch16_224", *fields), 64)


TEN = "method.local.count=10"
SMALL_DECODER = "method.decoder={name: self, width: 256, depth: 8, heads: 8}"
ROWS = {
    "mae-S-256": Row("mae_vits16_1gpu", (SMALL_DECODER,), 256),
    "mae-B-256": Row("mae_vitb16_in1k", (), 256),
    "mae-L-64": Row("mae_vitl16_in1k", (), 64),
    "mae-L-512": Row("mae_vitl16_in1k", (), 512),
    "simmim-S-256": Row("simmim_vits16_1gpu", (), 256),
    "simmim-L-64": large("simmim_vits16_1gpu"),
    "simclr-S-256": Row("simclr_vits16_1gpu", (), 256),
    "simclr-L-64": large("simclr_vits16_1gpu"),
    "mocov3-S-256": Row("mocov3_vits16_1gpu", (), 256),
    "mocov3-L-64": large("mocov3_vitb16_in1k", "method.encoder.heads=16"),
    "mocov3-R50-256": Row("mocov3_resnet50_in1k", (), 256),
    "mocov3-R50-256 of 2": Row("mocov3_resnet50_in1k", (), 256, 2),
    "dino-S-256": Row("dino_vits16_1gpu", (TEN,), 256),
    "dino-S-64": Row("dino_vits16_1gpu", (TEN,), 64),
    "dino-L-64": large("dino_vits16_1gpu", TEN),
    "ibot-S-256": Row("ibot_vits16_in1k", (TEN,), 256),
    "ibot-L-64": large("ibot_vits16_in1k", TEN),
    "dinov2-L-64": Row("dinov2_vitl16_in1k", (), 64),
}


def counted(row: Row, more: Sequence[str] = (), compiled: bool = False) -> Count:
    """Count a row, with `more` fields; fused as a compiler would where `compiled`."""
    total = row.pictures * row.processes
    fields = [*BARE, f"train.batch_size={total}", f"run.compile={str(compiled).lower()}", *row.fields, *more]
    within: Any = importlib.import_module("fused").compiled if compiled else nullcontext  # it takes seconds to import
    recipe = load(PretrainRecipe, RECIPES / f"{row.recipe}.yaml", fields)
    return count_step(recipe, row.pictures, row.processes, within=within)


def figures(row: Row, count: Count) -> dict[str, Any]:
    """The columns of a row, in the order of the head."""
    rest = count.seconds - count.multiplying
    slow, fast = (row.pictures / max(factor * count.seconds, 5e-6 * count.operators) for factor in (1.5, 1.2))
    compiled = row.pictures / (1.2 * count.multiplying + 0.4 * rest)
    return {
        "operators": f"{count.operators:,}",
        "launches": f"{count.launches:,}",
        "x 6 us, ms": f"{count.launches * 6e-3:.1f}",
        "TFLOP": f"{count.flop / 1e12:.3g}",
        "GB": f"{count.bytes / 1e9:.0f}",
        "floor, ms": f"{count.flop / 790e9:.1f}",
        "device, ms": f"{count.seconds * 1e3:.1f}",
        "of it views": f"{count.views * 1e3:.1f}",
        "peak GB": f"{count.peak / 1e9:.1f}",
        "MB copied": f"{count.copied / 1e6:.0f}",
        "waits": str(len(count.waits)),
        "exchanges": str(count.collectives),
        "eager images/s": f"{slow:,.0f}-{fast:,.0f}",
        "compiled images/s": f"{compiled:,.0f}",
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a row as soon as it is counted, then the table."""
    parser = argparse.ArgumentParser(description="What a step asks of a GPU, counted without one.")
    parser.add_argument("--rows", default=",".join(ROWS), help="which, by name (default all)")
    parser.add_argument("--compiled", action="store_true", help="count regions as a compiler would fuse them")
    parser.add_argument("--fields", nargs="*", default=[], help="fields of every recipe, such as run.compile=true")
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    chosen = parser.parse_args(arguments)
    found = {}
    for name in picked(parser, chosen.rows, list(ROWS)):
        found[name] = counted(ROWS[name], chosen.fields, chosen.compiled)
        print(name, figures(ROWS[name], found[name]), flush=True)
    told = len(HEAD) + len(MORE) - chosen.compiled  # the last column is for rows that are not
    rows = [(name, *figures(ROWS[name], count).values())[:told] for name, count in found.items()]
    print(table((*HEAD, *MORE)[:told], rows))
    finish(chosen, {name: vars(count) for name, count in found.items()})


if __name__ == "__main__":
    main()
