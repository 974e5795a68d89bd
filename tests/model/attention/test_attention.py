"""Attention's back-ends on the CPU against a naive one in float64: documents, padding, windows, cached tokens."""

from contextlib import suppress
from functools import cache

import pytest
import torch

from ingot.model.attention.attention import attention, default_positions, prepare_layout

CPU = torch.device("cpu")
BATCH, LENGTH, HEADS, SIZE = 3, 96, 4, 8
ROWS = torch.tensor([0, 96, 192, 288], dtype=torch.int32)
PACKED = torch.tensor([0, 5, 12, 80, 96, 97, 130, 131, 192, 258, 288], dtype=torch.int32)
EMPTY = torch.cat((PACKED[:4], PACKED[3:4], PACKED[4:], PACKED[-1:].repeat(3)))


def padding(*runs):
    """Mask of rows that each show the tokens from a start to an end."""
    places_S = torch.arange(LENGTH)
    return torch.stack([(places_S >= start) & (places_S < end) for start, end in runs])


LEFT = padding((0, 96), (40, 96), (95, 96))
RIGHT = padding((0, 96), (0, 40), (0, 1))
BOTH = padding((10, 90), (0, 96), (33, 34))
NOTHING = padding((10, 90), (0, 0), (0, 96))
HOLES = BOTH.clone()
HOLES[0, 20:25] = False
CASES = {
    "plain": {},
    "rows": {"cu_seqlens": ROWS},
    "rows and empty": {"cu_seqlens": torch.cat((ROWS, ROWS[-1:].repeat(5)))},
    "packed": {"cu_seqlens": PACKED},
    "packed and empty": {"cu_seqlens": EMPTY},
    "packed, equally long": {"cu_seqlens": torch.arange(0, 289, 16, dtype=torch.int32)},
    "left padding": {"mask_BS": LEFT},
    "right padding": {"mask_BS": RIGHT},
    "padding on both sides": {"mask_BS": BOTH},
    "a row of padding": {"mask_BS": NOTHING},
    "padding with holes": {"mask_BS": HOLES},
    "window": {"window": 5},
    "wide window": {"window": 70},
    "window over all": {"window": 95},
    "window and packed": {"cu_seqlens": EMPTY, "window": 5},
    "window over the packed": {"cu_seqlens": PACKED, "window": 67},
    "window and padding": {"mask_BS": BOTH, "window": 5},
    "window and padding with holes": {"mask_BS": HOLES, "window": 5},
    "cached": {"past": 89},
    "cached, one new": {"past": 95},
    "cached, window": {"past": 89, "window": 5},
    "cached, window, one new": {"past": 95, "window": 5},
    "cached, left padding": {"past": 89, "mask_BS": LEFT},
    "cached, left padding, one new": {"past": 95, "mask_BS": LEFT},
    "cached, left padding, window": {"past": 89, "mask_BS": LEFT, "window": 5},
    "cached, left padding, window, one new": {"past": 95, "mask_BS": LEFT, "window": 5},
}


def visible(causal, *, cu_seqlens=None, past=0, window=None, mask_BS=None):
    """bool (B, T, S), pair by pair; and which queries are tokens, (B, T)."""
    seen_BTS = torch.zeros(BATCH, LENGTH - past, LENGTH, dtype=torch.bool)
    bounds = ROWS if cu_seqlens is None else cu_seqlens
    document = [int((bounds <= token).sum()) for token in range(BATCH * LENGTH)]
    for b in range(BATCH):
        for t in range(past, LENGTH):
            for s in range(LENGTH):
                seen = s <= t or not causal
                seen = seen and (window is None or abs(s - t) <= window)
                seen = seen and document[b * LENGTH + t] == document[b * LENGTH + s]
                seen_BTS[b, t - past, s] = seen and (mask_BS is None or bool(mask_BS[b, s]))
    is_token_BT = torch.ones(BATCH, LENGTH, dtype=torch.bool) if mask_BS is None else mask_BS
    return seen_BTS, is_token_BT[:, past:]


@cache
def who_sees_whom(case, causal):
    return visible(causal, **CASES[case])


def naive_attention(q_BTHE, k_BSKE, v_BSKE, seen_BTS, dtype=torch.float64):
    """Every step in one type. Queries that see nothing give 0."""
    share = q_BTHE.shape[2] // k_BSKE.shape[2]
    k_BSHE, v_BSHE = (x.to(dtype).repeat_interleave(share, dim=2) for x in (k_BSKE, v_BSKE))
    scores_BHTS = torch.einsum("bthe,bshe->bhts", q_BTHE.to(dtype) / q_BTHE.shape[-1] ** 0.5, k_BSHE)
    weights_BHTS = scores_BHTS.masked_fill(~seen_BTS[:, None], -1e9).softmax(-1) * seen_BTS[:, None]
    return torch.einsum("bhts,bshe->bthe", weights_BHTS, v_BSHE)


def random_qkv(kv_heads, past=0, dtype=torch.float32, device=CPU, batch=BATCH, length=LENGTH, size=SIZE):
    generator = torch.Generator().manual_seed(0)
    shapes = (batch, length - past, HEADS, size), (batch, length, kv_heads, size), (batch, length, kv_heads, size)
    return [(2 * torch.randn(shape, generator=generator)).to(device, dtype).requires_grad_() for shape in shapes]


def layout_of(case, causal, **choice):
    what = dict(CASES[case])
    length = LENGTH - what.get("past", 0)
    return prepare_layout(BATCH, length, causal, what.pop("cu_seqlens", None), CPU, **what, **choice)


def layouts_of(case, causal, **choice):
    """The layouts of all back-ends that can do it here."""
    layouts = []
    for backend in ("sdpa", "blocks", "documents", "windows"):
        with suppress(ValueError):
            layouts.append(layout_of(case, causal, backend=backend, **choice))
    return layouts


def value_and_gradients(function, qkv, is_token_BT):
    """The result at tokens, and gradients that only come from there."""
    out = function(*qkv)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out)
    weights = weights * is_token_BT[:, :, None, None].to(out)
    return out[is_token_BT], *torch.autograd.grad((out * weights).sum(), qkv)


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_equals_naive_in_value_and_gradient(case, causal, kv_heads):
    seen_BTS, is_token_BT = who_sees_whom(case, causal)
    qkv = random_qkv(kv_heads, CASES[case].get("past", 0))
    expected = value_and_gradients(lambda *qkv: naive_attention(*qkv, seen_BTS), qkv, is_token_BT)
    for layout in layouts_of(case, causal):
        got = value_and_gradients(lambda *qkv, layout=layout: attention(*qkv, layout), qkv, is_token_BT)
        for name, g, e in zip(("value", "query", "key", "value gradient"), got, expected, strict=True):
            assert (g.double() - e).norm() <= 2e-6 * e.norm(), (layout.backend, name)
        assert attention(*qkv, layout).isfinite().all(), layout.backend  # at padding too


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("case", ["plain", "packed", "padding on both sides", "window", "window and packed", "cached"])
def test_bf16_is_no_more_than_twice_as_far_as_plain_bf16(case, causal):
    seen_BTS, is_token_BT = who_sees_whom(case, causal)
    qkv = random_qkv(2, CASES[case].get("past", 0), torch.bfloat16)
    exact, plain = (
        value_and_gradients(lambda *qkv, dtype=dtype: naive_attention(*qkv, seen_BTS, dtype), qkv, is_token_BT)
        for dtype in (torch.float64, torch.bfloat16)
    )
    for layout in layouts_of(case, causal, dtype=torch.bfloat16):
        got = value_and_gradients(lambda *qkv, layout=layout: attention(*qkv, layout), qkv, is_token_BT)
        for g, p, e in zip(got, plain, exact, strict=True):
            assert g.dtype == torch.bfloat16
            assert (g.double() - e).norm() <= 2 * (p.double() - e).norm(), layout.backend
            assert (g.double() - e).abs().max() <= 2 * (p.double() - e).abs().max(), layout.backend


@pytest.mark.parametrize(
    ("case", "backend"),
    [
        ("plain", "sdpa"),
        ("rows", "sdpa"),
        ("rows and empty", "sdpa"),
        ("packed", "documents"),
        ("packed and empty", "documents"),
        ("left padding", "documents"),
        ("padding with holes", "sdpa"),
        ("window", "windows"),
        ("wide window", "sdpa"),
        ("window over all", "sdpa"),
        ("window and packed", "windows"),
        ("window over the packed", "documents"),
        ("window and padding with holes", "windows"),
        ("cached, window", "sdpa"),
    ],
)
def test_the_back_end_is_the_quickest_that_can(case, backend):
    for causal in (True, False):
        assert layout_of(case, causal).backend == backend
        assert layout_of(case, causal, dropout=0.1).backend == ("documents" if backend == "documents" else "sdpa")


@pytest.mark.parametrize("case", ["packed", "packed and empty", "packed, equally long", "left padding"])
@pytest.mark.parametrize("causal", [True, False])
def test_documents_with_dropout_compute_what_they_do_without(case, causal):
    """But for what is dropped: a probability too small to drop anything shows it."""
    _, is_token_BT = who_sees_whom(case, causal)
    ours, theirs = random_qkv(2), random_qkv(2)
    out = attention(*ours, layout_of(case, causal, dropout=1e-9), 1e-9)
    expected = attention(*theirs, layout_of(case, causal, backend="sdpa"))
    torch.testing.assert_close(out[is_token_BT], expected[is_token_BT])
    torch.manual_seed(1)
    gradient = torch.randn_like(out) * is_token_BT[:, :, None, None]
    out.backward(gradient)
    expected.backward(gradient)
    for mine, right in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, right.grad, atol=5e-5, rtol=1e-4)


@pytest.mark.parametrize("causal", [True, False])
def test_no_mask_is_made_where_none_is_needed(causal):
    for case in ("plain", "rows", "rows and empty", "packed", "window over all", "left padding"):
        layout = layout_of(case, causal)
        assert layout.mask is None
        assert layout.is_causal == causal
    for case in ("cached, one new", "cached, window, one new"):
        layout = layout_of(case, True)
        assert layout.mask is None
        assert not layout.is_causal
    assert layout_of("cached, window, one new", True).first_key == 90
    assert layout_of("cached, window", True).mask.shape == (1, 1, 7, 12)
    assert layout_of("left padding", False, backend="sdpa").mask.shape == (3, 1, 1, 96)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("case", ["packed", "window and packed"])
@pytest.mark.parametrize("causal", [True, False])
def test_what_is_in_one_document_moves_no_bit_of_another(case, causal, dropout):
    qkv = [x.detach() for x in random_qkv(2)]
    layouts = [layout_of(case, causal, dropout=dropout)] if dropout else layouts_of(case, causal)
    for layout in layouts:
        torch.manual_seed(0)
        before_NHE = attention(*qkv, layout, dropout).flatten(0, 1)
        for start, end in zip(PACKED.tolist(), PACKED.tolist()[1:], strict=False):
            changed = [x.clone() for x in qkv]
            for x in changed:
                x.flatten(0, 1)[start:end] *= -30
            torch.manual_seed(0)
            moved_N = (attention(*changed, layout, dropout).flatten(0, 1) != before_NHE).flatten(1).any(-1)
            assert not moved_N[:start].any(), layout.backend
            assert not moved_N[end:].any(), layout.backend
            assert moved_N[start:end].all(), layout.backend


@pytest.mark.parametrize("case", ["plain", "packed", "left padding", "window", "window and packed", "cached"])
def test_dropout_keeps_the_mean(case):
    _, is_token_BT = who_sees_whom(case, True)
    q, k, v = (x.detach() for x in random_qkv(2, CASES[case].get("past", 0)))
    layout = layout_of(case, True, dropout=0.5)
    torch.manual_seed(0)
    runs = torch.stack([attention(q, k, torch.ones_like(v), layout, 0.5) for _ in range(20)])[:, is_token_BT]
    assert runs.std() > 0.1
    assert (runs.mean() - 1).abs() < 0.03


def test_new_tokens_see_the_cached_ones():
    q_BTHE, k_BTKE, v_BTKE = random_qkv(2)
    for window in (None, 5):
        whole = attention(q_BTHE, k_BTKE, v_BTKE, prepare_layout(BATCH, LENGTH, True, None, CPU, window=window))
        for new in (1, 3, 40):
            layout = prepare_layout(BATCH, new, True, None, CPU, past=LENGTH - new, window=window)
            last = attention(q_BTHE[:, -new:], k_BTKE, v_BTKE, layout)
            torch.testing.assert_close(last, whole[:, -new:])


def test_positions_start_again_in_each_document():
    packed = torch.tensor([0, 5, 12, 13, 24, 36, 36, 36], dtype=torch.int32)
    positions_BT = default_positions(3, 12, packed, CPU)
    expected = [*range(5), *range(7), *range(1), *range(11), *range(12)]
    assert positions_BT.flatten().tolist() == expected
    assert default_positions(3, 12, None, CPU, past=2).tolist() == [list(range(2, 14))]


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match=r"int64 of shape \(11,\)"):
        prepare_layout(BATCH, LENGTH, True, PACKED.long(), CPU)
    with pytest.raises(ValueError, match="7 cached tokens"):
        prepare_layout(BATCH, LENGTH, True, PACKED, CPU, past=7)
    with pytest.raises(ValueError, match="a document of its own"):
        prepare_layout(BATCH, LENGTH, True, PACKED, CPU, mask_BS=BOTH)
    with pytest.raises(ValueError, match="'varlen' cannot be used: it needs an NVIDIA GPU"):
        layout_of("packed", True, backend="varlen")
    with pytest.raises(ValueError, match="padding mask has holes"):
        layout_of("padding with holes", True, backend="documents")
    with pytest.raises(ValueError, match="known back-ends are sdpa"):
        layout_of("plain", True, backend="fast")
    with pytest.raises(ValueError, match="pass dropout to prepare_layout"):
        attention(*random_qkv(2), layout_of("window", True), 0.1)
