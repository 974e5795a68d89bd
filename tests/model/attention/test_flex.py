"""FlexAttention's table of blocks, checked without a GPU: the forward pass, uncompiled, runs on the CPU."""

import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from ingot.model.attention.flex import flex_block_mask
from ingot.model.attention.masks import dense_mask, segments_of

CUTS = {
    "rows": [0, 500, 1000],
    "packed": [0, 3, 128, 256, 300, 500, 501, 900, 1000],
    "empty": [0, 250, 250, 500, 756, 1000, 1000, 1000],
}


@pytest.mark.parametrize("cuts", CUTS)
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [None, 5, 128, 130, 300])
@pytest.mark.parametrize("length", [500, 384])
def test_the_table_names_the_blocks_that_hold_something(cuts, causal, window, length):
    cu_seqlens = torch.tensor(CUTS[cuts], dtype=torch.int32)
    segments_BT = segments_of(cu_seqlens, 1000).view(2, 500)[:, :length]
    block_mask = flex_block_mask(segments_BT, causal, window)
    expected = create_block_mask(block_mask.mask_mod, 2, None, length, length, device="cpu")
    assert torch.equal(block_mask.to_dense(), expected.to_dense())
    assert torch.equal(block_mask.full_kv_num_blocks, expected.full_kv_num_blocks)

    mask = dense_mask(length, 0, causal, window, torch.device("cpu"), segments_BT=segments_BT)
    q, k, v = (torch.randn(2, heads, length, 16, generator=torch.Generator().manual_seed(0)) for heads in (4, 2, 2))
    got = flex_attention(q, k, v, block_mask=block_mask, enable_gqa=True)
    wanted = torch.nn.functional.scaled_dot_product_attention(q, k, v, mask, enable_gqa=True)
    torch.testing.assert_close(got, wanted)
