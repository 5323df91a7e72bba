"""The nearest features by cosine: exact and part by part in bounded memory, or by an index of FAISS."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from unlabeled.errors import UserError

FLAT = 50_000  # pictures up to which FAISS compares all of them too
TRAINING = 40  # features for each cell that k-means finds them from
PROBED, RECALL = 256, 0.98  # pictures that recall is measured on, and the least that is aimed at
AT = 10  # neighbours that recall is about

Parts = Callable[[], Iterable[Tensor]]  # features [m, D], in order, read anew at each call


class Hits(NamedTuple):
    """The nearest of each query, the nearest first: cosines [q, k] and numbers [q, k]."""

    cosines: Tensor
    numbers: Tensor


class Kind(NamedTuple):
    """What an index of FAISS is.

    Attributes:
        cells: of an inverted file; 0 = every feature is compared.
        probes: cells that are looked through for a query.
        recall: share of the 10 exact nearest that are found, on `PROBED` pictures of the index.
    """

    cells: int = 0
    probes: int = 0
    recall: float = 1.0


def exact(parts: Iterable[Tensor], queries: Tensor, k: int) -> Hits:
    """Search features [n, D], of which one part is in memory at a time, for the k nearest (at most n) of queries
    [q, D]."""
    asked, start = F.normalize(queries.float(), dim=1), 0
    best = Hits(asked.new_zeros(len(asked), 0), torch.zeros(len(asked), 0, dtype=torch.int64))
    for part in parts:
        cosines = asked @ F.normalize(part.float(), dim=1).T
        found = cosines.topk(min(k, len(part)))
        both = torch.cat([best.cosines, found.values], 1), torch.cat([best.numbers, found.indices + start], 1)
        kept = both[0].topk(min(k, both[0].shape[1]))
        best, start = Hits(kept.values, both[1].gather(1, kept.indices)), start + len(part)
    return best


def faiss() -> Any:
    """The library. Raises UserError when it is not installed."""
    try:
        import faiss as library
    except ImportError as error:
        raise UserError(
            "an index needs FAISS: `pip install faiss-cpu`. Without --build, search does without"
        ) from error
    return library


def build(parts: Parts, count: int, width: int) -> tuple[Any, Kind]:
    """Build an index of FAISS over features [count, width]: flat, or for more than `FLAT` an inverted file with as many
    probes as its recall needs.

    Raises UserError when FAISS is not installed.
    """
    library = faiss()
    if count <= FLAT:
        index = library.IndexFlatIP(width)
        _fill(index, parts)
        return index, Kind()
    cells = round(4 * count**0.5)
    index = library.IndexIVFFlat(library.IndexFlatIP(width), width, cells, library.METRIC_INNER_PRODUCT)
    index.train(_some(parts, count, TRAINING * cells))
    _fill(index, parts)
    return index, _tuned(index, parts, count, cells)


def ask(index: Any, kind: Kind, queries: Tensor, k: int) -> Hits:
    """Search an index of FAISS for the k nearest of queries [q, D]; fewer where its probes find fewer."""
    if kind.cells:
        index.nprobe = kind.probes
    cosines, numbers = index.search(F.normalize(queries.float(), dim=1).numpy(), min(k, index.ntotal))
    return Hits(torch.from_numpy(cosines), torch.from_numpy(numbers))


def _fill(index: Any, parts: Parts) -> None:
    for part in parts():
        index.add(F.normalize(part.float(), dim=1).numpy())


def _some(parts: Parts, count: int, most: int) -> Any:
    """About `most` features, evenly from all."""
    step = max(1, count // most)
    return torch.cat([F.normalize(part[::step].float(), dim=1) for part in parts()]).numpy()


def _tuned(index: Any, parts: Parts, count: int, cells: int) -> Kind:
    """Twice as many probes until the recall is reached, against exact search."""
    queries = torch.cat([part[:: max(1, count // PROBED)] for part in parts()])[:PROBED]
    truth, probes = exact(parts(), queries, AT).numbers, 1
    while True:
        kind = Kind(cells, probes)
        found = ask(index, kind, queries, AT).numbers
        recall = (found.unsqueeze(2) == truth.unsqueeze(1)).any(2).float().mean().item()
        if recall >= RECALL or probes >= cells:
            return kind._replace(recall=recall)
        probes = min(2 * probes, cells)
