"""Attention in blocks of queries: many blocks, few heads at a time, and what autograd and torch.compile need of it."""

import pytest
import torch

from ingot.model.attention import blocks
from ingot.model.attention.attention import attention, prepare_layout
from ingot.model.config import ModelConfig
from ingot.model.transformer import Block

CPU = torch.device("cpu")
BATCH, LENGTH = 2, 150
PACKED = torch.tensor([0, 7, 90, 150, 151, 270, 300], dtype=torch.int32)
CASES = {
    "plain": {},
    "packed": {"cu_seqlens": PACKED},
    "window": {"window": 9},
    "window and packed": {"cu_seqlens": PACKED, "window": 30},
    "padding": {"mask_BS": torch.arange(LENGTH)[None] < torch.tensor([[150], [61]])},
}


def random_qkv(dtype=torch.float32, size=8):
    generator = torch.Generator().manual_seed(0)
    shapes = ((BATCH, LENGTH, heads, size) for heads in (6, 3, 3))
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


def layout_of(case, causal, **choice):
    what = dict(CASES[case])
    return prepare_layout(BATCH, LENGTH, causal, what.pop("cu_seqlens", None), CPU, **what, **choice)


def results(qkv, layout):
    out = attention(*qkv, layout)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    return [out, *torch.autograd.grad((out * weights).sum(), qkv)]


@pytest.mark.parametrize(("queries", "scores"), [(32, 1 << 19), (32, 1), (40, 32 * 150), (1000, 1 << 19)])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("case", ["plain", "packed", "window", "window and packed"])
def test_cut_in_any_way_it_equals_a_dense_mask(monkeypatch, case, causal, queries, scores):
    monkeypatch.setattr(blocks, "QUERIES", queries)
    monkeypatch.setattr(blocks, "SCORES", scores)
    qkv = random_qkv()
    expected = results([x.detach().double().requires_grad_() for x in qkv], layout_of(case, causal, backend="sdpa"))
    got = results(qkv, layout_of(case, causal, backend="blocks"))
    for g, e in zip(got, expected, strict=True):
        torch.testing.assert_close(g.double(), e, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_no_key_outside_of_the_seen_ones_is_touched(monkeypatch, case):
    """What nobody in a block sees must not enter its products: that is where the time is saved."""
    seen = []
    bmm = torch.bmm

    def spy(a, b, **options):
        seen.append(len(a) * a.shape[1] * b.shape[2])
        return bmm(a, b, **options)

    monkeypatch.setattr(torch, "bmm", spy)
    monkeypatch.setattr(blocks, "QUERIES", 30)
    with torch.no_grad():
        attention(*random_qkv(), layout_of(case, True, backend="blocks"))
    dense = BATCH * 6 * LENGTH * LENGTH
    share = sum(seen[::2]) / dense  # the scores; the other products weigh the values
    limits = {"plain": 0.61, "packed": 0.4, "window": 0.26, "window and packed": 0.32, "padding": 0.61}
    assert share <= limits[case]


def test_padding_sees_itself_and_is_finite():
    out = attention(*random_qkv(torch.bfloat16), layout_of("padding", False, backend="blocks"))
    assert out.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_blocks_are_chosen_for_long_documents_in_bf16(dtype):
    wanted = "blocks" if dtype == torch.bfloat16 else "sdpa"
    for causal in (True, False):
        layout = prepare_layout(2, 512, causal, None, CPU, dtype=dtype)
        assert layout.backend == wanted
    assert prepare_layout(2, 512, True, None, CPU, dtype=dtype, dropout=0.1).backend == "sdpa"
    assert prepare_layout(2, 1, True, None, CPU, dtype=dtype, past=5).backend == "sdpa"


def test_gradients_in_float64(monkeypatch):
    monkeypatch.setattr(blocks, "QUERIES", 64)
    qkv = [x.detach()[:, :, :, :2].double().requires_grad_() for x in random_qkv()]
    layout = layout_of("packed", True, backend="blocks")
    assert torch.autograd.gradcheck(lambda *qkv: attention(*qkv, layout), qkv, fast_mode=True, atol=1e-4)


def test_the_operators_keep_their_contracts():
    layout = layout_of("packed", True, backend="blocks")
    q, k, v = random_qkv()
    checks = ("test_schema", "test_faketensor", "test_autograd_registration", "test_aot_dispatch_dynamic")
    torch.library.opcheck(blocks.blockwise_attention, (q, k, v, *layout.intervals), test_utils=checks)
    q, k, v = (x.detach() for x in (q, k, v))
    backward = blocks.blockwise_attention_backward
    torch.library.opcheck(backward, (q, q, k, v, *layout.intervals), test_utils=checks[:2])


def test_a_block_compiles_whole():
    torch._dynamo.reset()
    block = Block(ModelConfig(num_attention_heads=4, num_key_value_heads=2, hidden_size=32), 0)
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    for case in ("plain", "packed"):
        x = torch.randn(BATCH, LENGTH, 32, generator=torch.Generator().manual_seed(2)).requires_grad_()
        layout = layout_of(case, True, backend="blocks")
        both = []
        for function in (block, compiled):
            out = function(x, layout, None)
            both.append([out, *torch.autograd.grad(out.square().sum(), [x, *block.parameters()])])
        torch.testing.assert_close(*both, atol=1e-4, rtol=1e-4)
