"""Attention's own operators: what autograd and torch.compile need of them, and documents of many lengths."""

import pytest
import torch

from ingot.model.attention.attention import attention, prepare_layout
from ingot.model.attention.documents import document_attention, document_attention_backward
from ingot.model.attention.windows import block_length, window_attention, window_attention_backward, window_mask
from ingot.model.config import ModelConfig
from ingot.model.transformer import Block

CPU = torch.device("cpu")


def packed(*lengths):
    return torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)


def random(*shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("lengths", [(5, 20, 1, 70, 60, 60, 30), (40,), (7, 0, 0, 3), (300, 1), (2, *[5] * 8, 70, 70)])
def test_operators_keep_the_rules_of_custom_operators(causal, dtype, lengths):
    cu_seqlens = packed(*lengths)
    num_tokens = sum(lengths)
    q, k, v = (random(num_tokens, heads, 16, dtype=dtype, seed=heads).requires_grad_() for heads in (4, 2, 2))
    spans_M2 = torch.stack((cu_seqlens[:-1], cu_seqlens[1:]), dim=-1)
    segments_N = torch.repeat_interleave(torch.arange(len(lengths)), cu_seqlens.diff())
    bias = window_mask(segments_N, causal, 5)
    checks = ("test_schema", "test_faketensor", "test_autograd_registration", "test_aot_dispatch_dynamic")
    torch.library.opcheck(document_attention, (q, k, v, spans_M2, causal), test_utils=checks)
    torch.library.opcheck(window_attention, (q, k, v, bias, 5), test_utils=checks)
    q, k, v = (x.detach() for x in (q, k, v))
    for forward, backward, arguments in (
        (document_attention, document_attention_backward, (spans_M2, causal)),
        (window_attention, window_attention_backward, (bias, 5)),
    ):
        out, lse = forward(q, k, v, *arguments)
        torch.library.opcheck(backward, (out, q, k, v, out, lse, *arguments), test_utils=checks[:2])


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [None, 3])
def test_gradients_in_float64(causal, window):
    cu_seqlens = packed(5, 20, 1, 70, 6)
    layout = prepare_layout(1, 102, causal, cu_seqlens, CPU, window=window)
    assert layout.backend == ("documents" if window is None else "windows")
    qkv = [random(1, 102, heads, 2, dtype=torch.float64, seed=heads).requires_grad_() for heads in (2, 1, 1)]
    assert torch.autograd.gradcheck(lambda *qkv: attention(*qkv, layout), qkv, fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(
    "lengths",
    [(600, 33, 35, 100, 20, 512, 236), (600, *[21] * 8, *[13] * 7, *[65] * 3, 482)],
    ids=["all differ", "equal ones follow each other"],
)
def test_long_documents_beside_short_ones(lengths, causal, dtype):
    cu_seqlens = packed(*lengths)
    qkv = [random(2, 768, heads, 16, dtype=dtype, seed=heads).requires_grad_() for heads in (4, 2, 2)]
    layout = prepare_layout(2, 768, causal, cu_seqlens, CPU, dtype=dtype)
    with_mask = prepare_layout(2, 768, causal, cu_seqlens, CPU, dtype=dtype, backend="sdpa")
    assert layout.backend == "documents"
    weights = random(2, 768, 4, 16, seed=9)
    exact = [x.detach().double().requires_grad_() for x in qkv]
    results = []
    for inputs, who in ((exact, with_mask), (qkv, layout), (qkv, with_mask)):
        out = attention(*inputs, who)
        results.append([out, *torch.autograd.grad((out * weights).sum(), inputs)])
    for e, got, masked in zip(*results, strict=True):
        assert got.dtype == dtype
        assert (got.double() - e).norm() <= max(2e-6 * e.norm(), 1.5 * (masked.double() - e).norm())


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("causal", [True, False])
def test_nan_stays_in_its_document(causal, window):
    cu_seqlens = packed(20, 17, 30, 65, 70, 6)
    layout = prepare_layout(1, 208, causal, cu_seqlens, CPU, window=window, backend=None if window is None else "sdpa")
    for start, end in zip(cu_seqlens.tolist(), cu_seqlens.tolist()[1:], strict=False):
        qkv = [random(1, 208, heads, 8, seed=heads) for heads in (4, 2, 2)]
        if window is None:  # a mask hides a key's weight, not its NaN; views do
            for x in qkv:
                x[:, start:end] = float("nan")
        is_nan_N = attention(*qkv, layout).isnan().flatten(2).any(-1)[0]
        assert not is_nan_N[:start].any()
        assert not is_nan_N[end:].any()


@pytest.mark.parametrize("window", [None, 5])
def test_inputs_and_gradients_with_any_strides(window):
    layout = prepare_layout(2, 96, True, packed(30, 66, 20, 76), CPU, window=window)
    qkv = [random(2, 96, 4, 8, seed=i).requires_grad_() for i in range(3)]
    expected = attention(*qkv, layout)
    wanted = torch.autograd.grad(expected, qkv, torch.ones(expected.shape))
    strided = [x.detach().transpose(1, 3).contiguous().transpose(1, 3).requires_grad_() for x in qkv]
    got = attention(*strided, layout)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(torch.autograd.grad(got.sum(), strided), wanted)  # sum's gradient has strides of 0


@pytest.mark.parametrize("window", [None, 5])
def test_a_kernel_that_cannot_share_keys_gets_them_repeated(window, monkeypatch):
    layout = prepare_layout(2, 96, True, packed(30, 66, 20, 76), CPU, window=window)
    qkv = [random(2, 96, heads, 8, seed=heads).requires_grad_() for heads in (4, 2, 2)]
    results = []
    for shares in (True, False):
        monkeypatch.setattr("ingot.model.attention.attention._CPU_SHARES_KEYS", shares)
        out = attention(*qkv, layout)
        results.append([out, *torch.autograd.grad(out.square().sum(), qkv)])
    torch.testing.assert_close(*results)


def test_windows_of_all_widths_and_ends():
    for num_tokens in (1, 63, 64, 65, 200):
        for window in (1, 64, 65, 300):
            bias = window_mask(torch.zeros(num_tokens, dtype=torch.int32), True, window)
            assert bias.shape[0] == -(-num_tokens // block_length(window))
            q, k, v = (random(num_tokens, 2, 8, seed=i) for i in range(3))
            out, _ = window_attention(q, k, v, bias, window)
            back = torch.arange(num_tokens)[:, None] - torch.arange(num_tokens)
            mask = (back >= 0) & (back <= window)
            expected = torch.nn.functional.scaled_dot_product_attention(*(x.transpose(0, 1) for x in (q, k, v)), mask)
            torch.testing.assert_close(out, expected.transpose(0, 1))


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [None, 5])
def test_a_block_compiles_whole(causal, window, backend):
    torch._dynamo.reset()
    config = ModelConfig(
        num_attention_heads=4,
        num_key_value_heads=2,
        hidden_size=32,
        causal=causal,
        layer_pattern="L",
        sliding_window=(window or 1) + causal,
    )
    block = Block(config, 0)
    compiled = torch.compile(block, fullgraph=True, backend=backend)
    for lengths in ((30, 66, 20, 76), (1, 95, 96), (30, 30, 36, 50, 46)):  # new boundaries, other numbers of documents
        x = random(2, 96, 32).requires_grad_()
        layout = prepare_layout(2, 96, causal, packed(*lengths), CPU, window=window)
        assert layout.backend == ("documents" if window is None else "windows")
        parameters = [x, *block.parameters()]
        results = []
        for function in (block, compiled):
            out = function(x, layout, None)
            results.append([out, *torch.autograd.grad(out.square().sum(), parameters)])
        torch.testing.assert_close(*results, atol=1e-4, rtol=1e-4)
