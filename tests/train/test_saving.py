"""Checkpoints that are written while training goes on, by one process or in pieces by all of them."""

from __future__ import annotations

import itertools
import threading
import weakref
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from support import on_processes
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from unlabeled.errors import UserError
from unlabeled.manifest import Damaged
from unlabeled.processes import placed
from unlabeled.train import state
from unlabeled.train.checkpoint import Checkpoints, load
from unlabeled.train.saving.background import Background
from unlabeled.train.saving.stored import Stored, assembled, everything, packed, read_header

MIXED = {
    "weight": torch.arange(12.0).view(3, 4),
    "step": torch.tensor(5),
    "scale": torch.tensor(2.5),
    "half": torch.randn(2, 3).to(torch.bfloat16),
    "flags": torch.tensor([True, False, True]),
    "nothing": torch.empty(0, 3),
    "état": torch.randn(2, dtype=torch.complex64),
}


def value(stored: Stored) -> torch.Tensor:
    return stored[everything(stored)]


def test_files_are_those_of_the_library(tmp_path: Path) -> None:
    for tensors in (MIXED, {}):
        data = b"".join(bytes(part) for part in packed(tensors))
        assert data == safetensors.torch.save(tensors)
        (tmp_path / "model.safetensors").write_bytes(data)
        read = assembled(tmp_path, {"model.safetensors": read_header(tmp_path / "model.safetensors")})["model"]
        assert read.keys() == tensors.keys()
        assert all(torch.equal(value(read[name]), tensor) for name, tensor in tensors.items())
        assert all(value(read[name]).dtype == tensor.dtype for name, tensor in tensors.items())


def pieces(folder: Path, whole: torch.Tensor, cuts: list[tuple[slice, ...]]) -> dict[str, Any]:
    """A tensor `x` in one file for each cut, with another tensor before it; the headers by name."""
    headers = {}
    for number, cut in enumerate(cuts):
        file = folder / f"model-{number}-of-{len(cuts)}.safetensors"
        place = (tuple(part.start for part in cut), tuple(whole.shape))
        tensors = {"a": torch.full((3,), number), "x": whole[cut].contiguous()} if number == 0 else {"x": whole[cut]}
        tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
        file.write_bytes(b"".join(bytes(part) for part in packed(tensors, {"x": place})))
        assert torch.equal(safetensors.torch.load_file(file)["x"], whole[cut]), "the library reads a piece"
        headers[file.name] = read_header(file)
    return headers


def parts(*cuts: tuple[int, ...]) -> list[tuple[slice, ...]]:
    """All regions between the cuts of each dimension."""
    edges = [[slice(low, high) for low, high in itertools.pairwise(cut)] for cut in cuts]
    return list(itertools.product(*edges))


def test_any_region_of_any_pieces(tmp_path: Path) -> None:
    whole = torch.arange(5 * 4 * 3).view(5, 4, 3)
    for cuts in (
        parts((0, 3, 5), (0, 4), (0, 3)),
        parts((0, 5), (0, 1, 1, 4), (0, 3)),
        parts((0, 2, 5), (0, 3, 4), (0, 2, 3)),
    ):
        stored = assembled(tmp_path, pieces(tmp_path, whole, cuts))["model"]["x"]
        for region in (
            parts((0, 2, 3, 3, 5), (0, 1, 4), (0, 2, 3)) + parts((0, 5), (0, 4), (0, 3)) + parts((1, 4), (1, 3), (1, 2))
        ):
            assert torch.equal(stored[region], whole[region])


def test_pieces_that_do_not_make_a_whole(tmp_path: Path) -> None:
    whole = torch.arange(12).view(4, 3)
    headers = pieces(tmp_path, whole, parts((0, 2, 4), (0, 3)))
    first, second = headers
    assert assembled(tmp_path, headers)["model"].keys() == {"a", "x"}
    with pytest.raises(Damaged, match=r"the pieces of x do not make a whole of \[4, 3\]"):
        assembled(tmp_path, {first: headers[first]})
    with pytest.raises(Damaged, match="x has another type or shape in"):
        assembled(
            tmp_path, {first: headers[first], second: pieces(tmp_path, whole.float(), parts((0, 2, 4), (0, 3)))[second]}
        )
    for place in ("[[3, 0], [4, 3]]", "[[-1, 0], [4, 3]]", "[[0], [4]]", "[0, 4]", "null", '"x"', "{}", "[[0, 0]]"):
        data = b"".join(bytes(part) for part in packed({"x": whole[:2]}, {"x": "PLACE"}))  # type: ignore[dict-item]
        (tmp_path / first).write_bytes(_longer(data, '\\"PLACE\\"', place))
        with pytest.raises(Damaged):
            read_header(tmp_path / first)


def _longer(data: bytes, old: str, new: str) -> bytes:
    """A safetensors file with other words in its header."""
    size = int.from_bytes(data[:8], "little")
    head = data[8 : 8 + size].decode().replace(old, new.replace('"', '\\"')).encode()
    return len(head).to_bytes(8, "little") + head + data[8 + size :]


class Slow:
    """Checkpoints whose writing waits until it is let go."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, **how: Any) -> None:
        self.go, self.said = threading.Event(), list[str]()
        self.checkpoints = Checkpoints(folder, 1, None, self.said.append, **how)
        self.saving = Background(self.checkpoints)
        save = Checkpoints.save

        def slow(*arguments: Any) -> Path:
            assert self.go.wait(60)
            return save(*arguments)

        monkeypatch.setattr(Checkpoints, "save", slow)

    def begin(self, step: int, weight: torch.Tensor, **state: Any) -> dict[str, Any]:
        state |= {"step": step}
        self.saving.begin(step, {"model": {"w": weight}, "optimizer": {}}, state)
        return state


def test_what_is_written_is_of_the_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow, weight = Slow(tmp_path, monkeypatch), torch.arange(6.0).view(2, 3).t()
    state = slow.begin(1, weight, lengths=[1.0])
    weight.zero_()
    state["lengths"].append(2.0)
    assert slow.checkpoints.steps() == [], "training goes on meanwhile"
    slow.go.set()
    slow.saving.wait()
    found = load(slow.checkpoints.path(1))
    assert found.state["lengths"] == [1.0] and torch.equal(
        value(found.tensors["model"]["w"]), torch.arange(6.0).view(2, 3).t()
    )
    slow.begin(2, weight)
    slow.begin(3, weight + 1)
    assert slow.checkpoints.steps() == [2], "the next waits for the one before"
    slow.saving.close()
    assert slow.checkpoints.steps() == [3]


def test_the_best_of_the_step_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next one is better, but not yet saved when the one before is removed."""
    slow = Slow(tmp_path, monkeypatch)
    slow.go.set()
    slow.checkpoints.best = 1
    for step in (1, 2):
        slow.begin(step, torch.ones(1))
    slow.saving.wait()
    slow.go.clear()
    slow.begin(3, torch.ones(1))
    slow.checkpoints.best = 4
    slow.go.set()
    slow.saving.wait()
    assert slow.checkpoints.steps() == [1, 3]


@pytest.mark.parametrize("error", [UserError("the disk is full"), MemoryError("no memory")])
def test_an_error_of_the_thread_is_raised_by_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    saving = Background(Checkpoints(tmp_path, 1, None, print))

    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(Checkpoints, "save", fail)
    for call in (saving.wait, lambda: saving.begin(2, {}, {})):
        saving.begin(1, {}, {})
        saving.close()
        assert saving.failed
        with pytest.raises(type(error), match=str(error)):
            call()
        assert not saving.failed


def test_what_the_thread_says_is_said_by_the_main_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoken: list[tuple[str, bool]] = []

    def note(text: str) -> None:
        spoken.append((text, threading.current_thread() is threading.main_thread()))

    saving = Background(Checkpoints(tmp_path, 1, None, note))
    monkeypatch.setattr(Checkpoints, "_prune", lambda checkpoints, step: checkpoints.say(f"pruned at {step}"))
    saving.begin(1, {}, {"step": 1})
    saving.wait()
    assert spoken == [("pruned at 1", True)]


PLAIN = (torch.Tensor, nn.Parameter)
LARGEST, SMALL = 4 * 128 * 256, 16 << 10  # bytes: of a tensor of `network`, and of what is exchanged beside tensors


def network(sharded: bool) -> tuple[nn.Module, torch.optim.AdamW]:
    """Tensors of 256, 7, 3 and 1 rows, of no row (on some processes), and some that are never sharded."""
    layers = [nn.Linear(128, 256), nn.Linear(256, 7), nn.BatchNorm1d(7), nn.Linear(7, 1), nn.Linear(1, 3, bias=False)]
    made = nn.Sequential(*layers)
    if sharded:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh("cpu", (placed()[1],))
        for part in [*layers, made]:
            fully_shard(part, mesh=mesh)
    return made, torch.optim.AdamW(made.parameters())


def expected() -> dict[str, dict[str, torch.Tensor]]:
    """Values of every tensor; the last layer has not been trained yet."""
    made, _ = network(False)
    model = {
        name: torch.arange(t.numel()).view(t.shape).to(t.dtype) + i
        for i, (name, t) in enumerate(made.state_dict().items())
    }
    moments = {
        f"{name}/{key}": torch.tensor(3.0) if key == "step" else model[name] * 2 + i
        for name, _ in list(made.named_parameters())[:-1]
        for i, key in enumerate(("exp_avg", "exp_avg_sq", "step"))
    }
    return {"model": model, "optimizer": moments}


class Peak(TorchDispatchMode):
    """The most bytes of new whole tensors, or parts of them, that are held at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.held = self.most = 0
        self.sizes, self.views = dict[int, int](), Counter[int]()  # of new storages, by their address

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        known = {self._address(tensor) for tensor in tree_leaves((args, kwargs)) if type(tensor) in PLAIN}
        for tensor in tree_leaves(out):
            if type(tensor) in PLAIN and ((at := self._address(tensor)) in self.sizes or at not in known):
                if at not in self.sizes:
                    self.sizes[at] = tensor.untyped_storage().nbytes()
                    self.held += self.sizes[at]
                    self.most = max(self.most, self.held)
                self.views[at] += 1
                weakref.finalize(tensor, self._gone, at)
        return out

    @staticmethod
    def _address(tensor: torch.Tensor) -> int:
        return tensor.untyped_storage().data_ptr()

    def _gone(self, at: int) -> None:
        self.views[at] -= 1
        if not self.views[at]:
            self.held -= self.sizes.pop(at)


def _write_and_read(folder: Path, rank: int) -> list[str]:
    """Save the values with this number of processes, sharded and not, and read whatever lies there; returns faults."""
    faults, world = [], placed()[1]
    for sharded in (False, True)[: 1 + (world > 1)]:
        made, optimizer = network(sharded)
        state.load_model(made, expected()["model"])
        state.load_optimizer(made, optimizer, expected()["optimizer"])
        checkpoints = Checkpoints(folder / f"{world}-{sharded}", 1, None, print, writes=rank == 0)
        saving = Background(checkpoints, sharded)
        for step in (1, 2):
            tensors = {"model": state.model_tensors(made), "optimizer": state.optimizer_tensors(made, optimizer)}
            with Peak() as peak:
                saving.begin(step, tensors, {"step": step})
            if peak.most > SMALL and (step == 2 or (rank > 0 and not sharded)):
                faults.append(f"{peak.most} bytes to save with {world}, sharded {sharded}, step {step}")
        for parameter in made.parameters():
            parameter.data.zero_()
        saving.wait()
    for other in sorted(folder.iterdir()):
        for sharded in (False, True)[: 1 + (world > 1)]:
            faults += [f"{fault} from {other.name} with {world}, sharded {sharded}" for fault in _read(other, sharded)]
    return faults


def _read(folder: Path, sharded: bool) -> list[str]:
    made, optimizer = network(sharded)
    found = Checkpoints(folder, 1, None, print, writes=placed()[0] == 0).newest()
    assert found is not None and found.state["step"] == 2
    with Peak() as peak:
        state.load_model(made, found.tensors["model"])
    faults = [f"{peak.most} bytes to load"] if peak.most > LARGEST + SMALL else []
    state.load_optimizer(made, optimizer, found.tensors["optimizer"])
    parts = {"model": state.model_tensors(made), "optimizer": state.optimizer_tensors(made, optimizer)}
    for part, values in expected().items():
        whole = {name: state.full(tensor) for name, tensor in parts[part].items()}
        if whole.keys() != values.keys():
            faults.append(f"{sorted(whole.keys() ^ values.keys())}")
        faults += [
            name for name in values if whole[name].dtype != values[name].dtype or not whole[name].equal(values[name])
        ]
    return faults


def test_any_number_of_processes_reads_what_any_has_written(tmp_path: Path) -> None:
    """Sharded or not, to the bit; and no process holds more than a tensor beside its own."""
    assert _write_and_read(tmp_path, 0) == []
    assert on_processes(partial(_write_and_read, tmp_path), 3) == [[]] * 3
    assert on_processes(partial(_write_and_read, tmp_path), 2) == [[]] * 2
    written = ["1-False", "2-False", "2-True", "3-False", "3-True"]
    assert sorted(path.name for path in tmp_path.iterdir()) == written
