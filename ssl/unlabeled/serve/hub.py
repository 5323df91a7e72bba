"""An export as a repository on the Hugging Face Hub, from which timm, transformers and `hf-hub:OWNER/NAME` load it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from unlabeled.backbone.folder import opened, read_weights
from unlabeled.backbone.hub import FILES, PREFIX, check_name, in_words
from unlabeled.backbone.outside import is_path
from unlabeled.errors import UserError
from unlabeled.manifest import MANIFEST, describe
from unlabeled.recipe.writer import as_yaml

HEADER = re.compile(r"---\n.*?\n---\n+", re.DOTALL)  # of a card that came from the hub
WEIGHTS = ("model.safetensors", "heads.safetensors")


def push_to_hub(
    export: str | Path,
    repo: str,
    *,
    private: bool = False,
    revision: str | None = None,
    message: str | None = None,
    license: str | None = None,
) -> str:
    """Upload an export in one commit, as a repository that is made where there is none; returns its address.

    A commit that is cut short changes nothing there, and files that arrived are not sent again.

    Args:
        export: folder; of a network outside timm PACKAGE.MODULE:NAME:FOLDER.
        repo: OWNER/NAME.
        private: nobody else may see a repository that is made.
        revision: branch, made where there is none; None = main.
        message: of the commit.
        license: an identifier of the hub, such as apache-2.0, for the card; None = the card names none.

    Raises:
        UserError: the export is damaged, or it cannot be uploaded.
    """
    check_name(repo)
    folder, config = opened(export)
    files = _files(folder, config, repo, license)
    try:
        return _commit(files, repo, private, revision, message or f"Upload {folder.name}")
    except UserError:
        raise
    except Exception as error:  # a server, a network: whatever it was, the person must hear it
        said, mend = in_words(error)
        raise UserError(f"{export} cannot be pushed to {repo}: {said}. {mend}.") from error


def _commit(files: dict[str, bytes | Path], repo: str, private: bool, revision: str | None, message: str) -> str:
    from huggingface_hub import CommitOperationAdd, HfApi

    hub = HfApi()
    hub.create_repo(repo, private=private or None, exist_ok=True)  # None = the default of the account
    if private and not hub.repo_info(repo).private:
        raise UserError(f"{repo} is there and public. Leave --private out, or choose another name.")
    if revision:
        hub.create_branch(repo, branch=revision, exist_ok=True)
    added = [CommitOperationAdd(name, str(file) if isinstance(file, Path) else file) for name, file in files.items()]
    hub.create_commit(repo, added, commit_message=message, revision=revision)
    return f"{PREFIX}{repo}" + (f"@{revision}" if revision else "")


def _files(folder: Path, config: dict[str, Any], repo: str, license: str | None) -> dict[str, bytes | Path]:
    """What is uploaded, by name: the files of an export, its card as the hub reads it, and a manifest of that card."""
    for name in WEIGHTS:
        if (folder / name).exists():
            read_weights(folder / name)
    card = (folder / "README.md").read_text(encoding="utf-8") if (folder / "README.md").is_file() else ""
    told = header(config, license) + HEADER.sub("", card, count=1).replace("local-dir:THIS_FOLDER", f"{PREFIX}{repo}")
    files: dict[str, bytes | Path] = {name: folder / name for name in FILES if (folder / name).is_file()}
    files["README.md"] = told.encode()
    if MANIFEST in files:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        files[MANIFEST] = json.dumps({**manifest, "README.md": describe(told.encode())}, indent=1).encode()
    return files


def header(config: dict[str, Any], license: str | None) -> str:
    """The metadata of a card."""
    task = "image-classification" if config["num_classes"] else "image-feature-extraction"
    library = "unlabeled" if is_path(config["architecture"]) else "timm"
    fields = {"library_name": library, "pipeline_tag": task, "tags": [task, library, "self-supervised", "unlabeled"]}
    fields["tags"] = list(dict.fromkeys(fields["tags"]))
    return f"---\n{as_yaml(fields | ({'license': license} if license else {}))}---\n\n"
