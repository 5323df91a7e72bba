"""Measures without labels: which features they are taken of, and views by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from evaluate.test_command import evaluate, export, pictures  # noqa: F401 - a fixture
from evaluate.test_protocol import FakeData, FakeSource
from PIL import Image
from torch import Tensor

from unlabeled.backbone.config import EncoderConfig
from unlabeled.backbone.encoder import Encoder
from unlabeled.backbone.weights import load_encoder
from unlabeled.data.batch.loader import Normalize, sample_rng
from unlabeled.data.sources.files import Config as Files
from unlabeled.data.view.percrop import recolour_and_normalize
from unlabeled.data.view.views import View
from unlabeled.errors import BadSample, UserError
from unlabeled.evaluate.bench import Bench
from unlabeled.evaluate.evaluation import Evaluation, Evaluator, measured
from unlabeled.evaluate.protocols import labelfree
from unlabeled.evaluate.protocols.cka import Config as Cka
from unlabeled.evaluate.protocols.labelfree import Config as LabelFree
from unlabeled.evaluate.protocols.labelfree import choose, view_features
from unlabeled.evaluate.splits import Splits
from unlabeled.nn.measures import alignment, lidar, linear_cka, spectral_rank, uniformity

CPU = torch.device("cpu")
VIEW = View(count=3, size=8, scale=(0.5, 1.0), jitter=(0.4, 0.4, 0.2, 0.1))


def make(depth: int = 3) -> Encoder:
    torch.manual_seed(0)
    config = EncoderConfig(model="vit_tiny_patch16_224", patch_size=4, width=16, depth=depth, heads=2)
    return config.build((8, 8)).train()


def splits(data: FakeData | None = None, **config: Any) -> Splits:
    settings = {"pool": "mean", "crop_pct": 1.0, "batch_size": 7, "knn": None, "linear": None, **config}
    return Splits(Evaluation.model_validate(settings), data or FakeData(), CPU)


def by_hand(source: FakeSource, index: int, view: View = VIEW, seed: int = 5) -> Tensor:
    """Normalised views [q, C, H, W] of one picture."""
    crops = view.sample(source.pictures[index], sample_rng(seed, 0, index), 1)
    assert crops.colours is not None
    normalize = Normalize(FakeData().config.mean, FakeData().config.std, CPU)
    return recolour_and_normalize(crops.pixels, crops.colours, normalize.scale, normalize.shift)


def test_views_belong_to_their_picture_and_bad_ones_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    data = FakeData()
    source = data.splits["val"]
    image = source.image
    chosen = [int(i) for i in choose(30, 12, seed=5)]
    bad = chosen[3]

    def read(i: int) -> Tensor:
        if i == bad:
            raise BadSample(str(i), "torn")
        return image(i)

    source.image = read  # type: ignore[method-assign]
    found = view_features(lambda images: images.flatten(1), splits(data), VIEW, 12, seed=5)
    expected = torch.stack([by_hand(source, i).flatten(1) for i in chosen if i != bad])
    torch.testing.assert_close(found, expected)
    assert len(set(chosen)) == 12 and chosen == sorted(chosen) and chosen != list(range(12))
    assert choose(5, 12, seed=5).tolist() == list(range(5))

    # of two processes each encodes a share, and gets the whole
    shares: list[Any] = []
    monkeypatch.setattr(labelfree, "gather_objects", lambda share: shares.append(share) or shares)
    for rank in (0, 1):
        part = Splits(Evaluation(), data, CPU, rank=rank, world=2)
        whole = view_features(lambda images: images.flatten(1), part, VIEW, 12, seed=5)
    assert [len(share[0]) for share in shares] == [6, 5] and torch.equal(whole, found)


def test_scores_are_of_plain_pictures_and_of_views() -> None:
    encoder, config = make(), LabelFree(pictures=20, views=4, delta=1e-3, epsilon=1e-5)
    bench = Bench(encoder, splits(labelfree=config), (8, 8))
    state = torch.get_rng_state()
    found = {score.name: score.value for score in measured("labelfree", config, bench)}
    assert torch.equal(torch.get_rng_state(), state) and encoder.training

    source, view = bench.splits.sources[1], config.augmentation(bench.splits, (8, 8))
    assert (view.count, view.shape, view.flip, view.jitter) == (4, (8, 8), 0.5, (0.4, 0.4, 0.2, 0.1))
    with torch.no_grad():
        images = torch.cat([by_hand(source, int(i), view, seed=0) for i in choose(30, 20, 0)])  # type: ignore[arg-type]
        views = encoder.eval()(images).patches.mean(1).unflatten(0, (20, 4))
    plain = bench.features("mean")[1].x
    expected = {
        "labelfree_rankme": spectral_rank(plain, 1e-5),
        "labelfree_lidar": lidar(views, 1e-3, 1e-5),
        "labelfree_alignment": alignment(views),
        "labelfree_uniformity": uniformity(plain),
    }
    assert found == pytest.approx(expected, rel=1e-4)
    assert dict(Evaluator(bench.splits.preparation, bench.splits, (8, 8))(encoder)) == pytest.approx(found)


def test_views_that_do_not_suit_are_the_users_error() -> None:
    grey = FakeData()
    grey.config = Files(path="x", mean=(0.5,), std=(0.5,))
    assert LabelFree().augmentation(splits(grey)).jitter is None
    wrong = splits(grey, labelfree={"view": VIEW.model_dump()})
    with pytest.raises(UserError, match=r"labelfree\.view: .*is for 3 channels, found 1"):
        wrong.preparation.check(wrong)
    masked = LabelFree.model_validate({"view": {"mask": {"name": "random", "ratio": 0.5}}})
    with pytest.raises(UserError, match=r"labelfree\.view\.mask"):
        masked.check(splits())


@torch.no_grad()
def test_cka_of_blocks() -> None:
    encoder = make()
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    bench = Bench(encoder, splits(), (8, 8))
    found = {score.name: score for score in measured("cka", Cka(), bench)}
    images = (bench.splits.sources[1].pictures.float() / 255 - 0.5) / 0.25  # type: ignore[attr-defined]
    blocks = [tokens.patches.mean(1) for tokens in encoder.eval().intermediate(images, [0, 1, 2])]
    table = np.array([[linear_cka(x, y) for y in blocks] for x in blocks])
    np.testing.assert_allclose(found["cka_neighbours"].details["blocks"], table, rtol=1e-4)  # type: ignore[index]
    assert found["cka_neighbours"].value == pytest.approx((table[0, 1] + table[1, 2]) / 2, rel=1e-4)
    assert found["cka_ends"].value == pytest.approx(table[0, 2], rel=1e-4)
    assert len({round(value, 4) for value in table[np.triu_indices(3, 1)]}) == 3

    [last] = [score for score in Cka(blocks=2, unbiased=True).scores(bench) if score.name == "ends"]
    assert last.value == pytest.approx(linear_cka(blocks[1], blocks[2], unbiased=True), rel=1e-4)
    with pytest.raises(UserError, match="--against EXPORT"):
        list(Cka(blocks=1).scores(bench))
    with pytest.raises(UserError, match=r"cka\.pool=mean"):
        list(Cka(pool="cls_mean").scores(bench))


def test_cka_against_another_export(
    pictures: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one, other = (export(tmp_path / name, seed) for seed, name in enumerate("ab"))
    # the other one was normalised its own way
    config = json.loads((Path(other) / "config.json").read_text(encoding="utf-8"))
    config["pretrained_cfg"]["mean"] = [0.1, 0.2, 0.3]
    (Path(other) / "config.json").write_text(json.dumps(config), encoding="utf-8")
    options = ("--data", str(pictures), "--pool", "mean", "--crop-pct", "1", "--protocol", "cka")
    file = tmp_path / "found.json"
    assert evaluate(one, *options, "--against", other, "--json", str(file)) == 0
    score = json.loads(file.read_text(encoding="utf-8"))["rows"][0]["scores"]["cka_against"]

    files = sorted((pictures / "val").glob("*/*.png"))
    images = torch.from_numpy(np.stack([np.asarray(Image.open(file)) for file in files])).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        x = load_encoder(one).eval()((images - 0.5) / 0.25).patches.mean(1)
        mean = torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)
        y = load_encoder(other).eval()((images - mean) / 0.25).patches.mean(1)
    assert score["mean"] == pytest.approx(linear_cka(x, y), rel=1e-4)
    assert score["details"] == [{"blocks": [[score["mean"]]]}]
    with pytest.raises(UserError, match="Add cka to --protocol"):
        evaluate(one, "--data", str(pictures), "--against", other)
