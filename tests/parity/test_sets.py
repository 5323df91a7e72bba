"""Sets that are changed: what is missing or compared by nobody fails, other names and part of the gradients do not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import naive_lejepa
import pytest
import torch
from parity import naive_discovery, naive_simgcd, naive_softteacher, naive_vitdet
from parity.golden import DEFAULT, METHODS, READ, Golden, Settings, assert_close, folders_of, golden_folders
from parity.naive import barlowtwins, byol, save, simdino, simsiam, vicreg
from parity.naive_dinov3 import dinov3
from parity.naive_msn import msn
from parity.whole import modules_of
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

Change = Callable[[dict[str, Tensor], dict[str, str]], None]
HERE = Path(__file__).parent
# second sets, of other sizes and settings, by method
SETS = {
    "barlowtwins": barlowtwins,
    "vicreg": vicreg,
    "byol": byol,
    "simsiam": simsiam,
    "simdino": simdino,
    "dinov3": dinov3,
    "msn": msn,
}


def copied(method: str, home: Path) -> Path:
    """A copy of one method's numbers; a session keeps what it read by file, so every copy has a place of its own."""
    shutil.copytree(DEFAULT / method, home / method)
    return home / method


def rewrite(file: Path, change: Change) -> None:
    with safe_open(file, "pt") as opened:
        metadata, tensors = dict(opened.metadata()), {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
    change(tensors, metadata)
    save_file(tensors, file, metadata)


def run(home: Path, *arguments: str) -> tuple[int, set[str]]:
    """The exit status of a run over a set in this process, and the names of the tests that failed."""
    failed: set[str] = set()

    class Failures:
        def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
            if report.failed:
                failed.add(report.nodeid.rpartition("::")[2])

    options = ["-q", "-p", "no:cacheprovider", "--golden", str(home), "--basetemp", f"{home}-inner"]
    return int(pytest.main([*arguments, *options], plugins=[Failures()])), failed


def test_other_names_of_settings_and_part_of_the_gradients_pass(tmp_path: Path) -> None:
    def change(tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
        settings = json.loads(metadata.pop("config"))
        settings["heads"], settings["moco_m"] = settings.pop("num_heads"), settings.pop("m")
        del settings["embed_dim"], settings["depth"], settings["T"]
        metadata["options"] = json.dumps(settings)
        for key in [key for key in tensors if key.startswith("grad") and "norm" not in key]:
            del tensors[key]

    rewrite(copied("mocov3", tmp_path) / "model.safetensors", change)
    assert run(tmp_path, str(HERE / "test_mocov3.py"), "-k", "queries or gradients or state") == (0, set())


def test_a_set_of_other_sizes_and_settings_passes(tmp_path: Path) -> None:
    naive_lejepa.write_set(tmp_path / "lejepa", (3, 5, 4), slices=7, knots=6, t_max=2.5, weight=0.1)
    whole = str(HERE / "test_whole.py")
    assert run(tmp_path, str(HERE / "test_lejepa.py"), whole, "-k", "lejepa or test_lejepa") == (0, set())


def test_discovery_agrees_with_sets_computed_picture_by_picture(tmp_path: Path) -> None:
    modules = [str(HERE / f"test_{name}.py") for name in ("gcd", "ood", "uno", "whole")]
    naive_discovery.gcd(tmp_path / "gcd")
    naive_discovery.ood(tmp_path / "ood")
    naive_discovery.uno(tmp_path / "uno")
    assert run(tmp_path, *modules, "-k", "gcd or ood or uno") == (0, set())

    # and differ from those of which something is another
    def change(tensors: dict[str, Tensor], _metadata: dict[str, str]) -> None:
        for name in tensors.keys() & {"out/inertia", "out/v2_1", "out/vim", "out/auroc_fpr95_knn", "out/loss"}:
            tensors[name] = tensors[name] * 1.001

    for file in sorted(tmp_path.rglob("*.safetensors")):
        rewrite(file, change)
    failed = {"test_hungarian_accuracy[1]", "test_semi_supervised_kmeans", "test_scores", "test_measures[knn]"}
    assert run(tmp_path, *modules[:3]) == (1, {*failed, "test_swapped_prediction"})


def test_simgcd_agrees_with_a_set_computed_picture_by_picture(tmp_path: Path) -> None:
    naive_simgcd.write(tmp_path / "simgcd")
    module, chosen = str(HERE / "test_simgcd.py"), ("-k", "simgcd or test_simgcd")
    assert run(tmp_path, module, str(HERE / "test_whole.py"), *chosen) == (0, set())

    def change(tensors: dict[str, Tensor], _metadata: dict[str, str]) -> None:
        for name in ("out/supcon", "out/teacher_temps", "grad/1.last_layer.weight_v"):
            tensors[name] = tensors[name] * (1 + 1e-6)

    shutil.copytree(tmp_path / "simgcd", tmp_path / "wrong" / "simgcd")
    rewrite(tmp_path / "wrong" / "simgcd" / "step.safetensors", change)
    assert run(tmp_path / "wrong", module) == (1, {"test_one_step", "test_gradients", "test_the_teacher_sharpens"})


@pytest.mark.parametrize(("factors", "stride"), [((4.0, 1.0), 8), ((2.0, 1.0, 0.5), 16)])
def test_pyramids_of_other_levels_pass(tmp_path: Path, factors: tuple[float, ...], stride: int) -> None:
    naive_vitdet.write_set(tmp_path, 8, 3, (4, 2), factors, stride)
    chosen = ("-k", "vitdet or test_vitdet")
    assert run(tmp_path, str(HERE / "test_vitdet.py"), str(HERE / "test_whole.py"), *chosen) == (0, set())

    def change(tensors: dict[str, Tensor], _metadata: dict[str, str]) -> None:
        level = tensors[min(name for name in tensors if name.startswith("out/"))]
        level[0, 0, 0, 0] += 1e-3 * level.abs().max()

    wrong = tmp_path / "wrong"
    shutil.copytree(tmp_path / "vitdet", wrong / "vitdet")
    rewrite(wrong / "vitdet" / "pyramid.safetensors", change)
    assert run(wrong, str(HERE / "test_vitdet.py")) == (1, {"test_levels_and_gradients"})


def test_pseudo_boxes_agree_with_a_set_computed_box_by_box(tmp_path: Path) -> None:
    naive_softteacher.write_set(tmp_path)
    chosen = ("-k", "softteacher or test_softteacher")
    assert run(tmp_path, str(HERE / "test_softteacher.py"), str(HERE / "test_whole.py"), *chosen) == (0, set())

    def change(tensors: dict[str, Tensor], _metadata: dict[str, str]) -> None:
        for name in tensors.keys() & {"out/loss", "out/boxes", "out/uncertainty2", "out/momentum"}:
            tensors[name] = tensors[name] * 1.001

    wrong = tmp_path / "wrong"
    shutil.copytree(tmp_path / "softteacher", wrong / "softteacher")
    for file in (wrong / "softteacher").iterdir():
        rewrite(file, change)
    failed = {"test_background_weights", "test_boxes_from_view_to_view", "test_jitter[2]", "test_averaged_weights"}
    assert run(wrong, str(HERE / "test_softteacher.py")) == (1, failed)


def test_what_is_missing_or_wrong_or_compared_by_nobody_fails(tmp_path: Path) -> None:
    def change(tensors: dict[str, Tensor], _metadata: dict[str, str]) -> None:
        tensors["out/new"] = tensors["out/two/loss"] + 1
        tensors["out/x/grad"][3, 3] += 1e-3
        del tensors["out/two/loss"]

    folder = copied("dinov2", tmp_path)
    rewrite(folder / "koleo.safetensors", change)
    (folder / "head.safetensors").unlink()
    status, failed = run(tmp_path, *map(str, modules_of("dinov2")), str(HERE / "test_whole.py"), "-k", "not masks")
    expected = {"test_koleo[two]", "test_koleo[x]", "test_head", "test_every_name_of_the_set_is_compared[dinov2]"}
    assert (status, failed) == (1, expected)


def test_losses_agree_with_sets_of_other_sizes_computed_step_by_step(tmp_path: Path) -> None:
    for method, make in SETS.items():
        save(tmp_path, method, make(0))
    modules = [str(HERE / f"test_{method}.py") for method in SETS]
    compared = "not schedules and not angles and not masks and not map and not (barlowtwins and lars)"
    assert run(tmp_path, *modules, "-k", compared) == (0, set())

    # and differ from one whose loss is another
    for method, make in SETS.items():
        one = make(0)
        loss = next(name for name in one.tensors if name.startswith(("out/loss", "out/gram", "out/plain_loss")))
        save(tmp_path / "wrong", method, one._replace(tensors={**one.tensors, loss: one.tensors[loss] * 1.01}))
    failed = {"test_loss_and_gradients", "test_terms_loss_and_gradients", "test_objective[0]"}
    failed |= {"test_gram[gram_image]", "test_losses_targets_and_gradients[plain]"}
    assert run(tmp_path / "wrong", *modules, "-k", compared) == (1, failed)


def test_a_method_without_a_folder_is_left_out(tmp_path: Path) -> None:
    copied("dinov2", tmp_path)
    assert run(tmp_path, str(HERE / "test_mocov3.py"), "-k", "schedules") == (0, set())


def test_a_set_of_nothing_is_refused(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(request.config.option, "golden", str(tmp_path))
    with pytest.raises(pytest.UsageError, match=r"found none of the folders .*mae, .*simmim"):
        golden_folders(request.config)


def test_a_set_may_be_the_folder_of_one_method(tmp_path: Path) -> None:
    copied("dinov2", tmp_path).rename(tmp_path / "numbers")
    assert folders_of(tmp_path / "numbers") == {"dinov2": tmp_path / "numbers"}
    assert folders_of(DEFAULT / "dinov2") == {"dinov2": DEFAULT / "dinov2"}
    assert set(folders_of(DEFAULT)) == set(METHODS) and folders_of(tmp_path) == {}


def test_settings_go_by_synonyms_and_say_what_is_missing() -> None:
    settings = Settings({"n_heads": 3, "step": {"base_lr": 0.1}})
    assert (settings["num_heads"], settings["step"]["lr"], settings.get("epochs", 7)) == (3, 0.1, 7)
    with pytest.raises(pytest.fail.Exception, match="the settings have no epochs, only"):
        settings["epochs"]


def test_numbers_that_were_looked_at_for_their_shape_alone_are_not_compared() -> None:
    golden = Golden(DEFAULT / "dinov2" / "koleo.safetensors")
    before = set(READ.pop(golden.file, set()))
    assert golden.shape("in/two") == (2, 24) and "in/two" not in READ[golden.file]
    assert golden["in/two"].shape == (2, 24) and READ[golden.file] == {"in/two"}
    READ[golden.file] |= before


def test_counters_agree_exactly() -> None:
    assert_close(torch.tensor(1000), torch.tensor(1000), 1.0, "batches")
    with pytest.raises(AssertionError, match="batches: found 1001, official 1000"):
        assert_close(torch.tensor(1001), torch.tensor(1000), 1.0, "batches")
