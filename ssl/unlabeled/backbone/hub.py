"""Exports on the Hugging Face Hub: the address `hf-hub:OWNER/NAME`, or `hf-hub:OWNER/NAME@REVISION`."""

from __future__ import annotations

import functools
import re
from pathlib import Path

from unlabeled.errors import UserError, first_line

PREFIX = "hf-hub:"
NAME = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
FILES = ("config.json", "model.safetensors", "heads.safetensors", "README.md", "MANIFEST.json")


@functools.cache
def downloaded(address: str) -> Path:
    """The folder of an export on the hub: downloaded once for each state of its repository, and asked for once for each
    process. Without a network it is what was downloaded before.

    Raises UserError when there is none, or it cannot be had.
    """
    name, _, revision = address.removeprefix(PREFIX).partition("@")
    check_name(name)
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(name, revision=revision or None, allow_patterns=[*FILES]))
    except Exception as error:  # a server, a network or a disk: whatever it was, the person must hear it
        said, mend = in_words(error)
        raise UserError(f"{address} cannot be downloaded: {said}. {mend}.") from error


def check_name(name: str) -> None:
    """Raise UserError when a name is not that of a repository."""
    if not NAME.fullmatch(name):
        raise UserError(f"expected a repository as OWNER/NAME, found '{name}'")


def in_words(error: BaseException) -> tuple[str, str]:
    """An error of the hub's library, and what may be done about it, without full stops."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, ImportError):
        return f"{error.name} is not installed", "Run `pip install huggingface_hub`"
    if error.__cause__ is not None and status is None:  # such as a file that could not be sent
        said, mend = in_words(error.__cause__)
        return f"{first_line(error).rstrip('.')}: {said}", mend
    mend = "Look at the network (HF_ENDPOINT and HF_HUB_OFFLINE count), then run the same command again"
    if type(error).__name__ in ("LocalTokenNotFoundError", "GatedRepoError") or status in (401, 403):
        mend = "Log in with an account that may (`hf auth login`, or HF_TOKEN)"
    elif status == 404:
        mend = "Look whether owner, name and revision are right; a private one needs `hf auth login`, or HF_TOKEN"
    return first_line(error).rstrip("."), mend
