"""The transformer of scikit-learn: pipelines, searches, and scikit-learn's own checks where they apply."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import unlabeled
from unlabeled.backbone.config import EncoderConfig
from unlabeled.backbone.folder import Preprocessing, export_encoder

pytest.importorskip("sklearn")
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.utils import estimator_checks as checks

COUNT = 12


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Dark and bright pictures, and an export."""
    home, random = tmp_path_factory.mktemp("sklearn"), np.random.default_rng(0)
    for number in range(COUNT):
        pixels = random.integers(60, size=(20, 20, 3), dtype=np.uint8) + 150 * (number % 2)
        Image.fromarray(pixels.astype(np.uint8)).save(home / f"{number:02d}.png")
    config = EncoderConfig(model="vit_tiny_patch16_224", patch_size=4, width=16, depth=1, heads=2)
    export_encoder(home / "export", config.build((16, 16)), Preprocessing((0.5,) * 3, (0.2,) * 3, pool="mean"), "", {})
    return home


@pytest.fixture(scope="module")
def paths(home: Path) -> list[str]:
    return sorted(map(str, home.glob("*.png")))


def test_features_are_those_of_the_model(home: Path, paths: list[str]) -> None:
    embedder = unlabeled.Embedder(str(home / "export"), device="cpu")
    expected = np.asarray(unlabeled.load(home / "export", device="cpu").embed(paths))
    assert np.array_equal(embedder.fit_transform(paths), expected)
    assert np.array_equal(embedder.transform([np.array(Image.open(path)) for path in paths]), expected)
    assert list(embedder.get_feature_names_out())[:2] == ["embedder0", "embedder1"]
    by_model = unlabeled.Embedder(unlabeled.load(home / "export"), pool="cls", device="cpu")
    assert np.array_equal(by_model.fit_transform(paths), np.asarray(embedder.model_.embed(paths, pool="cls")))
    with pytest.raises(NotFittedError):
        clone(embedder).transform(paths)
    assert clone(embedder).get_params() == embedder.get_params()


def test_it_works_in_a_pipeline_and_a_search(home: Path, paths: list[str]) -> None:
    labels = [number % 2 for number in range(COUNT)]
    pipeline = make_pipeline(unlabeled.Embedder(str(home / "export"), device="cpu"), LogisticRegression())
    search = GridSearchCV(pipeline, {"embedder__pool": ["cls", "mean"]}, cv=2, error_score="raise")
    for given in (paths, np.array(paths), [Image.open(path) for path in paths]):
        assert search.fit(given, labels).score(given, labels) == 1.0
    assert set(search.cv_results_["param_embedder__pool"]) == {"cls", "mean"}
    with pytest.raises(unlabeled.UserError, match=r"images\[1\] \(nowhere.png\): cannot be read"):
        search.predict([paths[0], "nowhere.png"])


@pytest.mark.parametrize(
    "check",
    [
        checks.check_estimator_cloneable,
        checks.check_estimator_repr,
        checks.check_get_params_invariance,
        checks.check_no_attributes_set_in_init,
        checks.check_set_params,
        lambda _, embedder: checks.check_estimator(embedder),  # those that scikit-learn takes for applicable
    ],
)
def test_scikit_learns_own_checks(home: Path, check: Any) -> None:
    check("Embedder", unlabeled.Embedder(str(home / "export"), device="cpu"))


def test_without_scikit_learn_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "sklearn"]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "unlabeled.interface.transformer", raising=False)
    with pytest.raises(unlabeled.UserError, match="needs scikit-learn"):
        unlabeled.Embedder  # noqa: B018
