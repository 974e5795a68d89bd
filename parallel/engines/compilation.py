"""Compilation of a model's blocks with torch.compile, without a silent return to eager execution.

torch keeps compiled graphs by code object, at most 8 for each, and runs eager beyond that. All blocks of a model would
share one code object: local and global attention, training and evaluation, and attention back-ends multiply. So each
kind of blocks gets a code object of its own here, and blocks of one kind share their graphs. What differs from batch to
batch, such as the number of documents, is marked as dynamic before the first graph is made.

Only the `forward` of a block is compiled, as one graph (`fullgraph`). Hooks that an engine puts on the block stay
outside.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

from ingot.parallel.torch_compat import (
    compilation_failures,
    compile_function,
    compiler_backend,
    mark_varying,
    memory_budget,
)

MOST_GRAPHS = 64
"""Of one kind of blocks. A kind needs about 4: with and without gradients, and for two attention back-ends."""

Varying = Callable[..., Iterable[tuple[Tensor, int]]]


class Compilation:
    """The compiled blocks of one model, and what is to be told about them.

    Attributes:
        graphs: number of graphs that were compiled.
        seconds: that it took.
        notes: messages for the log of the run, oldest first; whoever logs them takes them out.
    """

    def __init__(self, backend: str, budget: float):
        self.graphs, self.seconds, self.notes = 0, 0.0, list[str]()
        self._backend, self._budget = compiler_backend(backend), budget
        self._failed: set[tuple[str, bool]] = set()

    def compile_graph(self, graph: Any, inputs: list) -> Callable:
        """The backend that torch calls with each new graph."""
        self.graphs += 1
        with memory_budget(self._budget):  # it decides here what the forward saves for the backward
            return self._backend(graph, inputs)

    def function_of(self, kind: str) -> Callable:
        """A compiled function that calls its first argument with the others, with a code object of its own."""

        def call(run, *inputs):
            return run(*inputs)

        call.__code__ = call.__code__.replace(co_name=f"blocks_{kind}")
        return compile_function(call, self.compile_graph, most_graphs=MOST_GRAPHS)

    def failed(self, variant: tuple[str, bool], error: Exception) -> None:
        """Notes that blocks run eager."""
        self._failed.add(variant)
        reason = " ".join(str(error.__cause__ or error).split())[:300]
        what = "training" if variant[1] else "evaluation"
        self.notes.append(f"blocks of kind {variant[0]} run without compilation in {what}, at least in part: {reason}")

    def call(self, kind: str, function: Callable, forward: Callable, inputs: tuple) -> Any:
        """The result of `forward`, from a compiled graph if there is one or one can be made."""
        variant = kind, torch.is_grad_enabled()
        if variant in self._failed:
            with torch.compiler.set_stance("eager_on_recompile"):
                return function(forward, *inputs)
        before, start = self.graphs, time.perf_counter()
        try:
            return function(forward, *inputs)
        except compilation_failures() as error:  # while the graph was made: nothing has been computed
            self.failed(variant, error)
            return forward(*inputs)
        finally:
            if self.graphs > before:
                self.seconds += time.perf_counter() - start


def compile_blocks(
    blocks: Sequence[nn.Module], varying: Varying, backend: str = "inductor", budget: float = 1.0
) -> Compilation:
    """Compiles the forward of each of `blocks`, in place. Call it after `checkpoint_activations`.

    Args:
        varying: from the inputs of a block to the tensors whose sizes differ from batch to batch, each with the dim.
        backend: of torch.compile.
        budget: share of the memory of a block's activations that is used: 1 is what the compiler keeps by default, and
            0 only the block's inputs. Between them it computes again what is cheapest.
    """
    compilation = Compilation(backend, budget)
    functions: dict[str, Callable] = {}
    numbers: dict[tuple, str] = {}
    for block in blocks:
        kind = numbers.setdefault(_structure(block), str(len(numbers)))
        if kind not in functions:
            functions[kind] = compilation.function_of(kind)
        block.forward = _compiled(block, functions[kind], kind, varying, compilation)
    return compilation


def _compiled(block: nn.Module, function: Callable, kind: str, varying: Varying, compilation: Compilation) -> Callable:
    forward = block.forward

    @wraps(forward)
    def run(*inputs):
        if torch.compiler.is_compiling():  # inside a larger graph
            return forward(*inputs)
        for tensor, dim in varying(*inputs):
            mark_varying(tensor, dim)
        return compilation.call(kind, function, forward, inputs)

    return run


def _structure(block: nn.Module) -> tuple:
    """What makes two blocks of one kind: their modules, settings, and parameters."""
    settings = {n: v for n, v in vars(block).items() if isinstance(v, bool | int | float | str) and n != "training"}
    modules = tuple((name, type(module), module.extra_repr()) for name, module in block.named_modules())
    parameters = tuple((name, p.shape, p.dtype, p.requires_grad) for name, p in block.named_parameters())
    return type(block), tuple(sorted(settings.items())), modules, parameters
