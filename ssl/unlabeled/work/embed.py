"""The work of `unlabeled embed`: features of every picture, labelled or not."""

from __future__ import annotations

import argparse
import platform
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from shlex import quote
from typing import Any

import torch.distributed as dist
from accelerate import Accelerator

from unlabeled.accelerator import make_accelerator, precision_for
from unlabeled.backbone.encoder import Encoder
from unlabeled.backbone.folder import Preprocessing
from unlabeled.backbone.weights import prepare
from unlabeled.data.archive.listing import IndexFolder
from unlabeled.data.archive.prepared import different
from unlabeled.data.archive.skipped import in_words
from unlabeled.data.opened import Opened
from unlabeled.data.source import SourceConfig
from unlabeled.errors import UserError
from unlabeled.launch.given import WHOLE, given, has_splits
from unlabeled.launch.nodes import agree_on
from unlabeled.launch.options import check_least, check_side, checked
from unlabeled.launch.plan import number
from unlabeled.processes import claim_together, everywhere, on_main, share, together
from unlabeled.progress import Clock, duration, task
from unlabeled.recipe import flat
from unlabeled.serve.embed import Bad, Embedding, Settings
from unlabeled.serve.shards import check_format
from unlabeled.sharing.shards import Sharing, each_shard
from unlabeled.stages import load_any
from unlabeled.text import say
from unlabeled.train.recipe import spare_cores

SHOWN = 5
TIMEOUT = 12 * 3600.0  # seconds that a process may wait at the end for another's last file


def run(args: argparse.Namespace) -> int:
    """Embed, with a line on how fast it goes."""
    check_least(args, batch_size=1, size=1, workers=0)
    return on_accelerator(args, _embed)


def on_accelerator(args: argparse.Namespace, work: Callable[[argparse.Namespace, Accelerator], None]) -> int:
    """Do a command's work on an accelerator, as its options say or, where they do not, as suits the machine."""
    args.workers = spare_cores() if args.workers is None else args.workers
    args.precision = precision_for(args.device) if args.precision is None else args.precision
    accelerator = make_accelerator(args.device, args.precision, TIMEOUT / 2)
    try:
        work(args, accelerator)
    except OSError as error:
        raise UserError(f"{args.out}: {error.strerror or error}. Make room; the same command goes on.") from error
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    return 0


class Encoding:
    """The work of `embed` on some files. In a process of a cluster it opens everything there."""

    def __init__(self, args: argparse.Namespace, accelerator: Accelerator, embedding: Embedding) -> None:
        self.args, self.accelerator, self.embedding = args, accelerator, embedding

    def __call__(self, numbers: Sequence[int]) -> Iterator[tuple[int, list[Bad]]]:
        return self.embedding.run(numbers, self.accelerator, self.args.batch_size, self.args.workers)

    def __reduce__(self) -> tuple[Any, ...]:
        return _elsewhere, (self.args, self.embedding.asked())


def _elsewhere(args: argparse.Namespace, asked: dict[str, Any]) -> Encoding:
    accelerator = make_accelerator(args.device, args.precision, TIMEOUT / 2)
    encoder, how, settings = opened(args, main=False)
    data = pictures(args, how, main=False)
    embedding = _embedding(encoder, accelerator, data, settings, args)
    if others := different(flat(asked), flat(embedding.asked())):
        raise UserError(
            f"{platform.node()} has other pictures, weights or settings than the machine of this command: {others}. "
            "Put them on a file system that all machines share, or copy them again."
        )
    return Encoding(args, accelerator, embedding)


def _embedding(
    encoder: Encoder, accelerator: Accelerator, data: Opened, settings: Settings, args: argparse.Namespace
) -> Embedding:
    mean, std = data.config.mean, data.config.std
    return Embedding(encoder.to(accelerator.device), data.split(args.split), mean, std, settings, args.out)


def _embed(args: argparse.Namespace, accelerator: Accelerator) -> None:
    clock = Clock()
    lock = claim_together(accelerator, args.out, "OUT")
    with together():
        encoder, how, settings = opened(args, accelerator.is_main_process)
        data = pictures(args, how, accelerator.is_main_process)
    # one process looks for images, the others read its index
    on_main(accelerator, lambda: data.split(args.split), whole=False)
    made = fill(args, accelerator, encoder, settings, data)
    if made:
        bad = f", {made['bad']:,} cannot be used: {args.out}/bad.jsonl" if made["bad"] else ""
        bad += f"; {in_words(Counter(made['skipped']))}" if made["skipped"] else ""
        what = f"features of {made['written']:,} pictures in {number(len(made['files']), 'file')}{bad}"
        say(f"done in {duration(clock.seconds)}: {what}")
        say(f"next: unlabeled search {quote(str(args.out))} --like PICTURE   (the pictures that look most like it)")
    if lock:
        lock.close()


def fill(
    args: argparse.Namespace, accelerator: Accelerator, encoder: Encoder, settings: Settings, data: Opened
) -> dict[str, Any] | None:
    """Embed the images of `args.split` into the folder `args.out`, which is there; what is done is not done again. All
    processes call it. Returns the manifest on the main process, None on the others."""
    with together():
        embedding = _embedding(encoder, accelerator, data, settings, args)
        asked = embedding.asked()
    agree_on(asked, "pictures, weights or settings")
    split = args.split if has_splits(args.data, args.overrides) else args.prefix or None
    about = {"export": args.export, "data": args.data, "split": split, "fields": args.overrides}
    on_main(accelerator, lambda: embedding.claim(about))
    missing = everywhere(accelerator, embedding.missing)  # before anyone begins
    gpus = int(accelerator.device.type == "cuda")
    sharing = Sharing(1, accelerator, args.engine, args.workers + 1, gpus)
    done = each_shard(missing, Encoding(args, accelerator, embedding), sharing)
    _show(done, accelerator, embedding, share(accelerator, missing))
    return on_main(accelerator, embedding.finish)


def opened(args: argparse.Namespace, main: bool) -> tuple[Encoder, Preprocessing, Settings]:
    """The encoder, its preprocessing, and the settings of its features; `main` says so in words."""
    check_format(args.format)
    encoder, how, words = prepare(args.export, args.size, crop_pct=args.crop_pct, pool=args.pool)
    check_side(encoder, "--size", args.size)
    settings = checked(
        Settings,
        **{name: getattr(how, name) for name in ("pool", "crop_pct", "interpolation")},
        **{name: getattr(args, name) for name in ("tokens", "dtype", "precision", "format", "shard")},
    )
    if main:
        say(f"{args.export}: {words}")
    return encoder, how, settings


def pictures(
    args: argparse.Namespace, how: Preprocessing, main: bool, own: Mapping[type[SourceConfig], dict[str, Any]] = WHOLE
) -> Opened:
    """The images of `args.data`, the index kept in `args.out` by the `main` process; `own` as of `given`."""
    config = given(args.data, load_any, how, {"train": args.prefix} if args.prefix else {}, args.overrides, own)
    return Opened(config, IndexFolder(args.out / "index", write=main))


def _show(
    done: Iterator[tuple[int, list[Bad]]], accelerator: Accelerator, embedding: Embedding, numbers: list[int]
) -> None:
    """Do the work, and say on the main process how far it is and what was skipped."""
    shown, most = task("embedding", embedding.count(numbers)), SHOWN
    for count, bad in done:
        shown.advance(count)
        for key, reason in bad[:most] if accelerator.is_main_process else ():
            say(f"skipped {key}: {reason}")
        most = max(0, most - len(bad))
    shown.close()
