"""Exchanges among tensor ranks: which tokens a rank has, what is copied, what a compiler can run beside products."""

import pytest
import torch
import torch.nn.functional as F
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from ingot.launcher.config.parallel import Parallel
from ingot.parallel import mesh as meshes
from ingot.parallel.tensor_parallel import collectives
from ingot.parallel.tensor_parallel.layers import overlap_exchanges
from ingot.parallel.torch_compat import remove_view_pairs
from tests.ranks import run_ranks

B, T, D, H = 3, 8, 6, 10


@pytest.fixture
def mesh():
    yield meshes.fake_mesh(4, tensor=4)
    meshes.stop()


class Operators(TorchDispatchMode):
    """The names of all operators that run while it is entered."""

    def __init__(self):
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(function._schema.name)
        return function(*args, **(kwargs or {}))


def test_no_exchange_puts_anything_into_another_order(mesh):
    part, whole = torch.randn(B, T // 4, D, requires_grad=True), torch.randn(B, T, D, requires_grad=True)
    with Operators() as run:
        gathered = collectives.gather_sequence(part, mesh.tensor_group)
        scattered = collectives.reduce_scatter_sequence(whole, mesh.tensor_group)
        torch.autograd.grad([gathered, scattered], [part, whole], [torch.randn(B, T, D), torch.randn(B, T // 4, D)])
    assert gathered.shape == (B, T, D)
    assert scattered.shape == part.shape
    copies = {"aten::clone", "aten::copy_", "aten::_to_copy", "aten::cat"}
    assert not copies.intersection(run.names)
    assert run.names.count("_c10d_functional::all_gather_into_tensor") == 2
    assert run.names.count("_c10d_functional::reduce_scatter_tensor") == 2


def exchange_tokens() -> list[list]:
    mesh = meshes.start("cpu", tensor=2)
    group, x_BTD = mesh.tensor_group, torch.arange(B * T * D, dtype=torch.float32).view(B, T, D)
    part = collectives.own_part(x_BTD, group)
    found = [
        part,
        collectives.all_gather(part, group),
        collectives.reduce_scatter(x_BTD * (1 + mesh.tensor_rank), group),
        collectives.gather_for_head(part.to(torch.bfloat16), group).float(),
    ]
    meshes.stop()
    return [tensor.tolist() for tensor in found]


@pytest.mark.distributed
def test_a_rank_has_consecutive_ones_of_all_tokens():
    x_BTD = torch.arange(B * T * D, dtype=torch.float32).view(B, T, D)
    for rank, (part, gathered, summed, for_head) in enumerate(run_ranks(exchange_tokens, 2)):
        mine = x_BTD.flatten(0, 1)[rank * B * T // 2 : (rank + 1) * B * T // 2].view(B, T // 2, D)
        assert part == mine.tolist()
        assert gathered == x_BTD.tolist()
        assert summed == (3 * mine).tolist()
        assert for_head == x_BTD.to(torch.bfloat16).float().tolist()


def test_a_compiler_can_run_the_exchanges_beside_the_products(mesh, monkeypatch):
    """torch's own pass over the graphs of a gated MLP, forward and backward. (Its operators need CUDA.)"""
    from torch._inductor.decomposition import decompositions
    from torch._inductor.fx_passes.micro_pipeline_tp import micro_pipeline_tp_pass
    from torch._inductor.fx_passes.post_grad import view_to_reshape
    from torch.distributed._symmetric_memory import _test_mode

    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: True)  # it leaves CPU builds as they are

    def forward(x_BTD, gate, up, down):
        whole = collectives.gather_sequence(x_BTD, mesh.tensor_group)
        hidden = F.linear(whole, gate) * F.linear(whole, up)
        return collectives.reduce_scatter_sequence(F.linear(hidden, down), mesh.tensor_group)

    def backward(x_BTD, gate, up, down, gradient):
        inputs = (x_BTD, gate, up, down)
        return torch.autograd.grad(forward(*inputs), inputs, gradient)

    shapes = [(2, 4, D), (H, D), (H, D), (D, H)]
    inputs = [torch.randn(shape, requires_grad=True) for shape in shapes]
    found = {}
    for function, arguments in ((forward, inputs), (backward, [*inputs, torch.randn(2, 4, D)])):
        with _test_mode():
            module = make_fx(function, decompositions, tracing_mode="fake", _allow_non_fake_inputs=True)(*arguments)
            remove_view_pairs(module.graph)
            view_to_reshape(module)
            micro_pipeline_tp_pass(module.graph)
        names = [str(node.target) for node in module.graph.nodes]
        kinds = ("fused_all_gather_matmul.default", "fused_matmul_reduce_scatter.default", "aten.mm.default")
        found[function.__name__] = [sum(kind in name for name in names) for kind in kinds]
    assert found["forward"] == [1, 1, 0]  # all three products
    assert found["backward"][0] >= 1  # the gather of the output's gradient, with the product for the hidden states


def test_asynchronous_exchanges_are_refused_where_they_cannot_be(mesh):
    (problem,) = Parallel(async_tensor_parallel=True, tensor=2, engine="fsdp").problems()
    assert "parallel.compile true" in problem
    assert not Parallel(async_tensor_parallel=True, tensor=2, engine="fsdp", compile=True).problems()
    with pytest.raises(ValueError, match=r"run\.device is cpu"):
        overlap_exchanges(mesh)
