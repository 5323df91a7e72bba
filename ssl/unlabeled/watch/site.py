"""Addresses and what they show: `/` the list, `/run/PATH/` a run, `/compare?run=PATH&run=PATH` several.

A path is looked up among those that were found, so no other can be asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus
from pathlib import Path
from urllib.parse import unquote

from unlabeled.errors import first_line
from unlabeled.watch.found import Found
from unlabeled.watch.frame import Page
from unlabeled.watch.listing import listing
from unlabeled.watch.pages import Pages
from unlabeled.watch.runs import Runs
from unlabeled.watch.server import Refused

FEWEST, MOST = 2, 12  # runs beside each other


class Site:
    """The pages of a folder.

    Args:
        folder: with runs in it, at any depth up to `found.DEPTH`.
    """

    def __init__(self, folder: Path) -> None:
        root = folder.resolve()
        self.name = str(folder)
        self.runs, self.pages = Runs(root), Pages(root)

    def summary(self) -> str:
        """What was found, in words."""
        count = len(self.runs.all())
        return (
            f"{count:,} run{'s' * (count != 1)} in {self.name}"
            if count
            else f"no runs in {self.name} yet, listed as they come,"
        )

    def answer(self, path: str, query: Sequence[tuple[str, str]]) -> Page:
        """The page of an address. Raises Refused."""
        if path == "/":
            return listing(self.name, self.runs)
        if path.startswith("/run/"):
            return self._one(path.removeprefix("/run/").removesuffix("/"))
        if path == "/compare":
            return self._several(list(dict.fromkeys(_unquoted(value) for name, value in query if name == "run")))
        raise Refused(HTTPStatus.NOT_FOUND, "There is nothing at this address.")

    def _one(self, path: str) -> Page:
        try:
            return self.pages.of(self._found(path))
        except (OSError, ValueError) as error:
            raise _refused([path], error) from error

    def _several(self, paths: Sequence[str]) -> Page:
        if not FEWEST <= len(paths) <= MOST:
            words = f"{len(paths)} runs are ticked; {FEWEST} to {MOST} can be compared. Go back and tick them."
            raise Refused(HTTPStatus.BAD_REQUEST, words)
        try:
            return self.pages.comparison([self._found(path, "run") for path in paths])
        except (OSError, ValueError) as error:
            raise _refused(paths, error) from error

    def _found(self, path: str, kind: str = "") -> Found:
        """What lies at a path. Raises Refused where nothing of that kind does, or it cannot be read."""
        listed = self.runs.all().get(path)
        if listed is None or (kind and listed.found.kind != kind):
            raise Refused(HTTPStatus.NOT_FOUND, f"There is no run {path!r}. It may have been removed.")
        if listed.trouble:
            raise Refused(HTTPStatus.FORBIDDEN, f"{path or self.name} {listed.trouble}.")
        return listed.found


def _unquoted(path: str) -> str:
    """A path as the list writes it in its form: quoted, since it may hold any bytes."""
    return unquote(path, errors="surrogateescape")


def _refused(paths: Sequence[str], error: OSError | ValueError) -> Refused:
    name = ", ".join(paths)
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return Refused(HTTPStatus.NOT_FOUND, f"Files of {name} are gone. It may have been removed.")
    reason = error.strerror if isinstance(error, OSError) else first_line(error)
    return Refused(HTTPStatus.FORBIDDEN, f"{name} cannot be shown: {reason}.")
