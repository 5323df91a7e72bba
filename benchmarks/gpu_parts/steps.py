"""Whole training steps of every method: eager and compiled, beside what arithmetic says."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from gpu_parts.cases import CASES, Steps
from gpu_parts.place import Figures, Part, Place

PEAK_TFLOPS = 790  # of an H200 in bf16, dense, as measured at 8192^3
COMPILED = ("mae-S-256", "mae-L-512", "dino-S-256", "dinov2-L-64", "mocov3-S-256", "simclr-S-256", "ibot-S-256")
FIRST = ("mae-S-256", "dino-S-256", "dinov2-L-64", "mae-L-512")  # in case time runs out
DRY = ("mae-S-256", "dino-S-256")


def measure(place: Place) -> Figures:
    """Eager and compiled in turn, the cases that matter most first."""
    names = DRY if place.dry else (*FIRST, *(name for name in CASES if name not in FIRST))
    for name in names:
        yield f"{name} eager", figures(place, name)
        if name in COMPILED and place.cuda:  # compiling takes minutes on a CPU
            yield f"{name} compiled", figures(place, name, "run.compile=true")
        if place.cuda:
            torch.cuda.empty_cache()


def figures(place: Place, name: str, *fields: str) -> dict[str, Any]:
    """Of one case."""
    if place.cuda:
        torch.cuda.reset_peak_memory_stats()
    torch._dynamo.reset()
    steps = Steps(place, name, *fields)
    first = place.once(steps.step)
    spent, host = place.milliseconds(steps.step), by_host(place, steps.step)
    speed = 1e3 * steps.pictures / spent
    with FlopCounterMode(display=False) as counter:
        steps.step()
    flop = 0 if fields else counter.get_total_flops()  # of a compiled step it sees a part
    known = {"ms": spent, "host_ms": host, "images_per_s": speed, "first_step_s": first / 1e3}
    if flop:
        known |= {"tflop": flop / 1e12, "mfu": flop / 1e9 / spent / PEAK_TFLOPS}
    if place.cuda:
        known |= {"peak_gb": torch.cuda.max_memory_allocated() / 1e9, **kernels(steps.step)}
    return known


def by_host(place: Place, step: Callable[[], None]) -> float:
    """Milliseconds until the host has asked for everything of a step."""
    place.wait()
    started = perf_counter()
    step()
    spent = 1e3 * (perf_counter() - started)
    place.wait()
    return spent


def kernels(step: Callable[[], None]) -> dict[str, float]:
    """Launches of a step, and the share of its time in which no kernel runs."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        for _ in range(2):
            step()
        torch.cuda.synchronize()
    spans = sorted(
        (event.time_range.start, event.time_range.end)
        for event in profiler.events() or ()
        if event.device_type == torch.autograd.DeviceType.CUDA
    )
    busy, until = 0.0, spans[0][0]
    for start, end in spans:
        busy += max(0.0, end - max(start, until))
        until = max(until, end)
    return {"launches": len(spans) / 2, "idle": 1 - busy / (until - spans[0][0])}


PART = Part(220, measure)
