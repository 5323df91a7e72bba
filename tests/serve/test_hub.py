"""Exports on the Hugging Face Hub, against a stand-in of its HTTP interface and with its own library."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import timm
import torch
from hub import TOKEN, Hub, hub_on_loopback
from PIL import Image
from ruamel.yaml import YAML

from unlabeled.__main__ import main
from unlabeled.backbone.address import find
from unlabeled.backbone.encoder import Encoder
from unlabeled.backbone.folder import IMAGENET, export_encoder
from unlabeled.backbone.hub import downloaded
from unlabeled.backbone.weights import load_encoder, load_weights, preprocessing_of, weights_digest
from unlabeled.errors import UserError
from unlabeled.manifest import read_listed, verify_file
from unlabeled.serve.hub import header, push_to_hub

ARGUMENTS = {"img_size": (16, 16), "in_chans": 3, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}
CARD = "# tiny: mae encoder\n\n```python\nmodel = timm.create_model('local-dir:THIS_FOLDER', pretrained=True)\n```\n"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub in place of the real one, nothing of which was downloaded before; this person is logged in."""
    constants = huggingface_hub.constants
    with hub_on_loopback() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr("time.sleep", lambda seconds: None)  # between tries
        downloaded.cache_clear()
        yield server
    downloaded.cache_clear()


@pytest.fixture
def encoder() -> Encoder:
    torch.manual_seed(0)
    return load_weights("vit_tiny_patch16_224", dict(ARGUMENTS)).eval()


@pytest.fixture
def export(tmp_path: Path, encoder: Encoder) -> Path:
    heads = {"decoder.weight": torch.arange(6.0).reshape(2, 3)}
    export_encoder(tmp_path / "export", encoder, IMAGENET._replace(pool="mean"), CARD, heads)
    return tmp_path / "export"


def test_what_is_pushed_is_loaded_as_it_was(hub: Hub, export: Path, encoder: Encoder, tmp_path: Path) -> None:
    assert push_to_hub(export, "me/tiny", license="apache-2.0", message="First") == "hf-hub:me/tiny"
    repo = hub.repos["me/tiny"]
    _, files = repo.at("main") or ("", {})
    assert sorted(files) == sorted(path.name for path in export.iterdir()) and repo.messages == ["First"]
    assert not repo.private and len(repo.commits) == 2
    for name in ("model.safetensors", "heads.safetensors", "config.json"):
        assert files[name] == (export / name).read_bytes()

    images = torch.rand(2, 3, 16, 16)
    loaded = load_encoder("hf-hub:me/tiny")
    assert weights_digest(loaded.vit.state_dict()) == weights_digest(encoder.vit.state_dict())
    assert preprocessing_of("hf-hub:me/tiny") == preprocessing_of(export)
    found = find("hf-hub:me/tiny")
    assert torch.equal(found.heads["decoder.weight"], torch.arange(6.0).reshape(2, 3))
    manifest = read_listed(folder := downloaded("hf-hub:me/tiny"))
    for name in manifest:  # the manifest fits the card that was sent
        verify_file(folder, name, manifest)
    theirs = timm.create_model("hf-hub:me/tiny", pretrained=True).eval()
    ours = timm.create_model(f"local-dir:{export}", pretrained=True).eval()
    with torch.no_grad():
        assert torch.equal(theirs(images), ours(images))
    assert load_encoder("scratch:hf-hub:me/tiny").model == encoder.model
    asked = len(hub.asked)
    load_encoder("hf-hub:me/tiny", image_size=32)
    assert len(hub.asked) == asked  # once a process


def test_the_card_has_what_the_hub_reads(hub: Hub, export: Path) -> None:
    push_to_hub(export, "me/tiny", license="mit")
    push_to_hub(downloaded("hf-hub:me/tiny"), "me/copy")
    for name, license in (("me/tiny", "mit"), ("me/copy", None)):
        _, files = hub.repos[name].at("main") or ("", {})
        _, header, card = files["README.md"].decode().split("---\n", 2)
        fields = YAML(typ="safe").load(header)
        tags = ["image-feature-extraction", "timm", "self-supervised", "unlabeled"]
        expected = {"library_name": "timm", "pipeline_tag": "image-feature-extraction", "tags": tags}
        assert fields == (expected | {"license": license} if license else expected)
        assert card.startswith("\n# tiny: mae encoder") and "'hf-hub:me/tiny', pretrained=True" in card
    assert "THIS_FOLDER" in (export / "README.md").read_text()  # ours stays as it was


def test_a_branch_and_a_private_repository(hub: Hub, export: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert push_to_hub(export, "me/hidden", private=True, revision="v1") == "hf-hub:me/hidden@v1"
    assert hub.repos["me/hidden"].private and (hub.repos["me/hidden"].at("main") or ("", {}))[1] == {}
    load_encoder("hf-hub:me/hidden@v1")
    with pytest.raises(UserError, match=r"config.json"):
        load_encoder("hf-hub:me/hidden")
    with pytest.raises(UserError, match="revision are right"):
        load_encoder("hf-hub:me/hidden@v2")
    downloaded.cache_clear()
    monkeypatch.setenv("HF_TOKEN", "hf_of_somebody_else")
    with pytest.raises(UserError, match="needs `hf auth login`, or HF_TOKEN"):
        load_encoder("hf-hub:me/hidden")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    push_to_hub(export, "me/open")
    with pytest.raises(UserError, match=r"is there and public. Leave --private out"):
        push_to_hub(export, "me/open", private=True)


def test_pushing_again_goes_on(hub: Hub, export: Path) -> None:
    hub.fail = "/commit/"
    with pytest.raises(UserError, match=r"cannot be pushed to me/tiny: .* run the same command again"):
        push_to_hub(export, "me/tiny")
    assert hub.repos["me/tiny"].messages == []  # nothing half there
    hub.fail, before = "", len(hub.asked)
    push_to_hub(export, "me/tiny")
    assert not any("/lfs/" in asked and asked.startswith("PUT") for asked in hub.asked[before:])  # they arrived
    (config := export / "config.json").write_text(config.read_text().replace("0.875", "0.9"))
    push_to_hub(export, "me/tiny", message="Another crop")
    assert hub.repos["me/tiny"].messages == ["Upload export", "Another crop"]
    assert preprocessing_of("hf-hub:me/tiny").crop_pct == 0.9


@pytest.mark.parametrize("wrong", ["tiny", "me/tiny/more", "me/", "https://x/me/tiny", "me/ti ny"])
def test_a_name_that_is_none(hub: Hub, export: Path, wrong: str) -> None:
    for act in (lambda: push_to_hub(export, wrong), lambda: load_encoder(f"hf-hub:{wrong}")):
        with pytest.raises(UserError, match="expected a repository as OWNER/NAME"):
            act()
    assert hub.asked == []


def test_who_may_not_and_what_is_damaged(hub: Hub, export: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(UserError, match=r"cannot be pushed to me/tiny: .*hf auth login"):
        push_to_hub(export, "me/tiny")
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(UserError, match=r"hf auth login"):
        push_to_hub(export, "me/tiny")
    assert hub.repos == {}
    (weights := export / "model.safetensors").write_bytes(weights.read_bytes()[:-1] + b"x")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with pytest.raises(UserError, match="is not what was written"):
        push_to_hub(export, "me/tiny")
    with pytest.raises(UserError, match="is not an export"):
        push_to_hub(export.parent, "me/tiny")
    assert hub.repos == {}


def test_without_a_network_what_was_downloaded_serves(
    hub: Hub, export: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    push_to_hub(export, "me/tiny")
    load_encoder("hf-hub:me/tiny")
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    for offline in (False, True):
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", offline)
        downloaded.cache_clear()
        assert weights_digest(load_encoder("hf-hub:me/tiny").vit.state_dict()) == weights_digest(
            encoder.vit.state_dict()
        )
        with pytest.raises(UserError, match=r"hf-hub:me/other cannot be downloaded: .* HF_HUB_OFFLINE count"):
            load_encoder("hf-hub:me/other")
        with pytest.raises(UserError, match=r"cannot be pushed to me/tiny: .* HF_HUB_OFFLINE count"):
            push_to_hub(export, "me/tiny")


def test_commands_take_and_give_the_address(
    hub: Hub, export: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["push", str(export), "me/tiny", "--license", "mit", "--message", "From the shell"]) == 0
    assert "timm.create_model('hf-hub:me/tiny', pretrained=True)" in capsys.readouterr().out
    assert hub.repos["me/tiny"].messages == ["From the shell"]
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (20, 20), "red").save(tmp_path / "pictures" / "red.png")
    told = [str(tmp_path / "pictures"), str(tmp_path / "features"), "--device", "cpu", "--workers", "0"]
    assert main(["embed", "hf-hub:me/tiny", *told]) == 0
    assert json.loads((tmp_path / "features" / "manifest.json").read_text())["export"] == "hf-hub:me/tiny"
    hub.fail = "/api/"
    assert main(["push", str(export), "me/tiny"]) == 2
    said = capsys.readouterr().err
    assert "cannot be pushed to me/tiny" in said and "Traceback" not in said


def test_cards_say_what_a_network_is_for(export: Path) -> None:
    config: dict[str, Any] = json.loads((export / "config.json").read_text())
    assert "pipeline_tag: image-classification" in header({**config, "num_classes": 3}, None)
    assert "library_name: unlabeled" in header({**config, "architecture": "mine.nets:build"}, None)
