"""One training step (forward, backward, AdamW, teacher) of every method, float32: ours and lightly's.

    python benchmarks/step.py [--methods mae,dino] [--json] [--rounds N] [--threads N]

Needs `pip install lightly>=1.6`. Each contender lives in a process of its own, as a user of it would run it; the
processes of a method take turns. "ours" has the settings that our engine makes on a CPU; "lightly + our allocator" gets
them too. Sizes, and what lightly lacks, are in `contenders/`.

The share of the peak is (matrix products of the network as published) / time / (the fastest float32 `F.linear` that
the same process does in the same turn). The products are counted once for all contenders of a method, whatever each
leaves out or does twice: each file in `contenders/` says which; attention's two products are among them. Times 3 where
something is trained (forward and backward), times 1 where not. Nothing else is counted.
"""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Sequence
from multiprocessing.connection import Connection
from statistics import median
from typing import Any, NamedTuple

import torch
from common import finish, forget_peak_memory, machine, matmul_peak, options, peak_memory_mb, seconds, table
from contenders import METHODS, comparison
from contenders.parts import DEPTH, PROGRESS, Comparison, Peer, Step, lightly_step, our_step

from unlabeled.accelerator import keep_freed_memory
from unlabeled.pretrain.method import Method

OURS, LIGHTLY, LIGHTLY_KEPT = "ours", "lightly", "lightly + our allocator"
HEAD = ("medians", "s/step", "fastest", "images/s", "GFLOP/s peak", "share of peak", "peak MB")


class Turn(NamedTuple):
    """What one turn of a contender measured."""

    seconds: float
    peak_gflops: float
    peak_mb: float


Turns = dict[str, list[Turn]]


def contenders(method: Comparison) -> tuple[str, ...]:
    """Who takes part."""
    return (OURS, *((LIGHTLY, LIGHTLY_KEPT) if method.lightly else ()), *method.variants)


def make_step(method: Comparison, name: str, depth: int = DEPTH, pictures: int | None = None) -> Step:
    """A contender's training step."""
    torch.manual_seed(0)
    batch = method.make_batch(pictures or method.batch, 0)
    if name.startswith(LIGHTLY):
        assert method.lightly is not None
        return lightly_step(method.lightly(depth), batch)
    ours = method.ours if name == OURS else method.variants[name]
    return our_step(ours.build(depth), batch)


# ---------------------------------------------------------------- identical mathematics


def disagreement(method: Comparison, depth: int = 2) -> tuple[float, float]:
    """Largest relative difference between ours and lightly's at the same weights: of the loss, of any gradient.

    Two blocks are enough to tell, in float64: batch normalisation of a few rows magnifies rounding.
    """
    assert method.lightly is not None
    torch.manual_seed(0)
    pictures = min(4, method.batch)
    batch, ours, theirs = method.make_batch(pictures, 1), method.ours.build(depth), method.lightly(depth)
    give_weights(theirs, ours)
    batch = batch._replace(views=[view._replace(pixels=view.pixels.double()) for view in batch.views])
    ours.double()
    theirs.double()

    # both drop the same paths
    torch.manual_seed(2)
    a = ours(batch, PROGRESS).loss
    torch.manual_seed(2)
    b = theirs(batch)
    a.backward()
    b.backward()
    mine = {theirs.name_of(name): p.grad for name, p in ours.named_parameters() if p.grad is not None}
    gradients = {name: p.grad for name, p in theirs.named_parameters() if p.grad is not None}
    assert gradients.keys() - mine.keys() == set(theirs.more) and mine.keys() <= gradients.keys()
    # against the tensor's largest; a bias in front of batch normalisation has no gradient but rounding
    rounding = 1e-5 * max(g.abs().max().item() for g in mine.values())
    worst = max(
        ((gradients[name] - g.view_as(gradients[name])).abs().max() / g.abs().max().clamp_min(rounding)).item()
        for name, g in mine.items()
    )
    return abs(a.item() / b.item() - 1), worst


def give_weights(theirs: Peer, ours: Method) -> None:
    """Give lightly's network the weights of ours. Centres have no counterpart: both begin at zero."""
    own = theirs.state_dict()
    weights = {theirs.name_of(name): tensor for name, tensor in ours.state_dict().items()}
    theirs.load_state_dict({name: t.view_as(own[name]) for name, t in weights.items() if name in own}, strict=False)


# ---------------------------------------------------------------- measuring


def serve(method: str, name: str, threads: int, pipe: Connection) -> None:
    """A contender's process: a turn for each request, until there is none."""
    torch.set_num_threads(threads)
    if name != LIGHTLY:
        keep_freed_memory()
    step = make_step(comparison(method), name)
    forget_peak_memory()
    for _ in range(2):
        step()
    memory = peak_memory_mb()
    pipe.send(None)
    while pipe.recv():
        peak = matmul_peak()
        pipe.send(Turn(seconds(step), max(peak, matmul_peak()), memory))


def measure(method: str, names: Sequence[str], rounds: int, threads: int) -> Turns:
    """Turns of each contender, one after the other in every round."""
    context = multiprocessing.get_context("spawn")
    pipes, processes = {}, []
    for name in names:
        pipes[name], far = context.Pipe()
        process = context.Process(target=serve, args=(method, name, threads, far), daemon=True)
        process.start()
        processes.append(process)
        pipes[name].recv()  # ready: nobody warms up during another's turn
    turns: Turns = {name: [] for name in names}
    for done in range(rounds):
        print(f"{method}: round {done + 1} of {rounds}", end="\r", file=sys.stderr, flush=True)
        for name in names if done % 2 == 0 else reversed(names):
            pipes[name].send(True)
            turns[name].append(pipes[name].recv())
    for name, process in zip(names, processes, strict=True):
        pipes[name].send(False)
        process.join()
    return turns


def middle(turns: list[Turn]) -> float:
    """Median seconds per step."""
    return median(turn.seconds for turn in turns)


def figures(method: Comparison, turns: list[Turn], gflop: float | None) -> dict[str, float | None]:
    """What one contender reached; its share of the peak is the median over turns."""
    work = None if gflop is None else method.batch * gflop
    shares = None if work is None else [work / turn.seconds / turn.peak_gflops for turn in turns]
    return {
        "images_per_s": round(method.batch / middle(turns), 2),
        "share_of_peak": None if shares is None else round(median(shares), 3),
        "peak_mb": round(turns[0].peak_mb),
    }


def summary(name: str, method: Comparison, turns: Turns) -> dict[str, Any]:
    """The figures by name. Ratios above 1 mean that ours, or the variant of ours, is faster."""
    ours = middle(turns[OURS])
    result: dict[str, Any] = {name: {**figures(method, turns[OURS], method.ours.gflop), "vs_lightly": None}}
    if method.lightly:
        result[name] |= {
            "vs_lightly": round(middle(turns[LIGHTLY]) / ours, 3),
            "vs_lightly_same_allocator": round(middle(turns[LIGHTLY_KEPT]) / ours, 3),
            "lightly": figures(method, turns[LIGHTLY], method.ours.gflop),
        }
    for variant, (_, gflop) in method.variants.items():
        versus = {f"vs_{name}": round(ours / middle(turns[variant]), 2), "vs_lightly": None}
        result[variant] = {**figures(method, turns[variant], gflop), **versus}
    return result


def report(name: str, method: Comparison, turns: Turns) -> str:
    """The table of one method."""
    rows = []
    for contender, own in turns.items():
        gflop = method.variants[contender].gflop if contender in method.variants else method.ours.gflop
        found = figures(method, own, gflop)
        share = "-" if found["share_of_peak"] is None else f"{found['share_of_peak']:.3f}"
        fastest, peak = min(turn.seconds for turn in own), median(turn.peak_gflops for turn in own)
        times = f"{middle(own):.3f}", f"{fastest:.3f}", f"{found['images_per_s']:.2f}"
        rows.append((contender, *times, f"{peak:.0f}", share, f"{found['peak_mb']:.0f}"))
    verdict = f"{name}: lightly has no parts for it"
    if method.lightly:
        ratio, kept = (middle(turns[other]) / middle(turns[OURS]) for other in (LIGHTLY, LIGHTLY_KEPT))
        verdict = f"{name}: ours is {ratio:.3f} x lightly's speed ({kept:.3f} x with our allocator's settings for both)"
    return "\n".join((table(HEAD, rows), verdict, *([f"note: {method.note}"] if method.note else [])))


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare, print tables, and one object with `--json`."""
    chosen = options("A training step of each method: ours and lightly's.", 9, arguments, methods=METHODS)
    torch.set_num_threads(chosen.threads)
    print(machine())
    result: dict[str, Any] = {}
    for name in chosen.methods:
        method = comparison(name)
        assert method.ours.gflop is not None
        print(f"\n{name}, batch {method.batch}, {method.batch * method.ours.gflop:.0f} GFLOP per step", flush=True)
        if method.lightly:
            loss, gradient = disagreement(method)
            print(
                f"ours and lightly differ by {loss:.1e} (loss), {gradient:.1e} (gradients), relative, at equal weights"
            )
        turns = measure(name, contenders(method), chosen.rounds, chosen.threads)
        print(report(name, method, turns), flush=True)
        result |= summary(name, method, turns)
    finish(chosen, result)


if __name__ == "__main__":
    main()
