"""A backend of torch.compile that compiles nothing, and tells which graphs were made and how often each region ran."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from itertools import islice
from typing import Any
from unittest import mock

import torch
from every_method import LAST, build, recipe_of
from torch import Tensor
from torch._dynamo.utils import counters

from unlabeled.backbone.folder import IMAGENET
from unlabeled.data.batch.batch import Batch
from unlabeled.data.batch.loader import Normalize, ViewDataset, to_device
from unlabeled.data.batch.sampler import EpochSampler
from unlabeled.data.batch.samples import collate
from unlabeled.data.opened import Opened
from unlabeled.nn import regions
from unlabeled.nn.regions import compile_blocks_, compiling
from unlabeled.pretrain.method import Method, Progress

# regions of hidden patches, whose number is another in every step
VARYING = {"DistillHead.embed", "Prototypes.forward", "sharpen", "masked_patches", "_sums"}
VARYING |= {"_scores", "_below", "_balanced"}
# and of sequences, where a mask hides more in one step than in another
SEQUENCES = {"Block.forward", "SelfBlock.forward", "regression"}


class Graphs:
    """Of the regions that ran within `counted`.

    Attributes:
        made: the region of each graph.
        symbols: regions with a shape that is a variable.
        runs: how often each region ran.
    """

    def __init__(self) -> None:
        self.made: list[str] = []
        self.symbols: set[str] = set()
        self.runs: collections.Counter[str] = collections.Counter()

    @property
    def breaks(self) -> dict[str, int]:
        """Reasons why a region is more than one graph."""
        return dict(counters["graph_break"])

    def compile(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """In the place of `regions.compiled`."""
        return torch.compile(function, dynamic=False, backend=partial(self._graph, function.__qualname__))

    def _graph(self, name: str, graph: Any, inputs: list[Any]) -> Callable[..., Any]:
        self.made.append(name)
        if any(isinstance(one, torch.SymInt) for one in inputs):
            self.symbols.add(name)

        def run(*given: Any) -> Any:
            self.runs[name] += 1
            return graph.forward(*given)

        return run


@contextmanager
def counted() -> Iterator[Graphs]:
    """Within, regions are compiled by a backend that counts."""
    graphs = Graphs()
    torch._dynamo.reset()
    counters.clear()
    with mock.patch.object(regions, "compiled", cache(graphs.compile)):
        yield graphs
    torch._dynamo.reset()


def batches_of(name: str, *fields: str) -> Iterator[Batch]:
    """The batches of eight samples of a demo recipe, on the CPU."""
    recipe, cpu = recipe_of(name, *fields), torch.device("cpu")
    dataset = ViewDataset(
        Opened(recipe.data).train, recipe.method.views, recipe.method.mask_patch, recipe.seed, recipe.method.mixing
    )
    for positions in EpochSampler(42, 8, LAST, seed=recipe.seed):
        yield to_device(collate([dataset[p] for p in positions]), cpu, Normalize(IMAGENET.mean, IMAGENET.std, cpu))


def steps_of(method: Method, batches: Sequence[Batch], compiled: bool) -> Iterator[dict[str, Tensor]]:
    """Losses and gradients of steps in which weights stay and teachers move."""
    for step, batch in enumerate(batches):
        progress = Progress(step, LAST, step / 2, 5.0)
        with compiling(compiled):
            output = method(batch, progress)
        output.loss.backward()
        gradients = {name: p.grad for name, p in method.named_parameters() if p.grad is not None}
        yield {"loss": output.loss.detach(), **output.metrics, **gradients}
        method.zero_grad()
        method.after_step(progress)


def check_compiled(name: str, *fields: str, steps: int = 3) -> Graphs:
    """Train a demo recipe's method compiled: every number is as without, and no step but the first makes a graph."""
    batches = list(islice(batches_of(name, *fields), steps))
    expected = list(steps_of(build(name, *fields), batches, compiled=False))
    method = build(name, *fields)
    names = list(method.state_dict())
    steady = all(view.mask.steady for view in recipe_of(name, *fields).method.views if view.mask is not None)
    compile_blocks_(method, steady)
    assert list(method.state_dict()) == names
    first = 0
    with counted() as graphs:
        for step, found in enumerate(steps_of(method, batches, compiled=True)):
            torch.testing.assert_close(found, expected[step], rtol=1e-5, atol=1e-6)
            first = first or len(graphs.made)
            assert len(graphs.made) == first, f"step {step} makes graphs of {graphs.made[first:]}"
        assert not graphs.breaks and graphs.symbols <= (VARYING if steady else VARYING | SEQUENCES)
        method.evaluated()(batches[0].views[0].flat()[0][:3])
        assert len(graphs.made) == first, "what is not trained is not compiled"
    return graphs
