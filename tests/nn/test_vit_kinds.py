"""All kinds of timm's VisionTransformer: the tokens, the pooling, the masks, the export and the training of each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from nn.test_encoder import joined, masks, pictures
from torch import Tensor, nn

from unlabeled.backbone.build import families, family_of
from unlabeled.backbone.config import EncoderConfig
from unlabeled.backbone.encoder import Encoder
from unlabeled.backbone.families.vit import Vit
from unlabeled.backbone.folder import IMAGENET, export_encoder, load_timm
from unlabeled.backbone.folder_config import read_config
from unlabeled.backbone.norms import eps_of
from unlabeled.backbone.weights import load_encoder, preprocessing_of
from unlabeled.data.batch.batch import Batch, ViewBatch
from unlabeled.errors import UserError
from unlabeled.pretrain.method import Progress
from unlabeled.pretrain.methods import ibot, mae, simclr, simmim
from unlabeled.train.beginning import begin
from unlabeled.train.state import split_heads
from unlabeled.transfer.tasks import classify

SMALL: dict[str, Any] = {"width": 32, "depth": 2, "heads": 2, "patch_size": 8}
# by timm name: whether its own pooling is another than the class token or the plain mean
KINDS = {
    "vit_base_patch16_siglip_224": True,  # attention pool, no class token
    "vit_so150m_patch16_reg4_map_256": True,  # attention pool beside registers
    "test_vit3": True,  # attention pool that reads the registers, too
    "vit_medium_patch16_reg4_gap_256": True,  # registers, a norm after the mean
    "eva_large_patch14_196": True,  # class token, yet a norm after the mean
    "test_vit4": True,  # norms by the root mean square, images of any size in timm too
    "deit_tiny_distilled_patch16_224": True,  # two tokens
    "vit_base_patch16_18x2_224": False,  # parallel layers
    "vit_base_patch16_xp_224": False,  # one matrix product for attention and MLP
    "aimv2_large_patch14_224": False,  # SwiGLU, a norm of the patches
    "vit_giant_patch14_dinov2": False,  # packed SwiGLU
    "vit_base_patch16_rpn_224": True,  # norms after attention and MLP
    "vit_dlittle_patch16_reg1_gap_256": True,  # differential attention
    "vit_base_patch16_radio_v3": False,  # no last norm
}


def make(model: str, size: tuple[int, int] = (16, 24), pooled: bool = True, **more: Any) -> Encoder:
    """An encoder with nothing at zero or one, so that a part left out shows."""
    torch.manual_seed(0)
    encoder = EncoderConfig(model=model, positions="learned", **SMALL, **more).build(size, pooled=pooled).eval()
    for parameter in encoder.parameters():
        nn.init.normal_(parameter, std=0.2)
    return encoder


def as_timm(encoder: Encoder, images: Tensor) -> Tensor:
    pooled: Tensor = encoder.vit.forward_head(encoder.vit.forward_features(images), pre_logits=True)
    return pooled


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("model", KINDS)
@torch.no_grad()
def test_tokens_and_pooling_are_timms(model: str) -> None:
    encoder, images = make(model), pictures(2, 3, 16, 24)
    assert type(encoder) is Vit and encoder.pools_itself == KINDS[model]
    tokens = encoder(images)
    close(joined(tokens), encoder.vit.forward_features(images))
    close(encoder.own(tokens), as_timm(encoder, images))
    close(encoder.feature(images), as_timm(encoder, images))
    close(encoder.own(encoder.intermediate(images, [-1])[0]), as_timm(encoder, images))
    close(joined(Vit.last_blocks(encoder.vit, images, 2)[0]), joined(encoder.intermediate(images, [0])[0]))
    assert encoder.feature(images).shape == (2, encoder.feature_width)
    for ours, theirs in zip(
        encoder.stages(images), encoder.vit.forward_intermediates(images, intermediates_only=True), strict=True
    ):
        close(ours, theirs)


@pytest.mark.parametrize("model", KINDS)
@torch.no_grad()
def test_masks_hide_as_a_plain_loop_does(model: str) -> None:
    """One image at a time, in double precision, by timm's own parts."""
    encoder, images, mask = make(model).double(), pictures(3, 3, 16, 24).double(), masks(3, (2, 3))
    vit, fill, count = encoder.vit, torch.randn(1, 1, 32).double(), encoder.num_prefix
    dropped, replaced = encoder(images, drop=mask), encoder(images, replace=mask, fill=fill)
    for row, image in enumerate(images):
        patches = vit.patch_embed(image[None])  # [1, rows, columns, D] where timm takes any size
        x = vit._pos_embed(patches)
        patches = patches.flatten(1, -2)
        kept = x[:, [*range(count), *(count + mask.indices()[0][row])]]
        close(joined(dropped)[row], vit.norm(vit.blocks(vit.norm_pre(kept)))[0])
        hidden = [count + place for place in range(6) if mask.hidden[row, place]]
        positions = x[:, count:] - patches
        for place in hidden:
            x[:, place] = fill[0] + positions[:, place - count]
        close(joined(replaced)[row], vit.norm(vit.blocks(vit.norm_pre(x)))[0])
    close(encoder.own(dropped), vit.forward_head(joined(dropped), pre_logits=True))


@pytest.mark.parametrize("model", KINDS)
@torch.no_grad()
def test_timm_alone_loads_the_export(model: str, tmp_path: Path) -> None:
    encoder, images = make(model, channels=3), pictures(2, 3, 16, 24)
    export_encoder(tmp_path / "out", encoder, IMAGENET, "", {})
    alone = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    close(alone(images), as_timm(encoder, images))
    again = load_encoder(tmp_path / "out")
    close(joined(again(images)), joined(encoder(images)))
    close(again.feature(images), encoder.feature(images))
    assert preprocessing_of(tmp_path / "out").pool == encoder.default_pool
    assert again.arguments.items() >= {k: v for k, v in encoder.arguments.items() if k != "in_chans"}.items()


@pytest.mark.parametrize("model", [*list(KINDS)[:7], "vit_base_patch16_xp_224"])
@torch.no_grad()
def test_weights_reach_another_size_and_number_of_channels(model: str, tmp_path: Path) -> None:
    """As the encoder itself does on pictures of that size; a grey picture is one whose three channels are alike."""
    encoder, images = make(model), pictures(2, 1, 32, 16)
    export_encoder(tmp_path / "out", encoder, IMAGENET, "", {})
    other = load_encoder(tmp_path / "out", image_size=(32, 16), channels=1)
    assert other.native_grid == (4, 2) and other.channels == 1
    close(other.feature(images), encoder.feature(images.expand(-1, 3, -1, -1)))
    close(other.feature(images), as_timm(other, images))


@pytest.mark.parametrize("model", KINDS)
def test_layers_are_numbered_in_order(model: str) -> None:
    encoder = make(model)
    layers = [encoder.layer_of(name) for name, _ in encoder.vit.named_parameters()]
    assert layers == sorted(layers) and {0, 1, 2} <= set(layers) <= {0, 1, 2, 3}
    for name, _ in encoder.vit.named_parameters():
        if name.startswith(("norm.", "fc_norm.", "attn_pool.")):
            assert encoder.layer_of(name) == 3
        if name.endswith("_token") or name.startswith(("pos_embed", "patch_embed", "norm_pre")):
            assert encoder.layer_of(name) == 0


def trained(method: Any, batch: Batch) -> Any:
    """A method after two steps. Every parameter that learns has had a gradient."""
    optimizer, progress = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.1), None
    for step in range(2):
        progress = Progress(step, 2, step / 2, 1.0)
        optimizer.zero_grad()
        method(batch, progress).loss.backward()
        missing = [name for name, p in method.named_parameters() if p.requires_grad and p.grad is None]
        assert missing == []
        optimizer.step()
    assert all(p.isfinite().all() for p in method.parameters())
    return method


@pytest.mark.parametrize("model", KINDS)
def test_two_steps_of_simclr(model: str) -> None:
    fields = {"encoder": {"model": model, **SMALL}, "view": {"size": 16, "count": 2}, "hidden": 8, "dim": 4}
    method = simclr.Config.model_validate(fields).build()
    before = method.encoder.vit.blocks[0].state_dict()
    before = {name: tensor.clone() for name, tensor in before.items()}
    trained(method, Batch([ViewBatch(pictures(2, 4, 3, 16, 16), None)], torch.zeros(4), torch.arange(4)))
    after = method.encoder.vit.blocks[0].state_dict()
    assert any(not torch.equal(after[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize("strategy", ["full", "linear"])
@pytest.mark.parametrize("model", KINDS)
def test_two_steps_of_fine_tuning(model: str, strategy: str, tmp_path: Path) -> None:
    encoder = make(model, (16, 16))
    told = {"pool": encoder.default_pool, "view": {"size": 16}, "strategy": {"name": strategy}}
    task: Any = classify.Config.model_validate(told).build(encoder, [2, 2])
    learns = {name.split(".")[1] for name, p in task.named_parameters() if p.requires_grad}
    if strategy == "linear":
        assert learns <= {"head", "head_dist"}, "the network's own pooling is trained already"
    with torch.no_grad():
        images = pictures(4, 3, 16, 16)
        if strategy == "linear" or encoder.pools_itself:
            pooled = task.model.eval().forward_head(task.model.forward_features(images), pre_logits=True)
            close(pooled, encoder.feature(images))
    trained(
        task.train(), Batch([ViewBatch(pictures(1, 4, 3, 16, 16), None)], torch.tensor([0, 1, 0, 1]), torch.arange(4))
    )


def test_an_attentive_probe_goes_on_from_the_networks_own_pool() -> None:
    encoder = make("vit_base_patch16_siglip_224", (16, 16))
    told = {"pool": "attention", "view": {"size": 16}, "strategy": {"name": "attentive"}}
    task: Any = classify.Config.model_validate(told).build(encoder, [2, 2])
    learns = {name.split(".")[1] for name, p in task.named_parameters() if p.requires_grad}
    assert learns == {"head", "attn_pool"}
    assert torch.equal(task.model.attn_pool.latent, encoder.vit.attn_pool.latent)


def test_tokens_do_not_decay() -> None:
    encoder = make("deit_tiny_distilled_patch16_224", (16, 16))
    task: Any = classify.Config(pool="own", view={"size": 16}).build(encoder, [2, 2])  # type: ignore[arg-type]
    decay = [name for name, p in task.named_parameters() if task.decays(name, p) and "_token" in name]
    assert decay == []


METHODS: dict[str, Any] = {"mae": mae, "simmim": simmim, "ibot": ibot}
MASK = {"name": "random", "unit": 8}


@pytest.mark.parametrize("name", ["mae", "simmim"])
@pytest.mark.parametrize("model", ["vit_base_patch16_siglip_224", "vit_medium_patch16_reg4_gap_256", "test_vit3"])
def test_methods_of_patches_leave_the_pooling_out(name: str, model: str, tmp_path: Path) -> None:
    """So that nothing in the network stays untrained; the export is read by timm, and here with the same weights."""
    decoder = {"decoder": {"name": "self", "width": 8, "depth": 1, "heads": 1}} if name == "mae" else {}
    fields = {"encoder": {"model": model, **SMALL}, "view": {"size": 16, "mask": MASK}, **decoder}
    method = METHODS[name].Config.model_validate(fields).build()
    mask = masks(4, (2, 2))
    views = ViewBatch(pictures(1, 4, 3, 16, 16), mask.map(lambda part: part[None]))
    trained(method, Batch([views], torch.zeros(4), torch.arange(4)))
    encoder = method.encoder.eval()
    assert encoder.vit.attn_pool is None and isinstance(encoder.vit.fc_norm, nn.Identity)
    assert encoder.default_pool == "mean"
    export_encoder(tmp_path / "out", encoder, IMAGENET, "", {})
    images = pictures(2, 3, 16, 16)
    with torch.no_grad():
        alone = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
        close(alone(images), encoder(images).pool("mean"))
        close(load_encoder(tmp_path / "out").feature(images), alone(images))


@pytest.mark.parametrize(("model", "positions"), [("test_vit4", "learned"), ("beit_base_patch16_224", "relative")])
@torch.no_grad()
def test_an_eps_that_timm_has_no_argument_for(model: str, positions: Any, tmp_path: Path) -> None:
    """It reaches every norm, those by the root mean square too; the card's lines give it to timm."""
    config = EncoderConfig(model=model, positions=positions, norm_eps=0.05, **SMALL)
    encoder, images = config.build((16, 16)).eval(), pictures(2, 3, 16, 16)
    assert eps_of(encoder) == {0.05}
    export_encoder(tmp_path / "out", encoder, IMAGENET, "", {})
    alone: Any = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    expected = as_timm(encoder, images)
    assert not torch.allclose(alone(images), expected, atol=1e-3)
    exec((tmp_path / "out" / "README.md").read_text().split("```")[1].removeprefix("python"), {"model": alone})
    close(alone(images), expected)
    close(load_timm(tmp_path / "out", read_config(tmp_path / "out")).eval()(images), expected)  # as it is deployed
    again = load_encoder(tmp_path / "out")
    close(as_timm(again, images), expected)
    assert again.fields()["norm_eps"] == 0.05
    task: Any = classify.Config(pool=again.default_pool, view={"size": 16}).build(again, [2, 2])  # type: ignore[arg-type]
    assert eps_of(task.model) == {0.05}


@pytest.mark.parametrize(
    ("model", "pool"),
    [("test_vit", "cls"), ("test_vit2", "own"), ("test_vit3", "own"), ("deit_tiny_distilled_patch16_224", "own")],
)
def test_networks_of_timm_by_address(model: str, pool: str) -> None:
    encoder = load_encoder(f"scratch:timm:{model}")
    assert preprocessing_of(f"scratch:timm:{model}").pool == encoder.default_pool == pool


def test_patches_that_do_not_divide_timms_size() -> None:
    """timm leaves pixels at the edge out: 384 = 27 patches of 14, and 6 pixels."""
    with torch.device("meta"):
        vit = timm.create_model("vit_so400m_patch14_siglip_384", num_classes=0, depth=1)
    assert Vit.arguments_from(vit) == {"img_size": [378, 378], "patch_size": 14}


# ---------------------------------------------------------------- names


FAMILY = {
    "vit_base_patch16_siglip_224": "vit",
    "deit3_small_patch16_224": "vit",
    "flexivit_small": "vit",
    "beit3_base_patch16_224": "vit",
    "eva_large_patch14_196": "vit",
    "beit_base_patch16_224": "beit",
    "vit_base_mci_224": "maps",  # a convolutional stem
    "vit_tiny_r_s16_p8_224": "maps",  # a ResNet stem
    "vit_relpos_small_patch16_224": "maps",  # no position table
    "samvit_base_patch16": "maps",
    "vitamin_small_224": "maps",
}


@pytest.mark.parametrize(("model", "family"), FAMILY.items())
def test_models_belong_by_their_module(model: str, family: str) -> None:
    assert family_of(model) is families()[family]


@pytest.mark.parametrize(
    ("model", "side"), [("vit_base_patch14_dinov2", 14), ("vit_base_patch32_224", 32), ("test_vit", 16)]
)
def test_patches_are_the_timm_models_own(model: str, side: int) -> None:
    config = EncoderConfig(model=model, width=32, depth=1, heads=2)
    assert config.patch_size == side and config.build((2 * side, side)).native_grid == (2, 1)


# ---------------------------------------------------------------- BEiT's own pooling


@torch.no_grad()
def test_a_beit_with_its_norm_after_the_mean(tmp_path: Path) -> None:
    """As timm has its pretrained ones."""
    from unlabeled.backbone.families.beit import Beit

    arguments = {"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 8, "img_size": [16, 24], "in_chans": 3}
    encoder = Beit.build("beit_base_patch16_224", {**arguments, "global_pool": "avg"}).eval()
    for parameter in encoder.parameters():
        nn.init.normal_(parameter, std=0.2)
    images = pictures(2, 3, 16, 24)
    assert encoder.default_pool == "own" and "fc_norm.weight" in encoder.vit.state_dict()
    close(encoder.feature(images), as_timm(encoder, images))
    export_encoder(tmp_path / "out", encoder, IMAGENET, "", {})
    close(timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()(images), encoder.feature(images))
    again = load_encoder(tmp_path / "out")
    close(again.feature(images), encoder.feature(images))
    task: Any = classify.Config(pool="own", view={"size": (16, 24)}).build(again, [2, 2])  # type: ignore[arg-type]
    close(task.model.eval().forward_head(task.model.forward_features(images), pre_logits=True), encoder.feature(images))


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("model", "pool", "text"),
    [
        ("vit_base_patch16_siglip_224", "cls", "has no class token"),
        ("deit_tiny_distilled_patch16_224", "mean", "pools by itself. Set task.pool=own"),
    ],
)
def test_poolings_that_a_network_does_not_have_are_refused(model: str, pool: Any, text: str) -> None:
    with pytest.raises(UserError, match=text):
        classify.Config(pool=pool, view={"size": 16}).build(make(model, (16, 16)), [2, 2])  # type: ignore[arg-type]


def test_ibot_needs_a_class_token() -> None:
    with pytest.raises(ValueError, match="iBOT reads a class token, which 'vit_base_patch16_gap_224' has not"):
        ibot.Config.model_validate({"encoder": {"model": "vit_base_patch16_gap_224"}})


# ---------------------------------------------------------------- beginnings


@pytest.mark.parametrize("model", ["vit_base_patch16_siglip_224", "vit_medium_patch16_reg4_gap_256"])
def test_methods_of_patches_begin_with_weights_that_pool_and_go_on(model: str, tmp_path: Path) -> None:
    """The pooling is left out, a norm after it becomes the final norm; the next run begins with that export, too."""
    pooled, config = make(model, (16, 16)), EncoderConfig(model=model, positions="learned", **SMALL)
    export_encoder(tmp_path / "pooled", pooled, IMAGENET, "", {})
    decoder = {"name": "self", "width": 8, "depth": 1, "heads": 1}
    fields = {"encoder": config.model_dump(), "view": {"size": 16, "mask": MASK}, "decoder": decoder}
    method = mae.Config.model_validate(fields).build()
    told: Any = (config, (16, 16), 3, (), "view.size")
    begin(str(tmp_path / "pooled"), *told).load_(method)
    for name, tensor in method.encoder.vit.state_dict().items():
        theirs = pooled.vit.state_dict()
        assert torch.equal(tensor, theirs[name] if name in theirs else theirs[f"fc_{name}"])

    export_encoder(tmp_path / "left", method.encoder, IMAGENET, "", split_heads(method)[1])
    again = mae.Config.model_validate(fields).build()
    loaded = begin(str(tmp_path / "left"), *told).load_(again)
    assert not loaded.new and not loaded.wrong
    assert all(torch.equal(tensor, method.state_dict()[name]) for name, tensor in again.state_dict().items())

    contrast = simclr.Config.model_validate({"encoder": config.model_dump(), "view": {"size": 16, "count": 2}}).build()
    new = begin(str(tmp_path / "left"), *told).load_(contrast).new
    assert new and all(name.startswith(("attn_pool.", "fc_norm.")) for name in new)
