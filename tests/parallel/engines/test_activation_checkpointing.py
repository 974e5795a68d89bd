"""Activation checkpointing and offloading keep fewer activations, and give the same gradients."""

import copy
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.attention import varlen
from torch.utils.checkpoint import CheckpointPolicy

from ingot.launcher.config.parallel import Parallel
from ingot.launcher.training import build
from ingot.model.attention.attention import OPERATORS, AttentionLayout
from ingot.model.config import ModelConfig
from ingot.model.initialization import initialize
from ingot.model.transformer import Block, LanguageModel
from ingot.parallel.engines.activation_checkpointing import _KEPT_NAMES, _policy, checkpoint_activations
from ingot.parallel.engines.activation_offload import HostMemory
from ingot.parallel.engines.bf16 import Bf16Compute


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down, self.norm = nn.Linear(32, 128), nn.Linear(128, 32), nn.LayerNorm(32)

    def forward(self, x):
        return x + self.down(nn.functional.gelu(self.up(self.norm(x))))


def kept_bytes_and_gradients(how: str) -> tuple[int, list[torch.Tensor]]:
    """Bytes that are kept from forward to backward, without input and output; and all gradients."""
    torch.manual_seed(0)
    model = nn.Sequential(*(copy.deepcopy(Small()) for _ in range(3)))
    x = torch.randn(4, 16, 32, requires_grad=True)
    checkpoint_activations(model, how)
    storages: dict[int, int] = {}

    def pack(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(x).square().sum()
    loss.backward()
    return sum(storages.values()), [x.grad, *(p.grad for p in model.parameters())]


def test_checkpointing_keeps_less_and_gradients_are_equal():
    everything, expected = kept_bytes_and_gradients("none")
    for how in ("selective", "full"):
        kept, found = kept_bytes_and_gradients(how)
        assert kept < everything / 2, how
        for mine, other in zip(found, expected, strict=True):
            assert torch.equal(mine, other)


runs = []


@torch.library.custom_op("test_recompute::double", mutates_args=())
def double(x: torch.Tensor) -> torch.Tensor:
    runs.append(x.shape)
    return x * 2


double.register_fake(torch.empty_like)
double.register_autograd(lambda ctx, grad: grad * 2, setup_context=lambda ctx, inputs, output: None)


class Doubling(nn.Module):
    def forward(self, x):
        return torch.sin(double(torch.exp(x)))


@pytest.mark.parametrize(("how", "times"), [("none", 1), ("selective", 1), ("full", 2)])
def test_selective_does_not_run_the_kept_operators_again(how, times):
    runs.clear()
    model = nn.Sequential(Doubling())
    checkpoint_activations(model, how, kept=["test_recompute::double"])
    model(torch.randn(4, 8, requires_grad=True)).sum().backward()
    assert len(runs) == times


def test_without_gradients_nothing_is_kept():
    model = nn.Sequential(Small())
    checkpoint_activations(model, "full")
    with torch.no_grad():
        assert not model(torch.randn(2, 4, 32)).requires_grad


@pytest.mark.parametrize("how", ["selective", "full"])
def test_dropout_drops_the_same_when_it_is_computed_again(how):
    grads = []
    for each in ("none", how):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5)))
        checkpoint_activations(model, each)
        torch.manual_seed(2)
        model(torch.ones(4, 8)).sum().backward()
        grads.append(model[0][0].weight.grad)
    assert torch.equal(*grads)


def kept_operators() -> list[object]:
    """The operators behind each back-end of attention, and those of products, as the installed torch has them."""
    from torch._higher_order_ops.flex_attention import flex_attention
    from torch._higher_order_ops.wrap import inductor_compiled_code

    aten = torch.ops.aten
    return [
        torch.ops.ingot.blockwise_attention.default,
        torch.ops.ingot.document_attention.default,
        torch.ops.ingot.window_attention.default,
        torch.ops.torch_attn._varlen_attn.default,
        flex_attention,
        inductor_compiled_code,
        aten.mm.default,
        aten.addmm.default,
        aten._scaled_mm.default,
        aten._scaled_dot_product_flash_attention.default,
        aten._scaled_dot_product_flash_attention_for_cpu.default,
        aten._scaled_dot_product_efficient_attention.default,
        aten._scaled_dot_product_cudnn_attention.default,
        aten._scaled_dot_product_fused_attention_overrideable.default,
        torch.ops._c10d_functional.reduce_scatter_tensor.default,
        torch.ops._c10d_functional.all_reduce.default,
    ]


@pytest.mark.parametrize("operator", kept_operators(), ids=str)
def test_selective_keeps_what_is_expensive_and_no_more(operator):
    kept = frozenset((*_KEPT_NAMES, *OPERATORS))
    assert len(kept) == len(kept_operators())
    assert _policy(kept, None, operator) is CheckpointPolicy.MUST_SAVE
    assert _policy(kept, None, torch.ops.aten.gelu.default) is CheckpointPolicy.PREFER_RECOMPUTE


@pytest.fixture
def varlen_calls(monkeypatch):
    """torch's operators of packed attention, with a textbook's product as their kernel on CPUs; counts their calls."""
    calls: list[str] = []

    def documents(bounds, *tensors):
        """For each document, its rows of each tensor, heads first."""
        for start, end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
            yield [x[start:end].transpose(0, 1) for x in tensors]

    def probabilities(q, k):
        scores = q @ k.transpose(1, 2) / q.shape[-1] ** 0.5
        return scores.masked_fill(torch.ones_like(scores[0], dtype=torch.bool).triu(1), -torch.inf).softmax(-1)

    def forward(query, key, value, cu_seq_q, *rest, **options):
        calls.append("forward")
        out = [(probabilities(q, k) @ v).transpose(0, 1) for q, k, v in documents(cu_seq_q, query, key, value)]
        sums = query.new_zeros(query.shape[1], query.shape[0], dtype=torch.float32)
        return torch.cat(out), sums, torch.zeros(2, dtype=torch.uint64)

    def backward(grad_out, query, key, value, out, lse, cu_seq_q, *rest, **options):
        calls.append("backward")
        gradients = []
        for g, q, k, v in documents(cu_seq_q, grad_out, query, key, value):
            p, dp = probabilities(q, k), g @ v.transpose(1, 2)
            ds = p * (dp - (dp * p).sum(-1, keepdim=True)) / q.shape[-1] ** 0.5
            gradients.append([ds @ k, ds.transpose(1, 2) @ q, p.transpose(1, 2) @ g])
        return tuple(torch.cat([x.transpose(0, 1) for x in each]) for each in zip(*gradients, strict=True))

    with torch.library._scoped_library("torch_attn", "IMPL") as library:
        library.impl("_varlen_attn", forward, "CPU")
        library.impl("_varlen_attn_backward", backward, "CPU")
        yield calls


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize(("how", "times"), [("none", 1), ("selective", 1), ("full", 2)])
def test_selective_does_not_run_the_attention_of_gpus_again(how, times, compiled, varlen_calls, monkeypatch):
    assert varlen.varlen_attn is not None
    torch._dynamo.reset()
    block = Block(ModelConfig(num_attention_heads=4, hidden_size=32), 0)
    generator = torch.Generator().manual_seed(0)
    for parameter in block.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    bounds = torch.tensor([0, 5, 16, 20, 32], dtype=torch.int32)
    layout = AttentionLayout("varlen", True, documents=bounds)
    x = torch.randn(2, 16, 32, generator=generator, requires_grad=True)
    expected = torch.autograd.grad(block(x, layout, None).square().sum(), [x, *block.parameters()])
    varlen_calls.clear()
    monkeypatch.setattr(build, "compile_blocks", partial(build.compile_blocks, backend="aot_eager_decomp_partition"))
    build.prepare_blocks([block], Parallel(activation_checkpointing=how, compile=compiled))
    found = torch.autograd.grad(block(x, layout, None).square().sum(), [x, *block.parameters()])
    assert varlen_calls == ["forward"] * times + ["backward"]
    torch.testing.assert_close(found, expected)


def test_selective_does_not_run_a_function_that_is_compiled_alone_again():
    runs.clear()
    inner = torch.compile(double, options={"wrap_inductor_compiled_regions": True})  # as model/attention/flex.py

    class Calling(nn.Module):
        def forward(self, x):
            return torch.sin(inner(torch.exp(x)))

    model = nn.Sequential(Calling())
    checkpoint_activations(model, "selective", kept=OPERATORS)
    model(torch.randn(4, 8, requires_grad=True)).sum().backward()
    assert len(runs) == 1


WAYS = {
    "selective": {"activation_checkpointing": "selective"},
    "full": {"activation_checkpointing": "full"},
    "full, every second": {"activation_checkpointing": "full", "activation_checkpointing_every": 2},
    "full, offloaded": {"activation_checkpointing": "full", "activation_offload": True},
    "full, offloaded, every second": {
        "activation_checkpointing": "full",
        "activation_checkpointing_every": 2,
        "activation_offload": True,
    },
    "memory_budget": {"activation_checkpointing": "memory_budget", "activation_memory_budget": 0.3},
}


@pytest.mark.parametrize(
    ("compiled", "precision"),
    [(False, "fp32"), (False, "bf16"), (True, "fp32"), pytest.param(True, "bf16", marks=pytest.mark.slow)],
)
def test_each_way_to_save_memory_gives_the_same_gradients(compiled, precision, monkeypatch):
    moved: list[tuple[int, ...]] = []
    store = HostMemory.store
    monkeypatch.setattr(HostMemory, "store", lambda host, x: (moved.append(tuple(x.shape)), store(host, x))[1])
    monkeypatch.setattr(build, "compile_blocks", partial(build.compile_blocks, backend="aot_eager_decomp_partition"))
    expected, most = gradients_and_bytes({"compile": compiled}, precision)
    for way, options in WAYS.items():
        if way == "memory_budget" and not compiled:
            continue
        moved.clear()
        found, kept = gradients_and_bytes({**options, "compile": compiled}, precision)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        assert kept < 0.8 * most, way
        offloaded = 4 // options.get("activation_checkpointing_every", 1) * ("offloaded" in way)
        assert moved == [(4, 16, 32)] * offloaded, way


def gradients_and_bytes(options: dict, precision: str) -> tuple[list[torch.Tensor], int]:
    """Of one forward and backward pass; the bytes are those that autograd keeps on the device for the backward pass."""
    torch._dynamo.reset()
    shape = {"vocab_size": 97, "num_hidden_layers": 4, "num_attention_heads": 4, "hidden_size": 32}
    model = LanguageModel(ModelConfig(**shape, max_position_embeddings=16, positions="rotary", norm="rmsnorm"))
    initialize(model, 0)
    build.prepare_blocks(list(model.blocks), Parallel(**options))
    parameters = {p.data_ptr() for p in model.parameters()}
    module = Bf16Compute(model) if precision == "bf16" else model
    storages: dict[int, int] = {}

    def pack(tensor):
        if tensor.data_ptr() not in parameters:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    ids = torch.randint(0, 97, (4, 16), generator=torch.Generator().manual_seed(0))
    bounds = torch.tensor([0, 5, 16, 32, 40, 48, 64], dtype=torch.int32)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = module(input_ids_BT=ids, labels_BT=ids, cu_seqlens=bounds)
    loss.backward()
    return [p.grad for p in model.parameters()], sum(storages.values())
