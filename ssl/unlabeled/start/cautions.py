"""What a person should know before the run, in plain words."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from unlabeled.launch.plan import number
from unlabeled.pretrain.continued import Caution
from unlabeled.start.facts import Facts
from unlabeled.start.looking import Looked
from unlabeled.start.opening import Place
from unlabeled.start.recipe import Length
from unlabeled.start.rules import Rule

FEW, TINY, MIXED = 500, 48, 4  # pictures; pixels; ratio of long and short sides among them
COPIES, UNREADABLE = 0.01, 0.01  # shares of the pictures
FEW_LABELS = 10  # of a class
SHORT = 1000  # steps: of 350, few-label fine-tuning of photos gained nothing that can be told from chance
SLOW = 2.0  # reading over decoding
BUSY = 0.7  # load over cores


class Known(NamedTuple):
    """All that cautions are about."""

    facts: Facts
    chosen: Mapping[str, Rule]
    place: Place
    looked: Looked
    length: Length
    measured: bool
    recipe: str  # the file that is written
    busy: float = 0  # processes that wanted a core before this one began


def cautions(known: Known) -> list[Caution]:
    """All cautions, what the pictures are first."""
    return [*_amount(known), *_pictures(known), *_values(known), *_labels(known), *_run(known)]


def _amount(known: Known) -> Iterator[Caution]:
    count = known.facts.pictures
    if count < FEW:
        scratch = known.chosen["begin"].take == "scratch"
        text = (
            f"{number(count, 'picture')} are few: pretraining from scratch will hardly pay"
            if scratch
            else (f"{number(count, 'picture')} are few: the weights at the start do most of the work")
        )
        yield Caution("few", text, "begin with public weights (init=timm:NAME), or collect more pictures")


def _pictures(known: Known) -> Iterator[Caution]:
    looked, found, source = known.looked, known.looked.found, known.looked.source
    short = np.minimum(found.height, found.width)
    low, high = np.percentile(short, (5, 95))
    if looked.side < TINY:
        text = f"the median picture is {looked.side} px: little can be seen in it"
        yield Caution("tiny", text, "use larger originals where there are some; crops of 32 px are planned")
    if high > MIXED * low:
        text = f"sizes are mixed: short sides of {low:.0f} to {high:.0f} px"
        yield Caution("mixed", text, "check that the small ones are no thumbnails of the others")
    copies = max(looked.copies / len(source), looked.alike / max(1, len(found)))
    if copies >= COPIES:
        alike = f"of {len(found):,} pictures looked at {looked.alike:,} look like another"
        text = f"{looked.copies:,} files are equal to another one; {alike}"
        yield Caution(
            "copies", text, f"remove what is there twice: `unlabeled doctor {known.recipe} --csv copies.csv` lists them"
        )
    if found.bad:
        bad = found.bad[0]
        text = (
            f"{len(found.bad):,} of {found.looked:,} pictures looked at cannot be read, such as {bad.key}: {bad.reason}"
        )
        more = " data.max_bad_fraction allows 1 %" if len(found.bad) > UNREADABLE * found.looked else ""
        yield Caution("unreadable", text, f"mend or remove them.{more}" if more else "they are skipped and listed")


def _values(known: Known) -> Iterator[Caution]:
    stored, channels = known.looked.stored, known.facts.channels
    if stored.others:
        text = f"{100 * stored.others:.0f} % of the pictures have another number of channels than {stored.channels}"
        yield Caution("channels", text, "they are skipped: keep pictures of one kind in a folder of their own")
    if stored.clear:
        text = f"{100 * stored.clear:.0f} % of the pictures have transparent parts: hidden colours are learnt, too"
        yield Caution("transparent", text, "paste them on one background first, as Pillow's Image.alpha_composite does")
    if stored.value_range is not None:
        low, high = stored.value_range
        text = f"pictures have {stored.bits} bits: values of {low:g} to {high:g} become 0 to 255, measured on a sample"
        yield Caution("bits", text, "set data.value_range if you know the range of your camera or sensor")
    if channels not in (1, 3):
        text = f"pictures have {channels} channels: mean and std are measured, colours are not changed"
        yield Caution("bands", text, "public weights have three channels; adapt=[channels] would fit their first layer")
    if known.looked.grey:
        read = "one channel" if known.chosen["begin"].take == "scratch" else "three channels, as the weights need"
        yield Caution("grey", f"pictures are RGB without colours: they are read as {read}", "nothing to do")


def _labels(known: Known) -> Iterator[Caution]:
    facts, place = known.facts, known.place
    if facts.labels in ("flat", "splits"):
        text = f"{place.note}: pretraining does not use labels"
        yield Caution("labels", text, "`unlabeled ladder` and `unlabeled finetune` do")
    if facts.labels == "albums":
        yield Caution("albums", place.note, "if they are classes, put them into a folder train, and others into val")
    if 0 < facts.each < FEW_LABELS:
        text = f"{facts.each} labelled pictures in the median class are few: scores vary by several points"
        yield Caution("few_labels", text, "label some more, or compare over several seeds (--seeds 5)")


def _run(known: Known) -> Iterator[Caution]:
    stored, length, facts = known.looked.stored, known.length, known.facts
    if stored.reading > SLOW * stored.decoding and stored.reading > 0.02:
        read, decoded = 1000 * stored.reading, 1000 * stored.decoding
        text = f"the disk is slow: a picture takes {read:.0f} ms to read, {decoded:.0f} ms to decode"
        yield Caution("slow_disk", text, "copy the pictures to a local disk, or make small copies: `unlabeled prepare`")
    if known.measured and facts.device == "cpu" and known.busy > BUSY * facts.cores:
        text = f"other programs use the cores (load {known.busy:.1f} on {facts.cores}): the measured speed is too low"
        yield Caution("busy", text, "start again when they have ended: more epochs will fit")
    if known.measured and length.steps < SHORT and length.epochs < int(known.chosen["most_epochs"].take):
        text = f"{facts.minutes:g} minutes are {length.steps:,} steps ({length.epochs:g} epochs): they may gain nothing"
        minutes = math.ceil(facts.minutes * SHORT / max(1, length.steps))
        yield Caution("short", text, f"give it more time (--minutes {minutes}), or fewer cores to other programs")
    if not known.measured:
        text = "nothing was measured on a GPU: epochs and time are not known"
        yield Caution("unmeasured", text, f"run `unlabeled doctor {known.recipe}` on the machine with the GPU")
