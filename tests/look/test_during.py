"""What a run leaves in `look/`, that it changes no weight, and that its trouble ends nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support import SHOWN_PRETRAIN, metrics, weights

from unlabeled.backbone.weights import load_encoder
from unlabeled.data.batch.loader import Normalize
from unlabeled.data.opened import Opened
from unlabeled.data.view.views import center_crop
from unlabeled.launch.program import main
from unlabeled.look import attention, components, during
from unlabeled.look.mapped import Mapped
from unlabeled.look.neighbours import directions, nearest
from unlabeled.look.recipe import Look
from unlabeled.stages.pretrain import STAGE

DRAWN = ("run.pictures_every=8", "look.examples=3", "look.pictures=40", "look.queries=2")


def pretrain(output: Path, *overrides: str) -> Path:
    (recipe := output.with_suffix(".yaml")).write_text(SHOWN_PRETRAIN)
    assert main("pretrain", [str(recipe), f"run.output={output}", *overrides]) == 0
    return output


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pretrain(tmp_path_factory.mktemp("runs") / "drawn", *DRAWN, "look.every=8")


def names(output: Path) -> list[str]:
    return sorted(file.name for file in (output / "look").iterdir())


def test_a_run_is_drawn_and_not_changed(drawn: Path, tmp_path: Path) -> None:
    plain = pretrain(tmp_path / "plain", *DRAWN[:1], "look=null")
    assert names(drawn) == [
        "about.json",
        *(f"attention-step-{step:08d}.png" for step in (8, 15)),
        "map.jpg",
        "map.json",
        *(f"pca-step-{step:08d}.png" for step in (8, 15)),
    ]
    assert not (plain / "look").exists()
    one, other = weights(drawn, 15), weights(plain, 15)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert [row.get("loss") for row in metrics(drawn)] == [row.get("loss") for row in metrics(plain)]
    found = Mapped.model_validate_json((drawn / "look" / "map.json").read_bytes())
    assert (len(found.names), found.step, found.left_out) == (32, 15, 0)
    assert found.about == "32 pictures of val and train"
    assert set(found.words) == {"class", "split", "cluster"}
    about = json.loads((drawn / "look" / "about.json").read_text())
    assert about["attention"].startswith("Attention of the class token in the last block.")


def test_the_map_is_of_the_exported_encoder(drawn: Path) -> None:
    """Neighbours in the file are those of features that are made anew, one image at a time."""
    found = Mapped.model_validate_json((drawn / "look" / "map.json").read_bytes())
    encoder, recipe = load_encoder(drawn / "export").eval(), STAGE.load(drawn / "recipe.yaml")[0]
    normalize, features, classes = Normalize(recipe.data.mean, recipe.data.std, torch.device("cpu")), [], []
    sources = {"train": Opened(recipe.data).train, "val": Opened(recipe.data).val}
    for name in found.names:
        split, number = name.split("/")
        source = sources[split]
        crop = center_crop(source.image(int(number)), (16, 16), 0.875, "bicubic")
        features.append(encoder(normalize(crop.unsqueeze(0))).patches.mean(1).detach())
        classes.append(source.classes[source.labels[int(number)]])
    assert (found.root, found.words["class"]) == ("shapes/", classes)
    near = nearest(directions(torch.cat(features)), 8)
    assert len(found.queries) == 2
    for query in found.queries:
        assert [cosine for _, cosine in query.neighbours] == pytest.approx(near.cosines[query.place].tolist(), abs=2e-3)


def test_a_run_is_drawn_the_same_again(drawn: Path, tmp_path: Path) -> None:
    """To the byte; the map that is made on the way is replaced by that of the end."""
    second = pretrain(tmp_path / "second", *DRAWN)
    for name in names(drawn):
        assert (drawn / "look" / name).read_bytes() == (second / "look" / name).read_bytes(), name


def test_trouble_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fails(*_: Any) -> None:
        raise RuntimeError("no room\nat all")

    for owner, name in ((attention, "of"), (components, "of"), (during, "describe")):
        monkeypatch.setattr(owner, name, fails)
    output = pretrain(tmp_path / "run", *DRAWN, "look.every=8")
    said = capfd.readouterr().err
    for part in ("attention", "components", "map"):
        assert said.count(f"look: no {part}: no room. The run goes on; look=null leaves this out.") == 1
    assert "at all" not in said
    assert (output / "export").is_dir()
    assert not (output / "look").exists()


def test_a_folder_that_cannot_be_written_is_a_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (output := tmp_path / "run").mkdir()
    (output / "look").write_text("a file in the way")
    (tmp_path / "run.yaml").write_text(SHOWN_PRETRAIN)
    assert main("pretrain", [str(tmp_path / "run.yaml"), f"run.output={output}", *DRAWN, "train.epochs=1"]) == 0
    assert "look: no map: " in capfd.readouterr().err


def test_a_map_costs_a_share_of_the_run() -> None:
    look = Look(pictures=2000)
    assert look.most(steps=100, batch_size=64) == 64
    assert look.most(steps=10**6, batch_size=256) == 2000
    assert look.most(steps=1, batch_size=1) == 32
    assert Look(pictures=5).most(10**6, 256) == 5
    assert [look.way(seconds) for seconds in (10, 3000)] == ["pca", "auto"]
    assert Look(map="umap").way(10) == "umap"
