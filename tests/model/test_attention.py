"""Attention against a naive one in float64, over packed documents too."""

from itertools import pairwise

import pytest
import torch

from model.attention import attention, default_positions, prepare_layout

PACKED = torch.tensor([0, 5, 12, 13, 24, 36], dtype=torch.int32)  # three rows of 12: documents of 5+7, 1+11, 12
ROWS = torch.tensor([0, 12, 24, 36], dtype=torch.int32)
CPU = torch.device("cpu")


def naive_attention(q_BTHE, k_BTKE, v_BTKE, causal, cu_seqlens):
    """One document, one head, one query at a time, in float64."""
    batch, length, heads, size = q_BTHE.shape
    share = heads // k_BTKE.shape[2]
    q_NHE, k_NKE, v_NKE = (x.double().flatten(0, 1) for x in (q_BTHE, k_BTKE, v_BTKE))
    out_NHE = torch.zeros_like(q_NHE)
    bounds = range(0, batch * length + 1, length) if cu_seqlens is None else cu_seqlens.tolist()
    for start, end in pairwise(bounds):
        for head in range(heads):
            for t in range(start, end):
                last = t + 1 if causal else end
                scores = k_NKE[start:last, head // share] @ q_NHE[t, head] / size**0.5
                out_NHE[t, head] = scores.softmax(0) @ v_NKE[start:last, head // share]
    return out_NHE.view(batch, length, heads, size)


def random_qkv(kv_heads, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    shapes = ((3, 12, 4, 8), (3, 12, kv_heads, 8), (3, 12, kv_heads, 8))
    return [(2 * torch.randn(shape, generator=generator)).to(dtype).requires_grad_() for shape in shapes]


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("cu_seqlens", [None, ROWS, PACKED], ids=["plain", "rows", "packed"])
def test_equals_naive_in_value_and_gradient(kv_heads, causal, cu_seqlens):
    qkv = random_qkv(kv_heads)
    out = attention(*qkv, prepare_layout(3, 12, causal, cu_seqlens, CPU))
    expected = naive_attention(*qkv, causal, cu_seqlens)
    torch.testing.assert_close(out.double(), expected, atol=2e-6, rtol=1e-5)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    got = torch.autograd.grad((out * weights).sum(), qkv)
    wanted = torch.autograd.grad((expected * weights).sum(), qkv)
    torch.testing.assert_close(got, wanted, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("causal", [True, False])
def test_no_mask_is_made_where_each_row_is_one_document(causal):
    assert prepare_layout(3, 12, causal, None, CPU).mask is None
    assert prepare_layout(3, 12, causal, ROWS, CPU).mask is None
    assert prepare_layout(3, 12, causal, PACKED, CPU).mask.shape == (3, 1, 12, 12)


def test_boundaries_padded_to_a_fixed_size_change_nothing():
    padded = torch.cat((PACKED, PACKED[-1:].repeat(4)))
    layouts = [prepare_layout(3, 12, True, cu_seqlens, CPU) for cu_seqlens in (PACKED, padded)]
    assert torch.equal(layouts[0].mask, layouts[1].mask)
    assert torch.equal(default_positions(3, 12, PACKED, CPU), default_positions(3, 12, padded, CPU))


def test_new_tokens_see_the_cached_ones():
    q_BTHE, k_BTKE, v_BTKE = random_qkv(2)
    whole = attention(q_BTHE, k_BTKE, v_BTKE, prepare_layout(3, 12, True, None, CPU))
    for new in (1, 3):
        layout = prepare_layout(3, new, True, None, CPU, past=12 - new)
        last = attention(q_BTHE[:, -new:], k_BTKE, v_BTKE, layout)
        torch.testing.assert_close(last, whole[:, -new:])


def test_positions_start_again_in_each_document():
    positions_BT = default_positions(3, 12, PACKED, CPU)
    expected = [*range(5), *range(7), *range(1), *range(11), *range(12)]
    assert positions_BT.flatten().tolist() == expected
    assert default_positions(3, 12, None, CPU, past=2).tolist() == [list(range(2, 14))]


def test_wrong_boundaries_are_refused():
    with pytest.raises(ValueError, match=r"int64 of shape \(6,\)"):
        prepare_layout(3, 12, True, PACKED.long(), CPU)
    with pytest.raises(ValueError, match="7 cached tokens"):
        prepare_layout(3, 12, True, PACKED, CPU, past=7)
