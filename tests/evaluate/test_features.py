from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from support import on_processes
from torch import Tensor

from unlabeled.backbone.config import EncoderConfig
from unlabeled.backbone.encoder import Encoder
from unlabeled.backbone.pooling import encoder_features
from unlabeled.data.batch.loader import Normalize
from unlabeled.data.source import Source
from unlabeled.errors import BadSample, UserError
from unlabeled.evaluate.features import extract

CPU = torch.device("cpu")
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)


def pixels(images: Tensor) -> Tensor:
    return images.flatten(1)


class FakeSource(Source):
    """Eleven random 12x12 pictures; number 4 is bad, 2 and 9 have no label."""

    classes = ("a", "b", "c")

    def __init__(self, bad: tuple[int, ...] = (4,)) -> None:
        self.labels = np.array([0, 1, -1, 2, 0, 1, 2, 0, 1, -1, 2], dtype=np.int64)
        self.pictures = torch.randint(
            256, (11, 3, 12, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
        )
        self.bad = bad

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, i: int) -> Tensor:
        if i in self.bad:
            raise BadSample(self.key(i), "truncated")
        return self.pictures[i]

    def key(self, i: int) -> str:
        return f"{i}.png"

    def fingerprint(self) -> str:
        return "fake"


def raw_pixels(source: FakeSource, **options: object) -> tuple[Tensor, Tensor]:
    options = {"shape": (8, 8), "crop_pct": 8 / 12, "batch_size": 2, **options}
    found = extract(pixels, source, normalize=Normalize(MEAN, STD, CPU), device=CPU, **options)  # type: ignore[arg-type]
    return found.x, found.y


def naive(source: FakeSource, rows: list[int]) -> tuple[Tensor, Tensor]:
    centre = source.pictures[rows, :, 2:10, 2:10].float() / 255
    normalised = (centre - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    return normalised.flatten(1), torch.from_numpy(source.labels[rows])


@pytest.mark.parametrize("workers", [0, 1])
def test_good_labelled_pictures_in_order(workers: int, caplog: pytest.LogCaptureFixture) -> None:
    source = FakeSource()
    with caplog.at_level(logging.WARNING):
        x, y = raw_pixels(source, workers=workers)
    expected_x, expected_y = naive(source, [0, 1, 3, 5, 6, 7, 8, 10])
    torch.testing.assert_close(x, expected_x)
    assert y.tolist() == expected_y.tolist()
    assert "4.png: truncated" in caplog.text


def test_only_the_indices_asked_for() -> None:
    source = FakeSource()
    x, y = raw_pixels(source, indices=np.array([1, 2, 4, 8]))
    torch.testing.assert_close(x, naive(source, [1, 8])[0])
    assert y.tolist() == [1, 1]


def test_nothing_left_is_the_users_error() -> None:
    with pytest.raises(UserError, match="1 cannot be read"):
        raw_pixels(FakeSource(), indices=np.array([2, 4]))


def test_a_class_of_which_nothing_can_be_used_is_named(caplog: pytest.LogCaptureFixture) -> None:
    raw_pixels(FakeSource(bad=(3, 6)))
    assert "evaluation leaves out 2 of 9 pictures, the first: 3.png: truncated" in caplog.text
    assert "can be used, such as" not in caplog.text
    raw_pixels(FakeSource(bad=(3, 6, 10)))
    assert "no picture of 1 classes can be used, such as 'c': scores say nothing of them" in caplog.text


def test_too_many_bad_pictures_are_refused() -> None:
    raw_pixels(FakeSource(bad=(3, 6)), max_bad=2 / 9)
    with pytest.raises(UserError, match=r"2 of 9 labelled pictures cannot be used, more than .*max_bad_fraction 0.2 "):
        raw_pixels(FakeSource(bad=(3, 6)), max_bad=0.2)


def test_torch_random_state_is_untouched() -> None:
    before = torch.get_rng_state()
    raw_pixels(FakeSource(), workers=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_processes_share_the_work_and_all_get_the_whole() -> None:
    for rank, both in enumerate(on_processes(_one_rank)):
        for (x, y, numbers, encoded), rows, counts in zip(both, GOOD_OF_TWO, ENCODED_OF_TWO, strict=True):
            expected_x, expected_y = naive(FakeSource(), rows)
            torch.testing.assert_close(x, expected_x)
            assert y.tolist() == expected_y.tolist()
            assert numbers.tolist() == rows
            assert encoded == counts[rank]


def tiny_encoder(drop_path: float = 0.0, model: str = "vit_tiny_patch16_224") -> Encoder:
    torch.manual_seed(0)
    return EncoderConfig(model=model, patch_size=4, width=16, depth=2, heads=2, drop_path=drop_path).build((8, 8))


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_encodes_in_evaluation_mode_and_gives_every_mode_back(pool: str) -> None:
    encoder, images = tiny_encoder(drop_path=0.9), torch.randn(3, 3, 8, 8)
    tokens = encoder.eval()(images)
    expected = tokens.prefix[:, 0] if pool == "cls" else tokens.patches.sum(1) / 4
    encoder.train()
    encoder.vit.blocks[0].eval()
    found = encoder_features(encoder, pool)(images)  # type: ignore[arg-type]
    torch.testing.assert_close(found, expected.detach())
    assert not found.requires_grad
    assert encoder.training and encoder.vit.blocks[1].training and not encoder.vit.blocks[0].training


def test_class_token_where_there_is_none() -> None:
    encoder = tiny_encoder()
    encoder.vit.cls_token = None
    with pytest.raises(UserError, match="pool=mean"):
        encoder_features(encoder, "cls")


# of the labelled 0 1 3 4 5 6 7 8 10 the second process gets 1 4 6 8: once one of them is bad, once all are
BAD_OF_TWO = [(4,), (1, 4, 6, 8)]
GOOD_OF_TWO = [[0, 1, 3, 5, 6, 7, 8, 10], [0, 3, 5, 7, 10]]
ENCODED_OF_TWO = [(5, 3), (5, 0)]


def _one_rank(rank: int) -> list[tuple[Tensor, Tensor, Tensor, int]]:
    both = []
    for bad in BAD_OF_TWO:
        encoded: list[Tensor] = []

        def noted(images: Tensor, into: list[Tensor] = encoded) -> Tensor:
            into.append(images)
            return pixels(images)

        found = extract(
            noted,
            FakeSource(bad),
            shape=(8, 8),
            crop_pct=8 / 12,
            normalize=Normalize(MEAN, STD, CPU),
            device=CPU,
            batch_size=2,
            rank=rank,
            world=2,
        )
        assert found.numbers is not None
        both.append((found.x, found.y, found.numbers, sum(map(len, encoded))))
    return both
