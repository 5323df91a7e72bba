"""An encoder as a transformer of scikit-learn: images in, features out, in a `Pipeline`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unlabeled.backbone.encoder import Pool
from unlabeled.errors import UserError
from unlabeled.interface.model import BATCH, Model, load

try:
    from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
    from sklearn.utils.validation import check_is_fitted
except ImportError as error:
    raise UserError("unlabeled.Embedder needs scikit-learn. Run `pip install scikit-learn`.") from error


class Embedder(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Features of images by a frozen encoder. `fit` learns nothing: it loads the encoder.

    `X` is what `Model.embed` takes: paths, Pillow images, arrays or tensors. All parameters are those of
    `unlabeled.load` and `Model.embed`, and may be searched, as `embedder__pool` in a pipeline.

    Attributes:
        model_: the encoder, after `fit`.
    """

    def __init__(
        self,
        encoder: str | Path | Model,
        *,
        pool: Pool | None = None,
        image_size: int | None = None,
        crop_pct: float | None = None,
        batch_size: int = BATCH,
        workers: int | None = None,
        device: str = "auto",
    ) -> None:
        self.encoder, self.pool, self.image_size, self.crop_pct = encoder, pool, image_size, crop_pct
        self.batch_size, self.workers, self.device = batch_size, workers, device

    def fit(self, X: Any, y: Any = None) -> Embedder:
        """Load the encoder. Raises UserError when there is none, or a parameter does not fit."""
        how: dict[str, Any] = {"image_size": self.image_size, "crop_pct": self.crop_pct, "pool": self.pool}
        path = self.encoder.path if isinstance(self.encoder, Model) else self.encoder
        self.model_ = load(path, device=self.device, **how)
        return self

    def transform(self, X: Any) -> NDArray[np.float32]:
        """Compute features [N, D] of images. Raises UserError where one cannot be used."""
        check_is_fitted(self)
        found = np.asarray(self.model_.embed(X, batch_size=self.batch_size, workers=self.workers))
        self._n_features_out = found.shape[1]
        return found

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.no_validation = True  # images are no table of numbers
        tags.input_tags.two_d_array, tags.input_tags.string = False, True
        return tags
