"""A run over several machines, or nodes: all must have the same recipe, pictures and weights."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

from unlabeled.data.archive.prepared import different
from unlabeled.environment import versions
from unlabeled.errors import UserError
from unlabeled.launch.plan import Line, number
from unlabeled.processes import cores, gather_objects
from unlabeled.recipe import differences, flat, format_differences
from unlabeled.recipe.free import is_free
from unlabeled.train.job import Job

OWN = ("run.workers", "run.threads", "run.output")  # each node may have its own, and its own paths of pictures
NAMED = 4


def agree(job: Job) -> list[Line]:
    """Lines of the plan about the nodes, where there are several. Call it on all processes.

    Raises:
        UserError: a process has another recipe, other pictures or other weights to begin with.
    """
    recipes = gather_objects(job.recipe)
    for rank, other in enumerate(recipes):
        changed = [d for d in differences(recipes[0], other) if not _may_differ(type(recipes[0]), d.path)]
        if changed:
            found = f"process {rank} has another recipe than process 0:\n{format_differences(changed)}"
            raise UserError(f"{found}\nGive every process the same recipe and the same command line.")
    agree_on({**job.facts, "samples": len(job.dataset.source)}, "pictures or weights")
    seen = gather_objects((os.environ.get("LOCAL_RANK", "0"), platform.node(), cores(), versions()))
    firsts = [rank for rank, (local, *_) in enumerate(seen) if local == "0"]
    return list(_lines(seen, firsts)) if len(firsts) > 1 else []


def agree_on(facts: Mapping[str, Any], what: str) -> None:
    """Raise UserError on all processes where one knows other facts than process 0. Call it on all processes."""
    seen = gather_objects((flat(facts), platform.node()))
    expected, first = seen[0]
    for rank, (found, host) in enumerate(seen):
        if others := different(expected, found):
            raise UserError(
                f"process {rank} on {host} has other {what} than process 0 on {first}: {others}. Every process must "
                "read the same files: put them on a file system that all machines share, or copy them again."
            )


def _may_differ(schema: type, path: str) -> bool:
    return path in OWN or (path.startswith("data.") and is_free(schema, path))


def _lines(seen: list[tuple[str, str, int, dict[str, str]]], firsts: list[int]) -> Iterator[Line]:
    sizes = [end - start for start, end in pairwise([*firsts, len(seen)])]
    words = [
        f"{seen[rank][1]} ({n} process{'' if n == 1 else 'es'}, {number(seen[rank][2], 'core')})"
        for rank, n in zip(firsts, sizes, strict=True)
    ]
    rest = f" and {len(words) - NAMED} more" if len(words) > NAMED else ""
    yield "nodes", f"{len(firsts)}: {', '.join(words[:NAMED])}{rest}"
    for rank in firsts[1:]:
        if others := different(seen[0][3], seen[rank][3]):
            yield "versions", f"of {seen[rank][1]} are others than of {seen[0][1]}: {others}. Install the same on all."
            return
