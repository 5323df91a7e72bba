"""Images and labels at the paths of a recipe, in folders or tars."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unlabeled.data.archive.index import EXTENSIONS, Index, changed_folder, readable, scan_folder
from unlabeled.data.archive.listing import Listing, Stamp
from unlabeled.data.archive.paths import Paths, entries
from unlabeled.data.archive.remote import identities, is_remote
from unlabeled.data.archive.skipped import BESIDE, conversion, in_words
from unlabeled.data.archive.tar import local_identity, scan_tars
from unlabeled.data.archive.webdataset import ALL, Beside
from unlabeled.data.label.labels import numbered
from unlabeled.data.label.overlap import HELD_OUT, LEARNT
from unlabeled.errors import UserError

FOLDERS, MANIFEST = "folders", "manifest"
NAMED = 5
Stray = Literal["error", "skip", "keep"]
_ENDINGS = " ".join(ending.decode() for ending in EXTENSIONS)


class Reading(NamedTuple):
    """How the labels of a folder or of tars are found: see the fields of `Files`, and `SourceConfig.numbering`."""

    labels: str = FOLDERS
    stray: Stray = "error"
    part: str | None = None
    order: tuple[str, ...] | None = None


def scan_places(paths: Paths, prefixes: Sequence[str], how: Reading) -> list[Listing]:
    """Scan folders or tars for the images below each of the prefixes."""
    if folders := folders_of(paths):
        for field, value, fitting in (("labels", how.labels, (FOLDERS,)), ("part", how.part, (ALL, None))):
            if value not in fitting:
                raise UserError(
                    f"data.{field}={value!r} is for tars, and {folders[0]!r} is a folder; expected data.{field}="
                    f"{fitting[0]}"
                )
        return [
            _listing(_shown(paths, prefix), *_looked_through(roots_of(folders, prefix)), how) for prefix in prefixes
        ]
    beside = None if how.labels in (FOLDERS, MANIFEST) else Beside(how.labels)
    shards, found = scan_tars(entries(paths), prefixes, beside, how.part, labelled=how.labels == MANIFEST)
    if how.labels == FOLDERS:
        return [
            _listing(_shown(paths, prefix), scan.pictures, None, how, tuple(shards))
            for prefix, scan in zip(prefixes, found, strict=True)
        ]
    return [Listing.of(scan.pictures, *numbered(scan.labels, how.order), tuple(shards), named=True) for scan in found]


def folders_of(paths: Paths) -> list[str]:
    """The folders that paths name; none where they name tars. Raises UserError when they name both, or something that
    is not there."""
    if any(map(is_remote, paths)):
        return []
    found = entries(paths)
    folders = [path for path in found if os.path.isdir(path)]
    if folders and len(folders) < len(found):
        other = next(path for path in found if path not in folders)
        raise UserError(
            f"{list(paths)} names folders, such as {folders[0]!r}, and archives, such as {other!r}; expected one kind. "
            "Make a mixture of two sources of them"
        )
    return folders


def _looked_through(roots: Sequence[bytes]) -> tuple[Index, Index]:
    """Images below folders, and all folders there; each is entered once."""
    entered: set[tuple[int, int]] = set()
    pictures, folders = zip(*(scan_folder(root, entered) for root in roots), strict=True)
    return Index.joined(pictures), Index.joined(folders)


def _listing(where: str, index: Index, folders: Index | None, how: Reading, files: tuple[Stamp, ...] = ()) -> Listing:
    """Make a listing whose labels are the first folder of each name."""
    names, found = index.folders()
    stray = found < 0
    if stray.any() and not stray.all():
        if how.stray == "error":
            raise UserError(_beside_folders(where, index, stray))
        if how.stray == "skip":
            index, found = index.only(~stray, Counter({BESIDE: int(stray.sum())})), found[~stray]
    classes, ids = numbered(map(readable, names), how.order)
    return Listing.of(index, classes, np.append(ids, -1)[found], files, folders)


def _beside_folders(where: str, index: Index, stray: NDArray[np.bool_]) -> str:
    names = [repr(readable(index.name(int(i)))) for i in np.flatnonzero(stray)[:NAMED]]
    more = int(stray.sum()) - len(names)
    return (
        f"{where!r} has folders, whose names are classes, and pictures beside them: {', '.join(names)}"
        f"{f' and {more:,} more' if more else ''}. Move each into the folder of its class; or set data.stray=skip to "
        "leave them out, data.stray=keep to use them without a label"
    )


def changed(stamps: Callable[[Paths], Sequence[Stamp]], paths: Paths, prefix: str, listing: Listing) -> str | None:
    """Name a folder or an archive that has changed since it was listed; None = none has."""
    if folders := folders_of(paths):
        if listing.files:
            return _shown(paths, prefix)
        return changed_folder(roots_of(folders, prefix), listing.folders)
    now = stamps(paths)
    if len(now) != len(listing.files):
        return _shown(paths)
    return next((new.path for old, new in zip(listing.files, now, strict=True) if old != new), None)


def stamps_of(paths: Paths) -> Sequence[Stamp]:
    """The archives that paths name, as they are now."""
    archives = entries(paths)
    remote = [archive for archive in archives if is_remote(archive)]
    found = dict(zip(remote, identities(remote), strict=True))
    return [Stamp(archive, *(found.get(archive) or local_identity(archive))) for archive in archives]


def roots_of(folders: Sequence[str], prefix: str) -> list[bytes]:
    return [os.fsencode(os.path.join(folder, prefix).rstrip("/") or "/") for folder in folders]


def _shown(paths: Paths, prefix: str = "") -> str:
    return ", ".join(os.path.join(path, prefix).rstrip("/") or "/" for path in paths)


def nothing_found(paths: Paths, prefix: str, how: Reading, skipped: Counter[str], asked: Mapping[str, str]) -> str:
    """Say that there are no images under a prefix; `asked` are the fields that name prefixes, and what they should be
    where a share is held out."""
    if prefix and (classes := _classes(paths)):
        words = " ".join(["data.split=0.2", *(f"{name}={value}" for name, value in asked.items())])
        return (
            f"no {prefix}/ in {_shown(paths)!r}: found {len(classes):,} class folders, such as {classes[0]!r}. Split "
            f"them, a fifth of each class to evaluate on: {words} (evaluate and ladder: --set data.split=0.2)"
        )
    problem = f"no pictures in {_shown(paths)!r}"
    if how.part not in (None, ALL):
        problem += f" whose names go on with {how.part!r} after the first dot (data.part)"
    if prefix:
        problem += f" under {prefix!r}; it has {_prefixes(paths) or 'no folders'}"
    others = f"; {in_words(skipped)}" if skipped else ""
    problem = f"{problem}{others}. Expected files ending in {_ENDINGS}"
    return problem + conversion(skipped, roots_of(folders_of(paths), prefix))


def _classes(paths: Paths) -> list[str]:
    """The first folders at paths where they may be classes: at least two, none of them named like a split."""
    folders = _first_folders(paths)
    return folders if len(folders) > 1 and not {folder.lower() for folder in folders} & {*LEARNT, *HELD_OUT} else []


def _prefixes(paths: Paths, most: int = 10) -> str:
    """The first folders that exist at paths, for people."""
    folders = _first_folders(paths)
    shown = [repr(folder) for folder in folders[:most]]
    return ", ".join([*shown, "..."] if len(folders) > most else shown)


def _first_folders(paths: Paths) -> list[str]:
    [listing] = scan_places(paths, [""], Reading(stray="keep"))
    return sorted(map(readable, listing.pictures.folders()[0]))
