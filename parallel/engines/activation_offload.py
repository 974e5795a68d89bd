"""The inputs of checkpointed blocks in the host's memory, from the forward to the backward pass.

On CUDA the copies run on a stream of their own beside the computation, from and to pinned memory. In the backward pass
the input of a block is fetched while the block after it is computed.
"""

import weakref
from collections.abc import Callable, Sequence
from functools import wraps

import torch
from torch import Tensor, nn


def offload_inputs(blocks: Sequence[nn.Module]) -> None:
    """Keeps the first input of each of `blocks` in the host's memory where its backward pass needs it.

    Call it after `checkpoint_activations(blocks, "full")`, and after `compile_blocks`.
    """
    host = HostMemory()
    for block in blocks:
        block.forward = _offloaded(block.forward, host)


def _offloaded(forward: Callable, host: "HostMemory") -> Callable:
    @wraps(forward)
    def run(x, *inputs):
        if not torch.is_grad_enabled() or torch.compiler.is_compiling():
            return forward(x, *inputs)

        def pack(tensor: Tensor) -> "Tensor | Offloaded":
            # Compiled blocks save their parameters too, which have to stay.
            is_input = tensor.data_ptr() == x.data_ptr() and tensor.shape == x.shape and tensor.stride() == x.stride()
            return host.store(tensor) if is_input else tensor

        def unpack(packed: "Tensor | Offloaded") -> Tensor:
            return packed if isinstance(packed, Tensor) else host.load(packed)

        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            return forward(x, *inputs)

    return run


class Offloaded:
    """A tensor in the host's memory.

    Attributes:
        copy: of the tensor, pinned if it came from CUDA.
        device: where the tensor was.
        before: what was stored before it, and is needed after it in the backward pass, if the graph still has it.
        fetched: the tensor on its device, and the event after which it is complete.
    """

    def __init__(self, copy: Tensor, device: torch.device, before: "Callable[[], Offloaded | None]"):
        self.copy, self.device, self.before = copy, device, before
        self.fetched: tuple[Tensor, torch.cuda.Event] | None = None


class HostMemory:
    """Moves tensors to the host's memory and back. It is the autograd graph that holds them."""

    def __init__(self) -> None:
        self._last: Callable[[], Offloaded | None] = lambda: None
        self._stream: torch.cuda.Stream | None = None

    def store(self, tensor: Tensor) -> Offloaded:
        tensor = tensor.detach()
        copy = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
        if tensor.is_cuda:
            stream = self._side_stream(tensor.device)
            stream.wait_stream(torch.cuda.current_stream(tensor.device))
            with torch.cuda.stream(stream):
                copy.copy_(tensor, non_blocking=True)
            tensor.record_stream(stream)  # its memory is not used again before the copy is done
        else:
            copy.copy_(tensor)
        stored = Offloaded(copy, tensor.device, self._last)
        self._last = weakref.ref(stored)
        return stored

    def load(self, stored: Offloaded) -> Tensor:
        if stored.device.type != "cuda":
            return stored.copy
        tensor, event = stored.fetched or self._fetch(stored)
        before = stored.before()
        if before is not None and before.fetched is None:
            before.fetched = self._fetch(before)
        current = torch.cuda.current_stream(stored.device)
        current.wait_event(event)
        tensor.record_stream(current)
        stored.fetched = None
        return tensor

    def _fetch(self, stored: Offloaded) -> tuple[Tensor, torch.cuda.Event]:
        stream = self._side_stream(stored.device)  # it runs behind the copy to the host, which is on it too
        with torch.cuda.stream(stream):
            tensor = stored.copy.to(stored.device, non_blocking=True)
            event = torch.cuda.Event()
            event.record(stream)
        return tensor, event

    def _side_stream(self, device: torch.device) -> torch.cuda.Stream:
        if self._stream is None:
            self._stream = torch.cuda.Stream(device)
        return self._stream
