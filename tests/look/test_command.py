"""`unlabeled look`: one page about what an encoder makes of pictures, whatever the pictures are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support import SHOWN_PRETRAIN

from unlabeled.__main__ import main
from unlabeled.backbone.config import EncoderConfig
from unlabeled.backbone.folder import Preprocessing, export_encoder
from unlabeled.look.mapped import Mapped

COUNT, BAD, COPY = 20, 4, (7, 12)
PREPARED = Preprocessing((0.5, 0.4, 0.3), (0.2, 0.3, 0.4), crop_pct=0.9, interpolation="bilinear")
SMALL = ("--workers", "0", "--device", "cpu", "--queries", "2")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of two classes, one broken and one twice, in both splits; and an export."""
    home, random = tmp_path_factory.mktemp("look"), np.random.default_rng(0)
    for number in range(COUNT):
        file = home / "pictures" / ("train", "val")[number % 2] / "ab"[number % 3 % 2] / f"{number:02d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(256, size=(20 + number, 24, 3), dtype=np.uint8)).save(file)
        if number == BAD:
            file.write_bytes(b"no picture")
    one, other = (next((home / "pictures").rglob(f"{number:02d}.png")) for number in COPY)
    other.write_bytes(one.read_bytes())
    torch.manual_seed(0)
    config = EncoderConfig(model="vit_tiny_patch16_224", patch_size=4, width=16, depth=2, heads=2)
    export_encoder(home / "export", config.build((16, 16)), PREPARED, "card", {})
    return home


def look(home: Path, out: Path, *options: str, pictures: str = "pictures") -> int:
    return main(["look", str(home / "export"), str(home / pictures), str(out), *SMALL, *options])


def read(out: Path) -> Mapped:
    return Mapped.model_validate_json((out / "look" / "map.json").read_bytes())


def test_a_page_about_splits(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert look(home, tmp_path / "out") == 0
    assert sorted(file.name for file in (tmp_path / "out" / "look").iterdir()) == [
        "about.json",
        "attention.png",
        "map.jpg",
        "map.json",
        "pca.png",
    ]
    found = read(tmp_path / "out")
    assert found.about == f"{COUNT - 1} of {COUNT} pictures of {home / 'pictures'}"
    assert (found.left_out, len(found.queries)) == (1, 2)
    assert found.words["split"] == ["train"] * 9 + ["val"] * 10
    assert found.words["class"] == [Path(name).parent.name for name in found.names]
    copies = {Path(found.names[place]).name for place in found.duplicates[0].places}
    assert (copies, found.duplicates[0].cosine) == ({"07.png", "12.png"}, 1.0)
    page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert page.count("data:image/png") >= 2 and "data:image/jpeg" in page
    printed = capsys.readouterr().out
    assert "07.png" in printed and "UMAP needs at least 50 pictures" in printed


def test_one_folder_of_one_split(home: Path, tmp_path: Path) -> None:
    assert look(home, tmp_path / "out", "--split", "val", "--examples", "0") == 0
    found = read(tmp_path / "out")
    assert set(found.words) == {"class", "cluster"}
    assert found.root == f"{home}/pictures/val/"
    assert {name[:2] for name in found.names} == {"a/", "b/"}
    assert not (tmp_path / "out" / "look" / "pca.png").exists()


def test_pictures_without_classes_and_the_same_again(home: Path, tmp_path: Path) -> None:
    for out in ("one", "two"):
        assert look(home, tmp_path / out, "--most", "5", "--seed", "3", pictures="pictures/train/a") == 0
    found = read(tmp_path / "one")
    assert (set(found.words), found.numbers, len(found.names) + found.left_out) == ({"cluster"}, {}, 5)
    for file in (tmp_path / "one" / "look").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / "look" / file.name).read_bytes()


def test_pictures_of_a_recipe(home: Path, tmp_path: Path) -> None:
    (recipe := home / "tiny.yaml").write_text(SHOWN_PRETRAIN)
    assert look(home, tmp_path / "out", "--split", "val", pictures="tiny.yaml") == 0
    assert len(read(tmp_path / "out").names) == 20
    assert look(home, tmp_path / "out", "--split", "test", pictures="tiny.yaml") == 2
    recipe.unlink()


def test_a_network_that_gives_vectors_is_mapped(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    address, pictures = "scratch:timm:resnet10t", str(home / "pictures")
    assert main(["look", address, pictures, str(tmp_path / "out"), "--image-size", "4", *SMALL]) == 0
    assert "no positions to show" in capsys.readouterr().out
    assert len(read(tmp_path / "out").names) == COUNT - 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--most", "1"), "--most 1: expected at least 2"),
        (("--split", "nowhere"), "nowhere"),
        (("--image-size", "17"), "--image-size 17"),
        (("--crop-pct", "1.5"), "--crop-pct"),
        (("--pool", "cls", "data.nonsense=1"), "nonsense"),
        (("--device", "abacus"), "--device abacus"),
    ],
)
def test_bad_options_are_said(
    home: Path, tmp_path: Path, options: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert look(home, tmp_path / "out", *options) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_lies_in_the_way_stays(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, site = tmp_path / "run", tmp_path / "site"
    for folder, name in ((run, "recipe.yaml"), (site, "index.html")):
        folder.mkdir()
        (folder / name).write_text("mine")
    assert (look(home, run), look(home, site)) == (2, 2)
    said = capsys.readouterr().err
    assert "is the folder of a run" in said and "holds a page of something else" in said
    assert [file.read_text() for file in (run / "recipe.yaml", site / "index.html")] == ["mine", "mine"]
    assert look(home, tmp_path / "out", "--examples", "2") == 0
    (stale := tmp_path / "out" / "look" / "attention-step-00000001.png").touch()
    assert look(home, tmp_path / "out", "--examples", "0") == 0
    assert not stale.exists()


def test_features_that_are_not_finite_are_said(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    encoder = EncoderConfig(model="vit_tiny_patch16_224", patch_size=4, width=16, depth=2, heads=2).build((16, 16))
    torch.nn.init.constant_(encoder.vit.norm.weight, float("nan"))
    export_encoder(broken := tmp_path / "export", encoder, PREPARED, "card", {})
    assert main(["look", str(broken), str(home / "pictures"), str(tmp_path / "out"), *SMALL]) == 2
    assert "not finite" in capsys.readouterr().err
