"""Attention's back-ends on a GPU against the naive one in float64, and what they promise the host: no waiting."""

import pytest
import torch

from ingot.model.attention.attention import attention, prepare_layout
from ingot.model.config import ModelConfig
from ingot.model.transformer import Block
from tests.model.attention.test_attention import (
    BATCH,
    CASES,
    LENGTH,
    PACKED,
    naive_attention,
    random_qkv,
    value_and_gradients,
    who_sees_whom,
)

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

TYPES = (torch.bfloat16, torch.float16, torch.float32)


def layout_of(case, causal, dtype, **choice):
    what = dict(CASES[case])
    cu_seqlens, mask_BS = what.pop("cu_seqlens", None), what.pop("mask_BS", None)
    device = torch.device("cuda")
    if mask_BS is not None:
        what["mask_BS"] = mask_BS.to(device)
    cu_seqlens = None if cu_seqlens is None else cu_seqlens.to(device)
    length = LENGTH - what.get("past", 0)
    return prepare_layout(BATCH, length, causal, cu_seqlens, device, **what, dtype=dtype, head_size=64, **choice)


def layouts_of(case, causal, dtype):
    layouts = []
    for backend in ("sdpa", "varlen", "flex"):
        try:
            layouts.append(layout_of(case, causal, dtype, backend=backend))
        except ValueError:
            continue
    return layouts


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_equals_naive_in_value_and_gradient(case, causal, kv_heads, dtype):
    seen_BTS, is_token_BT = (x.cuda() for x in who_sees_whom(case, causal))
    qkv = random_qkv(kv_heads, CASES[case].get("past", 0), dtype, "cuda", size=64)
    exact, plain = (
        value_and_gradients(lambda *qkv, dtype=dtype: naive_attention(*qkv, seen_BTS, dtype), qkv, is_token_BT)
        for dtype in (torch.float64, dtype)
    )
    for layout in layouts_of(case, causal, dtype):
        got = value_and_gradients(lambda *qkv, layout=layout: attention(*qkv, layout), qkv, is_token_BT)
        for g, p, e in zip(got, plain, exact, strict=True):
            assert g.dtype == dtype
            floor = 1e-5 * e.norm() if dtype == torch.float32 else 0
            assert (g.double() - e).norm() <= 2 * (p.double() - e).norm() + floor, layout.backend
        assert attention(*qkv, layout).isfinite().all(), layout.backend


@pytest.mark.parametrize("case", ["packed", "packed and empty", "window", "window and packed"])
def test_the_back_end_is_the_quickest_that_can(case):
    flash = torch.cuda.get_device_capability() >= (8, 0)
    assert layout_of(case, True, torch.bfloat16).backend == ("varlen" if flash else "flex")
    assert layout_of(case, True, torch.float32).backend == "flex"
    assert layout_of(case, True, torch.bfloat16, dropout=0.1).backend == "sdpa"
    for plain in ("plain", "rows", "left padding", "cached, window"):
        assert layout_of(plain, True, torch.bfloat16).backend == "sdpa"


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("case", ["packed", "window and packed"])
def test_what_is_in_one_document_moves_no_bit_of_another(case, dtype):
    qkv = [x.detach() for x in random_qkv(2, 0, dtype, "cuda", size=64)]
    for layout in layouts_of(case, True, dtype):
        before_NHE = attention(*qkv, layout).flatten(0, 1)
        for start, end in zip(PACKED.tolist(), PACKED.tolist()[1:], strict=False):
            changed = [x.clone() for x in qkv]
            for x in changed:
                x.flatten(0, 1)[start:end] *= -2
            moved_N = (attention(*changed, layout).flatten(0, 1) != before_NHE).flatten(1).any(-1)
            assert not moved_N[:start].any(), layout.backend
            assert not moved_N[end:].any(), layout.backend
            assert moved_N[start:end].all(), layout.backend


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("case", ["plain", "packed", "window", "window and packed"])
def test_the_host_never_waits(case, dtype):
    qkv = random_qkv(2, 0, dtype, "cuda", size=64)
    cu_seqlens = CASES[case].get("cu_seqlens")
    cu_seqlens = None if cu_seqlens is None else cu_seqlens.cuda()
    window = CASES[case].get("window")
    for measured in (False, True):  # the first pass compiles
        torch.cuda.set_sync_debug_mode("error" if measured else "default")
        try:
            layout = prepare_layout(
                BATCH, LENGTH, True, cu_seqlens, torch.device("cuda"), window=window, dtype=dtype, head_size=64
            )
            attention(*qkv, layout).sum().backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("case", ["packed", "window and packed"])
def test_a_block_compiles_whole(case, dtype):
    config = ModelConfig(
        num_attention_heads=4, num_key_value_heads=2, hidden_size=256, layer_pattern="L", sliding_window=6
    )
    block = Block(config, 0).to("cuda", dtype)
    x = torch.randn(BATCH, LENGTH, 256, device="cuda", dtype=dtype, requires_grad=True)
    layout = layout_of(case, True, dtype)
    results = []
    for function in (block, torch.compile(block, fullgraph=True)):
        out = function(x, layout, None)
        results.append([out, *torch.autograd.grad(out.square().sum(), [x, *block.parameters()])])
    for eager, compiled in zip(*results, strict=True):
        assert (eager - compiled).norm() <= (2e-2 if dtype == torch.bfloat16 else 1e-4) * eager.norm()
