"""DINO against numbers of the official code (facebookresearch/dino)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from parity.conftest import Golden, assert_close, golden_folder
from parity.distill import BACKWARD, FORWARD, assert_gradients, build_head, head_weights

from unlabeled.nn.losses import cross_view, sharpen
from unlabeled.nn.schedules import cosine, warmup
from unlabeled.nn.teacher import Centre


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test per head of whatever set is given."""
    if "head" in metafunc.fixturenames:
        file = golden_folder(metafunc.config, "dino") / "head.safetensors"
        metafunc.parametrize("head", sorted(Golden(file).config) if file.is_file() else ["absent"])


@pytest.fixture(scope="module")
def folder(request: pytest.FixtureRequest) -> Path:
    return golden_folder(request.config, "dino")


def test_head(folder: Path, head: str) -> None:
    golden = Golden(folder / "head.safetensors")
    config = golden.config[head]
    ours = build_head(config, golden.under(f"sd_{head}"))
    x = golden["in/x"].clone().requires_grad_()
    y = ours(x)
    (y * golden["in/cotangent"]).sum().backward()
    assert x.grad is not None
    assert_close(y, golden[f"out/{head}/y"], FORWARD, "logits")
    assert_close(x.grad, golden[f"out/{head}/grad_x"], BACKWARD, "gradient at the input")
    # a bias in front of a norm moves nothing
    before_norm = ("mlp.0.bias",) if config["use_bn"] else ()
    assert_gradients(ours, head_weights(config, golden.under(f"grad_{head}")), before_norm)
    if config["use_bn"]:
        for name, buffer in golden.under(f"after_{head}").items():
            assert_close(ours.state_dict()[name].float(), buffer.float(), FORWARD, name)


def test_loss_centre_and_temperature_of_ten_epochs(folder: Path) -> None:
    golden = Golden(folder / "loss.safetensors")
    c = golden.config
    centre = Centre(c["out_dim"], c["center_momentum"])
    for epoch in range(c["nepochs"]):
        done = epoch / (c["warmup_teacher_temp_epochs"] - 1)
        temperature = warmup(c["warmup_teacher_temp"], c["teacher_temp"], done)
        assert temperature == pytest.approx(golden["out/teacher_temp"][epoch].item(), rel=1e-12)
        student = golden["in/student"][epoch].clone().requires_grad_()
        teacher = golden["in/teacher"][epoch]
        targets = sharpen(teacher, centre.value, temperature).unflatten(0, (2, -1))
        loss = cross_view(student.unflatten(0, (c["ncrops"], -1)), targets, c["student_temp"])
        loss.backward()
        centre.note(teacher, step=epoch)
        centre.update_()
        assert student.grad is not None
        assert_close(loss, golden["out/loss"][epoch], FORWARD, f"loss of epoch {epoch}")
        assert_close(student.grad, golden["out/dloss_dstudent"][epoch], BACKWARD, f"gradient of epoch {epoch}")
        assert_close(centre.value, golden["out/center_after"][epoch], FORWARD, f"centre after epoch {epoch}")


def test_momentum(folder: Path) -> None:
    golden = Golden(folder / "schedules.safetensors")
    c, official = golden.config["momentum"], golden["out/momentum"]
    momenta = [cosine(c["base_value"], c["final_value"], step / len(official)) for step in range(len(official))]
    assert_close(torch.tensor(momenta, dtype=torch.float64), official.double(), 1e-12, "momentum")
