"""`unlabeled neighbours`: what the neighbours of pictures tell."""

from __future__ import annotations

import csv
import itertools
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from unlabeled.__main__ import main
from unlabeled.backbone.folder import IMAGENET, export_encoder
from unlabeled.backbone.weights import load_weights
from unlabeled.look.mapping import Described
from unlabeled.look.neighbours import Neighbours
from unlabeled.report.document import Text
from unlabeled.report.visuals import Sheet
from unlabeled.search.doubt import doubtful
from unlabeled.search.survey import Survey, page, survey

ARGUMENTS = {"img_size": (16, 16), "in_chans": 3, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as opened:
        return list(csv.DictReader(opened))


@pytest.mark.parametrize("seed", range(5))
def test_doubt_is_a_vote_of_the_neighbours(seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    n, k, classes = 60, 7, 4
    labels = torch.randint(-1, classes, (n,), generator=rng)
    numbers = torch.stack([torch.randperm(n, generator=rng)[:k] for _ in range(n)])
    expected = {}
    for i in range(n):
        votes = Counter(labels[number].item() for number in numbers[i] if labels[number] >= 0)
        most = max((votes[c] for c in range(classes) if c != labels[i]), default=0)
        if labels[i] >= 0 and most > votes[labels[i].item()]:
            total = sum(votes.values())
            expected[i] = (most / total, votes[labels[i].item()] / total)
    found = doubtful(Neighbours(torch.zeros(n, k), numbers), labels)
    assert {one.number: (pytest.approx(one.share), pytest.approx(one.own)) for one in found} == expected
    gaps = [(-round(one.share - one.own, 5), one.number) for one in found]
    assert gaps == sorted(gaps) and all(one.likely != one.label for one in found)


def test_labels_that_were_changed_are_found() -> None:
    rng = torch.Generator().manual_seed(0)
    centres = 5 * torch.randn(3, 12, generator=rng)
    true = torch.arange(90) % 3
    features = centres[true] + torch.randn(90, 12, generator=rng)
    told = true.clone()
    told[torch.tensor([4, 33, 71])] = (told[torch.tensor([4, 33, 71])] + 1) % 3
    names = [f"{i:02d}.png" for i in range(90)]
    found = survey(Described(features, names, ["abc"[i] for i in told.tolist()], (), 32, 0), 10, 0.999)
    assert sorted(one.number for one in found.doubts) == [4, 33, 71]
    assert all(found.classes[one.likely] == "abc"[true[one.number]] for one in found.doubts)
    assert found.groups == []
    assert not any("of the labels" in told for told in texts(found))
    mixed = survey(found.images._replace(classes=["abc"[i] for i in (torch.arange(90) // 7 % 3).tolist()]), 10, 0.999)
    assert f"This is {100 * len(mixed.doubts) / 90:.0f} % of the labels" in " ".join(texts(mixed))


def texts(found: Survey) -> list[str]:
    sheet = Sheet("a.jpg", 32, 10, len(found.images.names))
    return [part.text for part in page(found, sheet, []).parts if isinstance(part, Text)]


def test_without_labels_nothing_is_doubted() -> None:
    near = Neighbours(torch.zeros(3, 1), torch.tensor([[1], [2], [0]]))
    assert doubtful(near, torch.full((3,), -1)) == []


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of two colours in classes of these names, one of them wrong, one twice; and an encoder."""
    home, rng = tmp_path_factory.mktemp("survey"), np.random.default_rng(0)
    for split, count in (("train", 16), ("val", 6)):
        for number in range(count):
            name = ("green", "red")[number % 2]
            pixels = rng.integers(0, 90, (20, 24, 3), np.uint8)
            pixels[..., number % 2 == 0] += 150
            (folder := home / "pictures" / split / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / f"{number:02d}.png")
    shutil.move(home / "pictures/train/red/03.png", home / "pictures/train/green/wrong.png")
    shutil.copy(home / "pictures/train/red/05.png", home / "pictures/val/red/again.png")
    torch.manual_seed(0)
    encoder = load_weights("vit_tiny_patch16_224", dict(ARGUMENTS))
    export_encoder(home / "export", encoder, IMAGENET._replace(pool="mean"), "# card\n", {})
    return home


def test_the_command_writes_tables_and_a_page(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    told = ["--k", "5", "--threshold", "0.99999", "--device", "cpu", "--workers", "0"]
    assert main(["neighbours", str(home / "export"), str(home / "pictures"), str(out), *told]) == 0
    near = rows(out / "neighbours.csv")
    assert len(near) == 23 * 5 and [row["rank"] for row in near[:5]] == ["1", "2", "3", "4", "5"]
    later = [(a, b) for a, b in itertools.pairwise(near) if b["rank"] != "1"]
    assert all(float(a["similarity"]) >= float(b["similarity"]) for a, b in later)
    assert {row["split"] for row in near} == {"train", "val"}
    [first, second] = rows(out / "duplicates.csv")
    assert {Path(first["picture"]).name, Path(second["picture"]).name} == {"again.png", "05.png"}
    assert first["group"] == second["group"] and {first["split"], second["split"]} == {"train", "val"}
    wrong = rows(out / "labels.csv")[0]
    assert wrong["picture"].endswith("green/wrong.png") and (wrong["class"], wrong["likely"]) == ("green", "red")
    text = (out / "index.html").read_text(encoding="utf-8")
    assert "1 of them have pictures of several splits" in text and "data:image/jpeg" in text
    said = " ".join(capsys.readouterr().out.split())
    assert "train/green/wrong.png" in said and "1 groups" in said and "have more neighbours of one other class" in said
    assert (
        main(["neighbours", str(home / "export"), str(home / "pictures" / "train" / "red"), str(out / "flat"), *told])
        == 0
    )
    assert not (out / "flat" / "labels.csv").exists()


def test_what_does_not_fit_is_said(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    words = ["neighbours", str(home / "export"), str(home / "pictures")]
    for more, said in (
        ([str(tmp_path / "out"), "--threshold", "2"], "--threshold 2: expected a cosine"),
        ([str(tmp_path / "out"), "--k", "0"], "--k 0: expected at least 1"),
        ([str(tmp_path / "file" / "out"), "--device", "cpu", "--workers", "0"], "cannot be written"),
    ):
        assert main([*words, *more]) == 2
        error = capsys.readouterr().err
        assert said in error and "Traceback" not in error
