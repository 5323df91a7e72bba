"""An encoder or a classifier in Python: `model = unlabeled.load(PATH)`, `model.embed(images)`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from unlabeled.backbone.address import find
from unlabeled.backbone.encoder import Encoder, Pool
from unlabeled.backbone.folder import Preprocessing, opened
from unlabeled.backbone.pooling import FeatureSpec, check
from unlabeled.backbone.weights import OFFICIAL, fitted, prepare, preprocessing_of
from unlabeled.data.batch.loader import Normalize
from unlabeled.data.decoding.bands import Target
from unlabeled.data.opened import Opened
from unlabeled.data.source import MAX_PIXELS, Source
from unlabeled.data.sources.dataset import DatasetSource
from unlabeled.data.view.views import Interpolation
from unlabeled.errors import UserError
from unlabeled.evaluate.features import Bad, CentreCrops
from unlabeled.interface.held import Held, images_in, is_image_file
from unlabeled.interface.results import Embeddings, Predictions
from unlabeled.launch.given import WHOLE, given
from unlabeled.launch.options import device_of
from unlabeled.nn.modes import evaluating
from unlabeled.paths import expand
from unlabeled.processes import cores
from unlabeled.progress import Bars, current, task
from unlabeled.serve.deploy import network
from unlabeled.serve.embed import batched, encoded, features_of
from unlabeled.signals import handlers_kept
from unlabeled.stages import load_any

BATCH = 256  # as of `unlabeled embed`: other sizes round otherwise
MOST_WORKERS = 8


class Classifier(NamedTuple):
    """A network with its head, from normalised images to logits, and the names of its classes."""

    network: nn.Module
    classes: tuple[str, ...]


class Model:
    """A network with the preprocessing that its export says; see `load`.

    Attributes:
        path: where it is from.
        encoder: the network without a head: `encoder(images)` gives tokens.
        how: its preprocessing: normalisation, size, share of the side, interpolation, pooling.
        classes: names of the classes of a classifier by number; () = it is none.
    """

    def __init__(self, path: str, encoder: Encoder, how: Preprocessing, classifier: Classifier | None = None) -> None:
        self.path, self.encoder, self.how, self._classifier = path, encoder.eval(), how, classifier
        self.classes: tuple[str, ...] = classifier.classes if classifier else ()
        self._check_pool(how.pool)
        if not 0 < how.crop_pct <= 1:
            raise UserError(f"crop_pct={how.crop_pct:g}: expected a share of the side above 0 and at most 1")
        if how.interpolation not in get_args(Interpolation):
            raise UserError(
                f"{path} was trained with {how.interpolation} interpolation, expected one of {get_args(Interpolation)}"
            )

    @property
    def device(self) -> torch.device:
        """The device of the network."""
        return next(self.encoder.parameters()).device

    def to(self, device: str | torch.device) -> Model:
        """Move the network to a device, such as cuda; returns the model. Raises UserError when it is not there."""
        where = device_of(str(device), "device=")
        self.encoder.to(where)
        if self._classifier is not None:
            self._classifier.network.to(where)
        return self

    def embed(
        self,
        images: Any,
        *,
        pool: Pool | None = None,
        tokens: bool = False,
        batch_size: int = BATCH,
        workers: int | None = None,
        device: str | torch.device | None = None,
    ) -> Embeddings:
        """Compute features of images, one vector each, in their order: the numbers that `unlabeled embed` writes. Of a
        classifier they are those of its backbone.

        Args:
            images: a Pillow image, the path of an image, an array [H, W, C] or tensor [C, H, W] (uint8, uint16, or
                floats in 0..1), a list of one of these, an array [N, H, W, C] or tensor [N, C, H, W]; or a folder,
                tars, a table or a recipe, as `unlabeled embed` takes them, or a torch `Dataset`.
            pool: cls, mean, cls_mean, mean_max or own; None = as exported.
            tokens: whether the patch tokens are given, too.
            batch_size: images at a time.
            workers: processes that read files; None = by the number of batches and cores.
            device: to move to before; None = stay.

        Raises:
            UserError: an image that was given by itself cannot be used, or there is none. Of a folder, bad ones are
                left out and listed in `bad`.
        """
        chosen = self._check_pool(pool or self.how.pool)
        source = self._source(images)
        if device is not None:
            self.to(device)

        def encode(batch: Tensor) -> list[Tensor]:
            return features_of(self.encoder, batch, chosen, tokens)

        parts, used, bad = self._passed(source, encode, batch_size, workers)
        features, *patches = (part.float() for part in parts)
        keys, labels = [source.key(i) for i in used], source.labels[used]
        return Embeddings(features, patches[0] if patches else None, keys, labels, source.classes, bad)

    def predict(self, images: Any, *, batch_size: int = BATCH, workers: int | None = None) -> Predictions:
        """Compute the probabilities of a classifier's classes; the arguments are those of `embed`.

        Raises UserError as `embed`, and when it is no classifier.
        """
        if self._classifier is None:
            raise UserError(
                f"{self.path} holds an encoder, which knows no classes; expected a classifier. Fine-tune it "
                "(unlabeled finetune) and load that export, or use embed."
            )
        source, classifier = self._source(images), self._classifier.network

        @torch.inference_mode()
        def encode(batch: Tensor) -> list[Tensor]:
            with evaluating(classifier):
                return [classifier(batch).float().softmax(1)]

        [probabilities], used, bad = self._passed(source, encode, batch_size, workers)
        return Predictions(probabilities, self.classes, [source.key(i) for i in used], bad)

    def preprocess(self, images: Any) -> Tensor:
        """Prepare images as `embed` does: float32 [N, C, h, w], cut and normalised, on the device of `encoder`."""
        [pixels], _, _ = self._passed(self._source(images), lambda batch: [batch], BATCH, None)
        return pixels.to(self.device)

    def _check_pool(self, pool: Pool | None) -> Pool:
        if pool is None or pool not in get_args(Pool):
            raise UserError(f"pool={pool!r}: expected one of {', '.join(get_args(Pool))}")
        check(self.encoder, FeatureSpec(pool))
        return pool

    def _source(self, images: Any) -> Source:
        if isinstance(images, str | Path) and not is_image_file(images):
            return Opened(given(expand(str(images)), load_any, self.how, {}, (), WHOLE)).train
        bounds, channels = self.how.value_range, self.encoder.channels
        value_range = None if bounds is None else (bounds[0], bounds[1])
        if isinstance(images, Dataset):
            return DatasetSource(images, type(images).__name__, Target(MAX_PIXELS, channels, value_range))
        return Held(images_in(images), channels, value_range)

    def _passed(
        self, source: Source, encode: Callable[[Tensor], list[Tensor]], batch_size: int, workers: int | None
    ) -> tuple[list[Tensor], list[int], list[Bad]]:
        """What comes out of `encode` for the usable images, on the CPU, their numbers, and the bad images."""
        for name, value, least in (("batch_size", batch_size, 1), ("workers", workers or 0, 0)):
            if value < least:
                raise UserError(f"{name}={value}: expected at least {least}")
        batches, interpolation = batched(range(len(source)), batch_size), self.how.interpolation
        crops = CentreCrops(
            source,
            np.arange(len(source)),
            self.encoder.image_size,
            self.how.crop_pct,
            interpolation,  # type: ignore[arg-type]  # checked before
        )
        normalize = Normalize(self.how.mean, self.how.std, self.device)
        number = _workers(source, len(batches)) if workers is None else workers
        made: list[list[Tensor]] = []
        used: list[int] = []
        bad: list[Bad] = []
        with ExitStack() as stack:
            stack.enter_context(handlers_kept())
            stack.enter_context(evaluating(self.encoder))
            if len(batches) > 1 and current() is None:
                stack.enter_context(Bars())
            shown = task("images", len(source))
            found = encoded(crops, batches, encode, normalize, self.device, number)
            for batch, (out, rows, refused) in zip(batches, found, strict=True):
                if refused and isinstance(source, Held):
                    raise _unusable(min(set(batch) - set(rows)), *refused[0])
                made += [] if out is None else [[part.cpu() for part in out]]
                used, bad = used + rows, bad + refused
                shown.advance(len(batch))
            shown.close()
        if not made:
            raise UserError(f"none of {len(source)} images can be used, the first: {': '.join(bad[0])}. Look at them.")
        return [torch.cat(column) for column in zip(*made, strict=True)], used, bad

    def __repr__(self) -> str:
        height, width = self.encoder.image_size
        kind = f"classifier of {len(self.classes)} classes" if self.classes else "encoder"
        read = f"{height}x{width} pixels, {self.encoder.channels} channels, {self.how.pool} pooling"
        return f"Model({self.path}: {kind}, {self.encoder.model}, {read}, on {self.device})"


def _workers(source: Source, batches: int) -> int:
    """Processes that load: none for images in memory, or for one batch."""
    if isinstance(source, Held) and source.in_memory:
        return 0
    return max(0, min(MOST_WORKERS, cores() - 1, batches - 1))


def _unusable(number: int, key: str, reason: str) -> UserError:
    name = f"images[{number}]"
    return UserError(f"{name if key == name else f'{name} ({key})'}: {reason}. Mend it, or leave it out.")


def load(
    path: str | Path,
    *,
    image_size: int | None = None,
    crop_pct: float | None = None,
    pool: Pool | None = None,
    device: str | torch.device = "auto",
) -> Model:
    """Load an encoder or a classifier with its own preprocessing.

    Args:
        path: an export folder (runs/NAME/export), METHOD:FILE.pth of an official release, timm:NAME, or
            PACKAGE.MODULE:NAME:FOLDER of a network outside timm.
        image_size: side that the encoder sees, pixels; positions are resampled. None = as exported.
        crop_pct: share of the side that the centre crop keeps; None = as exported.
        pool: of tokens into one vector; None = as exported.
        device: auto takes an accelerator if there is one.

    Raises:
        UserError: nothing loadable is there, or an argument does not fit.
    """
    where = expand(str(path))
    told: dict[str, Any] = {"crop_pct": crop_pct, "pool": pool}
    if where.startswith(("timm:", "scratch:")) or where.endswith(OFFICIAL):
        encoder, how, _ = prepare(where, image_size, **told)
        return Model(where, encoder, how).to(device)
    folder, config = opened(where)
    if not config["num_classes"] and "linear_head" not in config:
        encoder, how, _ = prepare(where, image_size, **told)
        return Model(where, encoder, how).to(device)
    if image_size is not None:
        raise UserError(f"{where} is a classifier for its own image size; leave image_size={image_size} out")
    encoder, how = _backbone(where)
    how = how._replace(**{name: value for name, value in told.items() if value is not None})
    names = config.get("linear_head", config).get("label_names", [])
    return Model(where, encoder, how, Classifier(network(folder, config), tuple(names))).to(device)


def _backbone(where: str) -> tuple[Encoder, Preprocessing]:
    """The encoder of a classifier, of its own, and its preprocessing."""
    found, how = find(where).encoder, preprocessing_of(where)
    encoder = fitted(found, found.image_size, found.channels)
    return encoder, how._replace(pool=how.pool or encoder.default_pool, size=encoder.image_size)
