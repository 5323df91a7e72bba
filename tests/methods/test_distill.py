"""Distillation beyond the contract: the method against loops, its teachers, and what is refused in words."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from every_method import START, recipe_of
from support import UNSHOWN
from torch import Tensor, nn

from unlabeled.backbone.config import EncoderConfig
from unlabeled.backbone.folder import Preprocessing, export_encoder
from unlabeled.data.batch.batch import Batch, ViewBatch
from unlabeled.data.view.views import View
from unlabeled.errors import UserError
from unlabeled.launch.plan import on_meta
from unlabeled.launch.program import main
from unlabeled.nn.mixing import Mix
from unlabeled.pretrain.frozen import Seen, Teacher, TeacherConfig
from unlabeled.pretrain.methods.distill import Config, Distillation
from unlabeled.train.optim import param_groups

SIZE, ROWS = 32, 4
STUDENT = EncoderConfig(model="vit_tiny_patch16_224", patch_size=8, width=16, depth=1, heads=2, positions="learned")
NETWORKS = {"vit": "scratch:timm:test_vit", "cnn": "scratch:timm:test_resnet"}
OWN = Preprocessing((0.3, 0.4, 0.5), (0.2, 0.3, 0.4), pool="mean")


def config(mode: str, *teachers: str, **more: Any) -> Config:
    named = [{"weights": NETWORKS[name], "size": 64} for name in teachers]
    told = {"view": View(size=SIZE), "encoder": STUDENT, "teacher": named, "mode": mode, "queue": 6}
    return Config.model_validate({**told, **more})


def batch(generator: torch.Generator, share: float = 0.3) -> Batch:
    pixels, numbers = torch.randn(1, ROWS, 3, SIZE, SIZE, generator=generator), torch.arange(ROWS)
    mix = Mix(torch.full((ROWS,), share), torch.zeros(ROWS, 4, dtype=torch.int64))
    return Batch([ViewBatch(pixels, None)], numbers, numbers, mix)


def kl(own: Tensor, aim: Tensor, mine: Tensor, theirs: Tensor) -> float:
    """KL of one vector's similarities to others, at temperature 0.07."""
    p = np.exp(np.array([float(aim @ other) / 0.07 for other in theirs]))
    q = np.exp(np.array([float(own @ other) / 0.07 for other in mine]))
    p, q = p / p.sum(), q / q.sum()
    return float(sum(a * np.log(a / b) for a, b in zip(p, q, strict=True)))


def unit(x: Tensor) -> Tensor:
    return torch.stack([row / row.norm() for row in x.flatten(0, -2)]).view_as(x)


def by_loops(method: Distillation, pixels: Tensor, queues: list[Tensor]) -> float:
    """The loss of one batch, `queues` with it in them already."""
    tokens, total = method.encoder(pixels), 0.0
    for i, teacher in enumerate(method.teachers):
        aims, patches, grid = teacher(pixels)
        if method.config.mode != "dense":
            own, aims = unit(method.heads[i](tokens.prefix[:, 0])), unit(aims)
            total += np.mean([kl(s, t, queues[i], queues[i]) for s, t in zip(own, aims, strict=True)])
        if method.config.mode != "global":
            maps = method.patch_heads[i](tokens.patches).mT.unflatten(2, tokens.grid)
            local = nn.functional.interpolate(maps, grid, mode="bilinear").flatten(2).mT
            if method.config.mode == "dense":
                total += float(((local - patches) ** 2).mean())
            else:
                pairs = zip(unit(local), unit(patches), strict=True)
                total += np.mean([kl(s[n], t[n], s, t) for s, t in pairs for n in range(len(s))])
    return float(total)


@pytest.mark.parametrize("teachers", [("vit",), ("cnn", "vit")])
@pytest.mark.parametrize("mode", ["global", "dense", "both"])
def test_the_loss_by_loops_over_steps_that_fill_the_queue(mode: str, teachers: tuple[str, ...]) -> None:
    torch.manual_seed(0)
    method = config(mode, *teachers).build()
    assert isinstance(method, Distillation)
    generator = torch.Generator().manual_seed(1)
    before = [torch.zeros(6, teacher.feature_width) for teacher in method.teachers]
    for _ in range(3):
        data = batch(generator)
        images = data.views[0].pixels[0]
        mixed = torch.stack([0.3 * images[row] + 0.7 * images[row ^ 1] for row in range(ROWS)])
        with torch.no_grad():
            loss = method(data, START).loss
            queues = [
                torch.cat([unit(t(mixed)[0]), queue])[:6] for t, queue in zip(method.teachers, before, strict=True)
            ]
            expected = by_loops(method, mixed, queues)
        assert float(loss) == pytest.approx(expected, rel=2e-5)
        method.after_step(START)
        before = queues
    for queue, expected in zip(method.queues, before, strict=False):
        torch.testing.assert_close(queue.rows, expected)


def test_a_teacher_stays_as_it_is() -> None:
    """In evaluation mode, without gradients, decay or a place in the state."""
    method = config("both", "cnn").build().train()
    assert not any(part.training for part in method.teachers.modules() if isinstance(part, Teacher | nn.BatchNorm2d))
    assert not [name for name in method.state_dict() if name.startswith("teachers")]
    before = [tensor.clone() for tensor in (*method.teachers.parameters(), *method.teachers.buffers())]
    optimizer = torch.optim.AdamW(param_groups(method, 0.1), lr=0.1)
    method(batch(torch.Generator()), START).loss.backward()
    optimizer.step()
    after = [*method.teachers.parameters(), *method.teachers.buffers()]
    assert all(map(torch.equal, before, after)) and not any(p.requires_grad for p in method.teachers.parameters())


def exported(home: Path, seed: int = 0, channels: int = 3, how: Preprocessing = OWN) -> Path:
    torch.manual_seed(seed)
    encoder = STUDENT.model_copy(update={"channels": channels}).build((SIZE, SIZE))
    export_encoder(home, encoder, how, "# card\n", {})
    return home


def test_an_export_teaches_by_its_own_normalisation_and_pooling(tmp_path: Path) -> None:
    folder = exported(tmp_path / "export")
    pictures = Preprocessing((0.5, 0.6, 0.7), (0.25, 0.2, 0.1))
    teacher = TeacherConfig(weights=str(folder)).build(Seen((SIZE, SIZE), pictures), 1)
    raw = torch.rand(2, 3, SIZE, SIZE, dtype=torch.float64)
    told = [torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in (*pictures[:2], *OWN[:2])]
    alone = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0).double().eval()
    with torch.no_grad():
        vector, patches, grid = teacher.double()((raw - told[0]) / told[1])
        tokens = alone.forward_features((raw - told[2]) / told[3])[:, 1:]
    torch.testing.assert_close(patches, tokens, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(vector, tokens.mean(1), rtol=1e-5, atol=1e-6)
    assert grid == (4, 4)


def test_grey_pictures_reach_a_teacher_of_three_channels(tmp_path: Path) -> None:
    seen = Seen((SIZE, SIZE), Preprocessing((0.5,), (0.25,)))
    teacher = TeacherConfig(weights=str(exported(tmp_path / "export"))).build(seen, 1)
    raw = torch.rand(2, 1, SIZE, SIZE)
    colours = TeacherConfig(weights=str(tmp_path / "export")).build(Seen((SIZE, SIZE), OWN), 1)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in OWN[:2])
    torch.testing.assert_close(teacher((raw - 0.5) / 0.25)[0], colours((raw - mean) / std)[0], rtol=1e-4, atol=1e-5)


NETWORK = """
import torch
from torch import nn


def taught():
    network = nn.Sequential(nn.Conv2d(3, 6, 4, 4), nn.ReLU(), nn.Conv2d(6, 5, 2, 2))
    for number, parameter in enumerate(network.parameters(), 1):
        nn.init.constant_(parameter, 0.1 * number)
    return network
"""


def test_a_network_of_ones_own_teaches_with_the_weights_that_its_code_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "networks_that_teach.py").write_text(NETWORK)
    monkeypatch.syspath_prepend(str(tmp_path))
    one = Config(view=View(size=SIZE), encoder={"model": "resnet10t"}, teacher="networks_that_teach:taught", queue=4)
    method = one.build().train()
    assert method.teachers[0].encoder.vit[2].bias.tolist() == pytest.approx([0.4] * 5)
    assert method.teachers[0](torch.zeros(2, 3, SIZE, SIZE))[1].shape == (2, 16, 5)
    method(batch(torch.Generator()), START).loss.backward()
    assert (
        one.relies_on() == one.relies_on()
        and "networks_that_teach:taught (weights " in one.relies_on()["method.teacher"]
    )


def test_an_official_file_teaches_after_its_outline_was_asked_for(tmp_path: Path) -> None:
    """A plan on the meta device leaves no network without values behind."""
    torch.manual_seed(0)
    vit = timm.create_model("vit_base_patch16_224", img_size=SIZE, depth=1, num_classes=0).eval()
    torch.save({"model": vit.state_dict()}, tmp_path / "mae.pth")
    os.utime(tmp_path / "mae.pth", (0, 0))  # old enough to be read once
    config = Config(view=View(size=SIZE), encoder=STUDENT, teacher=f"mae:{tmp_path / 'mae.pth'}")
    assert all(parameter.is_meta for parameter in on_meta(config.build).parameters())
    [teacher] = config.teachers()
    images = torch.randn(2, 3, SIZE, SIZE)
    vector, patches, _ = teacher(images)
    torch.testing.assert_close(patches, vit.forward_features(images)[:, 1:], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(vector, patches.mean(1))


@pytest.mark.parametrize(
    ("told", "channels", "words"),
    [
        ({"weights": "nowhere"}, 3, "nowhere"),
        ({"weights": "timm:no_such_model"}, 3, "timm has no model"),
        ({"weights": "{home}", "size": 30}, 3, r"multiples of 8 pixels, found 30x30. Set size of method.teacher"),
        ({"weights": "{home}"}, 4, "sees 3 channels, the pictures have 4"),
        (
            {"weights": "{home}", "mean": (0.5,)},
            3,
            "mean of the teacher .* expected 3 values, one per channel, found 1",
        ),
        ({"weights": "{home}", "blocks": 7}, 3, "blocks=7. Ask for fewer"),
        ({"weights": "scratch:timm:test_resnet", "pool": "cls"}, 3, "no class token"),
    ],
)
def test_teachers_that_cannot_be_are_refused_in_words(
    told: dict[str, Any], channels: int, words: str, tmp_path: Path
) -> None:
    folder = exported(tmp_path / "export")
    told["weights"] = told["weights"].format(home=folder)
    with pytest.raises(UserError, match=words):
        TeacherConfig(**told).build(Seen((SIZE, SIZE), Preprocessing((0.5,) * channels, (0.25,) * channels)), 1)


def arguments(output: Path, *more: str) -> list[str]:
    file = str(Path(__file__).parents[2] / "recipes" / "demo" / "distill_shapes.yaml")
    small = ["method.encoder.width=16", "method.encoder.depth=1", "method.encoder.heads=2", "evaluate=null"]
    data = ["data.train_size=16", "data.val_size=8", "train.batch_size=8", "train.epochs=1", "optim.warmup_epochs=0"]
    return [file, *small, *data, *UNSHOWN, "run.workers=0", "run.device=cpu", f"run.output={output}", *more]


def test_a_run_goes_on_with_the_same_teacher_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = f"method.teacher={exported(tmp_path / 'export')}"
    assert main("pretrain", arguments(tmp_path / "run", told)) == 0
    exported(tmp_path / "export", seed=1)
    capsys.readouterr()
    assert main("pretrain", arguments(tmp_path / "run", told)) == 2
    said = capsys.readouterr().err
    assert "holds a run whose method.teacher was vit_tiny_patch16_224 (weights " in said and "now it is" in said


def test_an_init_of_the_same_network_leaves_the_teacher_alone(tmp_path: Path) -> None:
    from unlabeled.train.beginning import begin

    start, teacher = exported(tmp_path / "start", seed=1), exported(tmp_path / "teacher", seed=2)
    method = Config(view=View(size=SIZE), encoder=STUDENT, teacher=str(teacher), mode="global", queue=4).build()
    before = {name: tensor.clone() for name, tensor in method.teachers[0].encoder.state_dict().items()}
    begin(str(start), STUDENT, (SIZE, SIZE), 3, (), []).load_(method)
    assert all(torch.equal(tensor, before[name]) for name, tensor in method.teachers[0].encoder.state_dict().items())
    assert not torch.equal(method.encoder.vit.patch_embed.proj.weight, before["vit.patch_embed.proj.weight"])


def test_odd_batches_cannot_be_mixed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main("pretrain", arguments(tmp_path / "run", "train.batch_size=7")) == 2
    assert "method.mixup mixes neighbours" in capsys.readouterr().err


def test_one_address_is_a_list_of_one() -> None:
    one, several = (recipe_of("distill", f"method.teacher={told}").method for told in ("timm:a", "[timm:a, timm:b]"))
    assert [teacher.weights for teacher in one.teacher] == ["timm:a"] and len(several.teacher) == 2
