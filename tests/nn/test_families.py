"""Families of networks are files: each is found by its name, and answers for itself before there is a network."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from unlabeled.backbone import families as package
from unlabeled.backbone.build import families, family_of
from unlabeled.backbone.config import EncoderConfig
from unlabeled.backbone.encoder import Encoder

ANOTHER = """
from unlabeled.backbone.transformer import Transformer


class Another(Transformer):
    any_size = False
    positions = ("sincos",)

    @classmethod
    def claims(cls, model):
        return 20 if model == "vit_small_patch16_224" else 0

    @classmethod
    def in_words(cls, model):
        return f"another '{model}'"
"""


@pytest.fixture
def another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One more file in the folder, which is the whole of what a family needs."""
    (tmp_path / "another.py").write_text(ANOTHER, encoding="utf-8")
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    for cached in (families, family_of):
        cached.cache_clear()
    yield
    for cached in (families, family_of):
        cached.cache_clear()


@pytest.mark.usefixtures("another")
def test_a_file_is_a_family() -> None:
    assert sorted(families()) == ["another", "beit", "hiera", "maps", "module", "rope", "swin", "vit"]
    config = EncoderConfig(model="vit_small_patch16_224")
    assert config.family.__name__ == "Another" and config.in_words == "another 'vit_small_patch16_224'"
    assert EncoderConfig(model="vit_tiny_patch16_224").family.__name__ == "Vit"
    with pytest.raises(ValueError, match="MAE hides patches, which another 'vit_small_patch16_224' cannot"):
        config.require("MAE", hide="drop")
    with pytest.raises(ValueError, match="has no sincos_rows positions: expected sincos or learned"):
        EncoderConfig(model="vit_small_patch16_224", positions="sincos_rows")


BELONGS = {
    "vit_base_patch16_224": "vit",
    "deit3_small_patch16_224": "vit",
    "beitv2_base_patch16_224": "beit",
    "vit_base_patch16_dinov3": "rope",
    "eva02_tiny_patch14_224": "rope",
    "vit_pe_core_base_patch16_224": "rope",
    "resnet50": "maps",
    "efficientnet_b0": "maps",
    "swin_s3_tiny_224": "swin",
    "swinv2_tiny_window8_256": "swin",
    "swinv2_cr_tiny_224": "maps",
    "hiera_small_abswin_256": "hiera",
    "sam2_hiera_tiny": "maps",
}


@pytest.mark.parametrize(("model", "name"), BELONGS.items())
def test_a_model_belongs_to_the_family_that_claims_it_most_closely(model: str, name: str) -> None:
    assert family_of(model) is families()[name]


def test_a_family_is_final() -> None:
    """No concrete class inherits another: the forward of each is its own."""
    for family in families().values():
        assert "forward" in vars(family) and not family.__subclasses__()
        assert all(
            getattr(base, "__abstractmethods__", None) for base in family.__mro__[1:] if issubclass(base, Encoder)
        )
