"""Norms and rotary positions against their formulas in float64, and in bf16."""

import pytest
import torch

from ingot.model.config import ModelConfig
from ingot.model.layers import LayerNorm, RMSNorm, make_norm
from ingot.model.rotary import rotate, rotation_of


def naive_rotate(x_TE, positions_T, base):
    """Pairs (i, i + E/2) as complex numbers, times exp(i * angle), in float64."""
    half = x_TE.shape[-1] // 2
    angles = positions_T.double()[:, None] * base ** (-torch.arange(half, dtype=torch.float64) / half)
    turned = torch.complex(x_TE[:, :half].double(), x_TE[:, half:].double()) * torch.polar(
        torch.ones_like(angles), angles
    )
    return torch.cat((turned.real, turned.imag), dim=-1)


def test_rotate_equals_complex_multiplication():
    positions_T = torch.tensor([0, 1, 2, 17, 63, 1000])
    x_TE = torch.randn(6, 16, generator=torch.Generator().manual_seed(0))
    got = rotate(x_TE[None, :, None], rotation_of(positions_T[None], 16, 10000.0))[0, :, 0]
    torch.testing.assert_close(got.double(), naive_rotate(x_TE, positions_T, 10000.0), atol=1e-4, rtol=0)
    torch.testing.assert_close(got[:5].double(), naive_rotate(x_TE, positions_T, 10000.0)[:5], atol=1e-5, rtol=0)


def test_rotation_depends_on_the_distance_alone():
    q, k = torch.randn(2, 1, 1, 1, 16, generator=torch.Generator().manual_seed(0))
    products = []
    for shift in (0, 40):
        q_turned = rotate(q, rotation_of(torch.tensor([[7 + shift]]), 16, 10000.0))
        k_turned = rotate(k, rotation_of(torch.tensor([[3 + shift]]), 16, 10000.0))
        products.append((q_turned * k_turned).sum())
    torch.testing.assert_close(products[0], products[1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("by", ["cast", "meta"])
def test_neither_a_cast_nor_the_meta_device_spoils_the_frequencies(build, monkeypatch, tokens, by):
    model = build("modern")
    seen = []

    def spy(*arguments):
        seen.append(rotation_of(*arguments))
        return rotation_of(*arguments[:3])

    monkeypatch.setattr("ingot.model.transformer.rotation_of", spy)
    if by == "cast":
        model.to(torch.bfloat16).float()
    else:
        values = model.state_dict()
        with torch.device("meta"):
            model = type(model)(model.config)
        model.to_empty(device="cpu").load_state_dict(values)
    model(tokens(1, 60))
    cos, sin = rotation_of(torch.arange(60)[None], model.config.head_size, model.config.rope_theta)
    assert torch.equal(seen[0][0], cos)
    assert torch.equal(seen[0][1], sin)
    assert not any("freq" in name or "rot" in name for name in model.state_dict())


def test_bf16_tables_are_the_rounded_fp32_ones():
    positions = torch.arange(1000)[None]
    exact, rounded = rotation_of(positions, 64, 10000.0), rotation_of(positions, 64, 10000.0, torch.bfloat16)
    assert torch.equal(exact[0].bfloat16(), rounded[0])
    assert torch.equal(exact[1].bfloat16(), rounded[1])


def test_rms_norm_equals_its_formula():
    x = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    norm = RMSNorm(32, eps=1e-2)
    torch.nn.init.normal_(norm.weight)
    expected = x.double() / (x.double().square().mean(-1, keepdim=True) + 1e-2).sqrt() * norm.weight.double()
    torch.testing.assert_close(norm(x).double(), expected, atol=1e-6, rtol=1e-5)


def test_rms_norm_in_bf16_computes_in_fp32():
    # With 2048 ones, a mean square summed up in bf16 would stop growing at 256.
    norm = RMSNorm(2048, eps=1e-6).to(torch.bfloat16)
    x = torch.ones(1, 2048, dtype=torch.bfloat16)
    assert norm(x).dtype == torch.bfloat16
    assert torch.equal(norm(x), x)


def test_make_norm_follows_the_configuration():
    assert isinstance(make_norm(ModelConfig(norm="rmsnorm"), 8), RMSNorm)
    with_bias, without = (make_norm(ModelConfig(bias=bias, norm_eps=1e-12), 8) for bias in (True, False))
    assert isinstance(with_bias, LayerNorm)
    assert with_bias.bias is not None
    assert without.bias is None
    assert without.eps == 1e-12
