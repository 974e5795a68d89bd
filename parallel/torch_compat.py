"""All private interfaces of torch that `parallel` and `launcher` use. Read from torch 2.13.0, and used since 2.11.

A new version of torch may change them without notice. `PRIVATE` says what each is for, and
tests/parallel/test_torch_compat.py names the one that has changed. (Private kernels of attention: `model/attention`.)
"""

import datetime
import inspect
import platform
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from ingot.parallel.private_interfaces import PrivateInterface

READ_FROM = "2.13.0"

PRIVATE = (
    PrivateInterface(
        "torch.distributed.device_mesh",
        "DeviceMesh._flatten",
        "one process group over two axes of the mesh; torch documents it, but the name is private",
        ("mesh_dim_name",),
    ),
    PrivateInterface(
        "torch.distributed.distributed_c10d",
        "_set_pg_timeout",
        "another timeout for collectives than at their group's creation; there is no public function",
        ("timeout", "group"),
    ),
    PrivateInterface(
        "torch.distributed.distributed_c10d",
        "_world.pg_map",
        "all process groups of this process, those of DeepSpeed and of meshes included, to set their timeouts",
    ),
    PrivateInterface(
        "torch.distributed.distributed_c10d",
        "_get_default_store",
        "the store of the default process group, for what the ranks tell each other before and beside collectives",
    ),
    PrivateInterface(
        "torch.testing._internal.distributed.fake_pg",
        "FakeStore",
        "a dry run builds a layout of many ranks in one process; torch's own tests and torchtitan do it so",
    ),
    PrivateInterface(
        "torch.distributed.tensor._utils",
        "compute_local_shape_and_global_offset",
        "which rectangle of a logical tensor a DTensor's local tensor is; torch's own checkpoints use it",
        ("global_shape", "mesh", "placements"),
    ),
    PrivateInterface(
        "torch",
        "ops._c10d_functional",
        "collectives that torch.compile sees as operators; the public functional collectives are not yet stable",
    ),
    PrivateInterface(
        "torch", "_foreach_norm", "the norms of all gradients by one kernel; torch's own clipping does it"
    ),
    PrivateInterface("torch", "_foreach_copy_", "all parameters rounded by one kernel; torch's own FSDP2 does it"),
    PrivateInterface("torch", "_foreach_mul_", "all gradients scaled by one kernel; torch's own clipping does it"),
    PrivateInterface(
        "torch",
        "_scaled_mm",
        "products of float8 matrices; torch.compile tunes the newer public scaled_mm for "
        "fewer cases, and it may lack a kernel for CPUs in older torch",
    ),
    PrivateInterface(
        "torch._inductor.config",
        "_micro_pipeline_tp",
        "lets the compiler run exchanges of tensor ranks beside products; torchtitan does it so",
    ),
    PrivateInterface(
        "torch._inductor.config",
        "post_grad_custom_pre_pass",
        "a change to graphs before the compiler looks for such exchanges",
    ),
    PrivateInterface("torch._inductor.custom_graph_pass", "CustomGraphPass", "the form of such a change"),
    PrivateInterface(
        "torch.distributed._symmetric_memory",
        "enable_symm_mem_for_group",
        "memory that the ranks of a group read from each other, which those exchanges use",
        ("group_name",),
    ),
    PrivateInterface(
        "torch._ops",
        "OpOverload",
        "its attribute _schema has the name of an operator without its overload, for selective recomputation",
    ),
    PrivateInterface(
        "torch._dynamo",
        "lookup_backend",
        "the function behind the name of a backend, to count the graphs that it makes",
        ("compiler_fn",),
    ),
    PrivateInterface(
        "torch._dynamo",
        "maybe_mark_dynamic",
        "one graph for all sizes of a dim from the first on, but no error if it must be one for each",
        ("t", "index"),
    ),
    PrivateInterface("torch._dynamo.exc", "FailOnRecompileLimitHit", "a function has too many graphs"),
    PrivateInterface("torch._dynamo.exc", "TorchDynamoException", "a function cannot be compiled"),
    PrivateInterface(
        "torch._dynamo", "config.recompile_limit", "the number of graphs of a function, before torch 2.13"
    ),
    PrivateInterface(
        "torch._functorch.config",
        "activation_memory_budget",
        "how much compiled graphs save for the backward pass; torchtitan sets it so too",
    ),
    PrivateInterface("torch.utils._triton", "has_triton", "whether torch.compile can make kernels for a GPU"),
    PrivateInterface(
        "torch.cuda.memory",
        "_record_memory_history",
        "what allocates a GPU's memory; torch documents it",
        ("max_entries",),
    ),
    PrivateInterface("torch.cuda.memory", "_dump_snapshot", "writes that; torch documents it", ("filename",)),
    PrivateInterface(
        "torch.utils.cpp_extension",
        "_get_build_directory",
        "the folder in which torch builds a C++ extension, to find the lock of a build that was killed",
        ("name", "verbose"),
    ),
    PrivateInterface(
        "torch.cpu",
        "_is_avx512_bf16_supported",
        "whether an x86 processor has instructions for matrix products in bf16",
    ),
    PrivateInterface(
        "torch",
        "ops.mkldnn._is_mkldnn_bf16_supported",
        "whether another processor has instructions for matrix products in bf16",
    ),
)

functional_collectives: Any = torch.ops._c10d_functional
"""all_gather_into_tensor, reduce_scatter_tensor, all_reduce, and wait_tensor on the result of each."""


def flattened(device_mesh: DeviceMesh, name: str) -> DeviceMesh:
    """All axes of a mesh as one axis with this name. It makes a process group the first time: a collective."""
    return device_mesh._flatten(name)


def process_groups() -> list[dist.ProcessGroup]:
    """All process groups that this process is in, whoever has made them."""
    return list(dist.distributed_c10d._world.pg_map)


def set_collective_timeout(timeout: datetime.timedelta) -> None:
    """How long a collective of any process group may take that begins from now on.

    (A group that is made later has torch's default: 30 minutes over gloo, 10 over NCCL.)
    """
    for group in process_groups():
        if dist.get_backend(group) != "fake":
            dist.distributed_c10d._set_pg_timeout(timeout, group)


def default_store() -> dist.Store:
    """The store of the default process group."""
    return dist.distributed_c10d._get_default_store()


def fake_store() -> dist.Store:
    """The store of a process group `fake`, whose collectives return at once and send nothing."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    return FakeStore()


def local_shape_and_offset(
    shape: Sequence[int], device_mesh: DeviceMesh, placements: Sequence[Any]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The rectangle of a DTensor of `shape` that this rank holds: its shape, and its offset in the whole tensor."""
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    local_shape, offset = compute_local_shape_and_global_offset(tuple(shape), device_mesh, placements)
    return tuple(local_shape), tuple(offset)


def compilation_failures() -> tuple[type[Exception], ...]:
    """What a call of a compiled function raises if it cannot be compiled."""
    from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException  # the compiler: three seconds

    return TorchDynamoException, FailOnRecompileLimitHit


def norms(tensors: list[Tensor]) -> list[Tensor]:
    """The Euclidean norm of each tensor, as scalars on the device."""
    return list(torch._foreach_norm(tensors))


def multiply_(tensors: list[Tensor], factor: Tensor) -> None:
    """Multiplies each tensor by a scalar, in place."""
    torch._foreach_mul_(tensors, factor)


def scaled_mm(
    a: Tensor, b: Tensor, scale_a: Tensor, scale_b: Tensor, *, out_dtype: torch.dtype, fast_sums: bool
) -> Tensor:
    """(a * scale_a) @ (b * scale_b) of matrices in float8, in `out_dtype`.

    The kernels for CUDA take `a` row-major and `b` column-major, with sizes that are multiples of 16 (but for the rows
    of `a`), and not e5m2 for both.

    Args:
        a, b: (R, C) and (C, S).
        scale_a, scale_b: fp32, both scalars, or (R, 1) and (1, S).
        fast_sums: sums may be kept in fewer bits than fp32, where the device is faster so.
    """
    return torch._scaled_mm(a, b, scale_a, scale_b, out_dtype=out_dtype, use_fast_accum=fast_sums)


def copy_all(targets: list[Tensor], sources: list[Tensor]) -> None:
    """Copies each source into its target, by few kernels, rounded to the target's dtype."""
    torch._foreach_copy_(targets, sources)


def pipeline_exchanges(group: dist.ProcessGroup) -> None:
    """From now on compiled code runs gathers and sums over this group beside the products that need or make them."""
    import torch._inductor.config as inductor
    from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files
    from torch.distributed._symmetric_memory import enable_symm_mem_for_group

    class RemoveViewPairs(CustomGraphPass):
        """With a key, so that compiled graphs are still kept in the compiler's cache."""

        def __call__(self, graph: torch.fx.Graph) -> None:
            remove_view_pairs(graph)

        def uuid(self) -> bytes:
            return get_hash_for_files((__file__,))

    inductor._micro_pipeline_tp = True
    inductor.post_grad_custom_pre_pass = RemoveViewPairs()
    enable_symm_mem_for_group(group.group_name)


def remove_view_pairs(graph: torch.fx.Graph) -> None:
    """Removes reshapes that undo the one before: from gathered rows (N, D) to tokens (B, T, D) and back for a product.

    torch looks for products that take the gathered tensor itself.
    """
    aten = torch.ops.aten
    reshapes = (aten.view.default, aten.reshape.default, aten._unsafe_view.default)
    for node in list(graph.nodes):
        if node.target not in reshapes or getattr(node.args[0], "target", None) not in reshapes:
            continue
        between = node.args[0]
        source = between.args[0]
        if source.meta["val"].shape == node.meta["val"].shape:
            node.replace_all_uses_with(source)
            graph.erase_node(node)
            if not between.users:
                graph.erase_node(between)


def operator_name(operator: object) -> str:
    """`library::name` of an operator without its overload; of something else, its text."""
    schema = getattr(operator, "_schema", None)
    return str(operator) if schema is None else schema.name


def extension_folder(name: str) -> Path:
    """The folder in which torch builds the C++ extension `name`. It is made if it is not there."""
    from torch.utils.cpp_extension import _get_build_directory

    return Path(_get_build_directory(name, verbose=False))


def cpu_has_bf16_instructions() -> bool:
    """Whether the processor has instructions for matrix products in bf16."""
    if platform.machine() in ("x86_64", "AMD64"):
        return torch.cpu._is_avx512_bf16_supported()
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def compiler_backend(name: str) -> Callable:
    """The function behind a name of a backend of torch.compile: from a graph and examples to what runs it."""
    return torch._dynamo.lookup_backend(name)


def compile_function(function: Callable, backend: Callable, *, most_graphs: int) -> Callable:
    """torch.compile as one graph, with a limit of `most_graphs` graphs instead of torch's 8."""
    options: dict[str, Any] = {}
    if "recompile_limit" in inspect.signature(torch.compile).parameters:
        options["recompile_limit"] = most_graphs
    else:  # before torch 2.13 the limit is one for the whole process
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, most_graphs)
    return torch.compile(function, backend=backend, fullgraph=True, **options)


def mark_varying(tensor: Tensor, dim: int) -> None:
    """Tells torch.compile to make no graph for one size of this dim only."""
    if dim not in getattr(tensor, "_dynamo_weak_dynamic_indices", ()):
        torch._dynamo.maybe_mark_dynamic(tensor, dim)


def memory_budget(share: float) -> AbstractContextManager:
    """Context in which torch.compile makes graphs that save so much of what they would save by default."""
    import torch._functorch.config

    return torch._functorch.config.patch(activation_memory_budget=share)


def has_triton() -> bool:
    """Whether torch.compile can make kernels for the GPUs of this machine."""
    from torch.utils._triton import has_triton as found

    return found()


def record_memory_history(on: bool) -> None:
    """Whether CUDA's allocator remembers what was allocated, and where in the code: the last 100,000 events."""
    torch.cuda.memory._record_memory_history("all" if on else None, max_entries=100_000)


def write_memory_snapshot(path: Path) -> None:
    """Writes what CUDA's allocator remembers, as pytorch.org/memory_viz reads it (a pickle of lists and numbers)."""
    torch.cuda.memory._dump_snapshot(str(path))
