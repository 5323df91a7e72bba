"""`unlabeled search`, from pictures to answers."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from unlabeled.__main__ import main
from unlabeled.backbone.folder import IMAGENET, export_encoder
from unlabeled.backbone.weights import load_weights
from unlabeled.errors import UserError
from unlabeled.interface.model import load
from unlabeled.report.document import Table
from unlabeled.search.answers import answers, table
from unlabeled.search.index import Index

ARGUMENTS = {"img_size": (16, 16), "in_chans": 3, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve pictures of two classes, an encoder, and features in either format."""
    home, rng = tmp_path_factory.mktemp("search"), np.random.default_rng(0)
    for number in range(12):
        (folder := home / "pictures" / ("ants" if number % 2 else "bees")).mkdir(parents=True, exist_ok=True)
        few = Image.fromarray(
            rng.integers(0, 255, (3, 2, 3), np.uint8)
        )  # enlarged: even an untrained encoder tells them
        few.resize((24, 20)).save(folder / f"{number:02d}.png")
    for name, seed in (("export", 0), ("other", 1)):
        torch.manual_seed(seed)
        encoder = load_weights("vit_tiny_patch16_224", dict(ARGUMENTS))
        export_encoder(home / name, encoder, IMAGENET._replace(pool="mean"), "# card\n", {})
    for kind in ("safetensors", "parquet"):
        told = ["--format", kind, "--shard", "5", "--device", "cpu", "--workers", "0"]
        assert main(["embed", str(home / "export"), str(home / "pictures"), str(home / kind), *told]) == 0
    return home


@pytest.mark.parametrize("kind", ["safetensors", "parquet"])
@pytest.mark.parametrize("built", [False, True])
def test_the_nearest_are_those_of_the_features(home: Path, tmp_path: Path, kind: str, built: bool) -> None:
    folder = shutil.copytree(home / kind, tmp_path / "features")
    if built:
        Index(folder).build()
    index, everything = Index(folder), load(home / "export").embed(home / "pictures")
    x = torch.nn.functional.normalize(everything.features, dim=1)
    asked = home / "pictures" / "ants" / "03.png"
    [hits] = index.search(asked, 5)
    order = (x @ x[everything.keys.index(hits[0].name)]).argsort(descending=True)[:5].tolist()
    assert [hit.name for hit in hits] == [everything.keys[number] for number in order]
    assert hits[0].name.endswith("ants/03.png") and hits[0].similarity == pytest.approx(1, abs=1e-5)
    assert {hit.label for hit in hits} <= {"ants", "bees"} and hits[0].label == "ants"
    assert (index.kind is not None) == built and len(index) == 12
    assert torch.equal(index.features(hits[3].number), everything.features[order[3]]) or torch.allclose(
        index.features(hits[3].number), everything.features[order[3]], atol=1e-6
    )
    # by its name it is not its own neighbour
    [one] = answers(index, [hits[0].name], 4)
    assert [hit.name for hit in one.hits] == [hit.name for hit in hits[1:]]
    parts = table([one, one._replace(hits=[hit._replace(label="") for hit in one.hits])], index).parts
    assert [part.head for part in parts if isinstance(part, Table)] == [("picture", "class", "similarity")] * 2
    [_, unlabelled] = table([one._replace(hits=[hits[0]._replace(label="")])], index).parts
    assert isinstance(unlabelled, Table) and unlabelled.head == ("picture", "similarity")
    assert len(unlabelled.rows[0]) == 2 and unlabelled.title == f"like {hits[0].name}"


def test_the_command_says_it_in_a_table_json_and_a_page(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, page = str(shutil.copytree(home / "safetensors", tmp_path / "features")), tmp_path / "page.html"
    like = [str(shutil.copy(home / "pictures" / "bees" / "00.png", tmp_path / "query.png")), "ants/05.png"]
    names = Index(folder).names
    like[1] = next(name for name in names if name.endswith(like[1]))
    assert main(["search", folder, "--like", *like, "--k", "3", "--html", str(page)]) == 0
    said = capsys.readouterr()
    assert "12 pictures, all compared (exact)" in said.out and f"the page is {page}" in said.err + said.out
    text = page.read_text(encoding="utf-8")
    assert text.count("like this") >= 2 and "data:image/jpeg" in text
    assert main(["search", folder, "--like", *like, "--k", "3", "--json", "--build"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [len(one["found"]) for one in told["answers"]] == [3, 3] and told["recall"] == 1.0
    assert told["answers"][0]["found"][0]["class"] == "bees"


def test_another_encoder_is_refused(home: Path, tmp_path: Path) -> None:
    index = Index(home / "safetensors")
    with pytest.raises(UserError, match=r"other is not the encoder of .*: weights"):
        index.search(home / "pictures" / "bees" / "00.png", encoder=home / "other")
    moved = shutil.copytree(home / "export", tmp_path / "moved")
    (config := moved / "config.json").write_text((moved / "config.json").read_text().replace("0.485", "0.5"))
    with pytest.raises(UserError, match=r"is not the encoder of .*: mean"):
        index.search(home / "pictures" / "bees" / "00.png", encoder=config.parent)


def test_what_is_wrong_is_said(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = shutil.copytree(home / "safetensors", tmp_path / "features")

    def refused(*words: str) -> str:
        assert main(["search", *words]) == 2
        said = capsys.readouterr().err
        assert "Traceback" not in said
        return said

    assert "holds no features" in refused(str(home / "pictures"), "--like", "x.png")
    assert "is no file, and no picture of" in refused(str(folder), "--like", "x.png")
    assert "nothing to do" in refused(str(folder))
    assert "--k 0: expected at least 1" in refused(str(folder), "--like", "x.png", "--k", "0")
    (tmp_path / "notes.png").write_text("no picture")
    assert "notes.png" in refused(str(folder), "--like", str(tmp_path / "notes.png"))
    Index(folder).build()
    (folder / "search.faiss").write_bytes(b"x")
    assert "Make it again" in refused(str(folder), "--like", "x.png")
    assert main(["search", str(folder), "--build"]) == 0
    (folder / "features-00001.safetensors").unlink()
    assert "features-00001.safetensors is gone" in refused(str(folder), "--like", "x.png")


def test_without_faiss_an_index_that_was_built_is_left_aside(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(home / "safetensors", tmp_path / "features")
    Index(folder).build()
    monkeypatch.setitem(sys.modules, "faiss", None)
    assert Index(folder).kind is None
    [hits] = Index(folder).search(home / "pictures" / "bees" / "00.png", 1)
    assert hits[0].name.endswith("bees/00.png")
