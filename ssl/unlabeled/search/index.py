"""An index over the folder of `unlabeled embed`, asked with pictures.

FEATURES/manifest.json, features-*   of `unlabeled embed`: features, names, the encoder and how it saw pictures
FEATURES/search.faiss, search.json   of `build`: the index of FAISS and what it is; without them search is exact
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, Field, ValidationError
from torch import Tensor

from unlabeled.backbone.weights import weights_digest
from unlabeled.errors import UserError
from unlabeled.files import replacing, write_text
from unlabeled.interface.model import Model, load
from unlabeled.manifest import sha256_of
from unlabeled.search.nearest import Hits, Kind, ask, build, exact, faiss
from unlabeled.serve.embed import MANIFEST, read_manifest
from unlabeled.serve.shards import Stored

INDEX, ABOUT = "search.faiss", "search.json"
PREPARED = ("size", "crop_pct", "interpolation", "mean", "std")


class Hit(NamedTuple):
    """A picture that was found: its name, the cosine of its features and the query's, its class ('' = none), and its
    number in the index."""

    name: str
    similarity: float
    label: str
    number: int


class About(BaseModel, frozen=True):
    """What `search.json` says: of which features, and the kind of the index."""

    features: str
    sha256: str
    cells: int = Field(ge=0)
    probes: int = Field(ge=0)
    recall: float


class Index:
    """Pictures that were embedded, searched by cosine.

    Args:
        folder: that `unlabeled embed` filled.
        built: whether an index of FAISS that lies there is used; it may be of other features.

    Attributes:
        names: of the pictures.
        manifest: what `unlabeled embed` says of the encoder, its preprocessing, and the pictures.
        kind: of the index of FAISS; None = every search compares all features, exactly.
        width: of the features.

    Raises:
        UserError: it holds no features, not all of them, or an index of others.
    """

    def __init__(self, folder: str | Path, built: bool = True) -> None:
        self.folder = Path(folder)
        self.manifest = _complete(self.folder)
        self._shards = [Stored(file) for file in _files(self.folder, self.manifest)]
        self.names = [name for shard in self._shards for name in shard.keys]
        self.numbers = [number for shard in self._shards for number in shard.index.tolist()]
        self._labels = [label for shard in self._shards for label in shard.label.tolist()]
        if not self.names:
            raise UserError(
                f"{self.folder} holds no features: none of its pictures could be used. Look into bad.jsonl there."
            )
        self.width = int(self.manifest["shapes"]["features"][1])
        self._model: Model | None = None
        self._index: Any = None
        self.kind: Kind | None = None
        if built:
            self._index, self.kind = self._built()

    def __len__(self) -> int:
        return len(self.names)

    def search(self, images: Any, k: int = 10, encoder: str | Path | None = None) -> list[list[Hit]]:
        """Find the k pictures whose features are nearest to those of each image.

        Args:
            images: what `Model.embed` takes; or features [q, D] of the same encoder as a tensor.
            encoder: where the export is now; None = where it was.

        Raises:
            UserError: the encoder is another one, or an image cannot be used.
        """
        if k < 1:
            raise UserError(f"k={k}: expected at least 1")
        asked = isinstance(images, Tensor) and images.ndim == 2 and images.shape[1] == self.width
        queries = images if asked else self.model(encoder).embed(images).features
        hits = self.nearest(queries, k)
        return [
            [self._hit(number, cosine) for number, cosine in zip(numbers, cosines, strict=True) if number >= 0]
            for numbers, cosines in zip(hits.numbers.tolist(), hits.cosines.tolist(), strict=True)
        ]

    def nearest(self, queries: Tensor, k: int) -> Hits:
        """Search for features [q, D]; numbers are below the length of the index, or -1 where there is no more."""
        if self.kind is None:
            return exact(self.parts(), queries, k)
        return ask(self._index, self.kind, queries, k)

    def features(self, number: int) -> Tensor:
        """The features [D] of a picture of the index."""
        for shard in self._shards:
            if number < len(shard.keys):
                return shard.features[number]
            number -= len(shard.keys)
        raise IndexError(number)

    def parts(self) -> Iterator[Tensor]:
        """All features, file by file; files are read as they are needed."""
        return (shard.features for shard in self._shards)

    def model(self, encoder: str | Path | None = None) -> Model:
        """The encoder of the index, with the preprocessing that its pictures had. Raises UserError when it is gone, or
        another one."""
        if self._model is None:
            self._model = self._same_model(str(encoder or self.manifest.get("export", "")))
        return self._model

    def build(self) -> Kind:
        """Build an index of FAISS, and keep it in the folder. Raises UserError when FAISS is not installed."""
        self._index, self.kind = build(self.parts, len(self), self.width)
        with replacing(self.folder / INDEX) as temporary:
            faiss().write_index(self._index, str(temporary))
        about = {"features": self._digest(), "sha256": sha256_of(self.folder / INDEX), **self.kind._asdict()}
        write_text(self.folder / ABOUT, json.dumps(about, indent=1) + "\n")
        return self.kind

    def _built(self) -> tuple[Any, Kind | None]:
        """The index of FAISS that was built, where there is one and FAISS is installed."""
        try:
            about = About.model_validate_json((self.folder / ABOUT).read_bytes())
            library = faiss()
        except (FileNotFoundError, UserError):
            return None, None
        except (OSError, ValidationError, ValueError) as error:
            raise UserError(f"{self.folder / ABOUT} cannot be read. Make the index again with --build.") from error
        if about.features != self._digest():
            raise UserError(
                f"{self.folder / INDEX} is of other features than lie there now. Make it again with --build."
            )
        if not (self.folder / INDEX).is_file() or sha256_of(self.folder / INDEX) != about.sha256:
            raise UserError(f"{self.folder / INDEX} is not what was written. Make it again with --build.")
        return library.read_index(str(self.folder / INDEX)), Kind(about.cells, about.probes, about.recall)

    def _digest(self) -> str:
        files = {name: entry["sha256"] for name, entry in sorted(self.manifest["files"].items())}
        return hashlib.sha256(json.dumps(files).encode()).hexdigest()

    def _same_model(self, where: str) -> Model:
        asked = self.manifest["asked"]
        wanted, seen = asked["encoder"], asked["preprocessing"]
        told: dict[str, Any] = {"crop_pct": seen["crop_pct"], "pool": asked["pool"]}
        try:
            model = load(where, **told)
            if list(model.encoder.image_size) != seen["size"]:
                model = load(where, image_size=seen["size"][0], **told)
        except UserError as error:
            said = f"{self.folder} was made with {where}: {error}"
            raise UserError(f"{said} Is it elsewhere now? Name it (--encoder).") from error
        found = {"architecture": model.encoder.model, "weights": weights_digest(model.encoder.state_dict())}
        how = {"size": list(model.encoder.image_size), **{name: getattr(model.how, name) for name in PREPARED[1:]}}
        other = [f"{name} {how[name]} for {seen[name]}" for name in PREPARED if _plain(how[name]) != _plain(seen[name])]
        if found != wanted or other:
            differs = ", ".join(other) or f"weights {found['weights']} for {wanted['weights']}"
            raise UserError(
                f"{where} is not the encoder of {self.folder}: {differs}. Name the export that embedded these "
                "pictures, or embed them again with this one."
            )
        return model

    def _hit(self, number: int, cosine: float) -> Hit:
        label, classes = self._labels[number], self.manifest.get("classes", [])
        return Hit(self.names[number], cosine, classes[label] if 0 <= label < len(classes) else "", number)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value


def _complete(folder: Path) -> dict[str, Any]:
    """The manifest of features. Raises UserError when there is none, or features are missing."""
    if not (folder / MANIFEST).is_file():
        raise UserError(
            f"{folder} holds no features: no {MANIFEST}. Make them: unlabeled embed EXPORT PICTURES {folder}"
        )
    manifest = read_manifest(folder / MANIFEST)
    if not manifest.get("complete"):
        raise UserError(
            f"{folder} does not hold all features yet. Run the same `unlabeled embed` command again: it goes on."
        )
    return manifest


def _files(folder: Path, manifest: dict[str, Any]) -> list[Path]:
    """The files of features, in order. Raises UserError when one is gone or has another size than it had."""
    files = {folder / name: entry["size"] for name, entry in sorted(manifest["files"].items())}
    if gone := [file for file, size in files.items() if not file.is_file() or file.stat().st_size != size]:
        raise UserError(f"{gone[0]} is gone or has changed. Run the same `unlabeled embed` command again.")
    return list(files)
