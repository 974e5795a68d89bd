"""The attention implementation that a user names: it is used, agrees, and is refused where it cannot run."""

import pytest
import torch

from ingot.model import attention_implementation as file
from ingot.model.attention_implementation import notes, use_implementation
from ingot.model.config import ModelConfig

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize("kind", ["gpt", "bert"])
def test_sdpa_gives_what_auto_gives_and_is_used(build, tokens, kind):
    model, ids, cu_seqlens = build(kind), tokens(2, 24), torch.tensor([0, 5, 24, 40, 48], dtype=torch.int32)
    backends = []
    plain = model.blocks[0].forward
    model.blocks[0].forward = lambda x, layout, *rest: backends.append(layout.backend) or plain(x, layout, *rest)
    expected = model(ids, cu_seqlens=cu_seqlens)
    use_implementation(model, "sdpa", CPU, torch.float32)
    torch.testing.assert_close(model(ids, cu_seqlens=cu_seqlens), expected, rtol=1e-5, atol=1e-5)
    assert backends == ["documents", "sdpa"]
    use_implementation(model, "auto", CPU, torch.float32)
    model(ids, cu_seqlens=cu_seqlens)
    assert backends[-1] == "documents"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("flash_attention_2", "needs an NVIDIA GPU"),
        ("flash_attention_3", "needs an NVIDIA GPU"),
        ("flex_attention", "needs a GPU"),
    ],
)
def test_what_cannot_run_here_is_refused_and_nothing_changes(build, name, reason):
    model = build("gpt")
    with pytest.raises(ValueError, match=f"parallel.attn_implementation {name} cannot be used: .*{reason}"):
        use_implementation(model, name, CPU, torch.bfloat16)
    assert model.attention_backend is None


@pytest.fixture
def gpu(monkeypatch):
    """A GPU of a compute capability with modules, as far as the choice asks. It returns what was activated."""
    activated = []

    def make(major: int, modules: set[str]) -> list[str]:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (major, 0))
        monkeypatch.setattr(file.importlib.util, "find_spec", lambda name: name if name in modules else None)
        monkeypatch.setattr(torch.nn.attention, "activate_flash_attention_impl", activated.append)
        monkeypatch.setattr(file, "why_not", lambda backend, request: None)
        return activated

    return make


FA3, FA4 = "flash_attn_interface", "flash_attn.cute.interface"


@pytest.mark.parametrize(
    ("major", "modules", "name", "expected"),
    [
        (9, {FA3, FA4}, "auto", ["FA3"]),
        (10, {FA3, FA4}, "auto", ["FA4"]),
        (9, {FA4}, "auto", []),
        (9, {FA4}, "flash_attention_4", ["FA4"]),
        (9, set(), "auto", []),
        (8, {FA3, FA4}, "auto", []),
        (9, {FA3}, "flash_attention_2", []),
        (9, {FA3}, "sdpa", []),
    ],
)
def test_the_kernel_is_that_of_the_device(build, gpu, major, modules, name, expected):
    activated = gpu(major, modules)
    use_implementation(build("gpt"), name, CUDA, torch.bfloat16)
    assert activated == expected


def test_dropout_and_fp32_keep_the_kernels_that_support_them(build, gpu):
    activated = gpu(9, {FA3})
    use_implementation(build("gpt", attention_dropout=0.1), "auto", CUDA, torch.bfloat16)
    use_implementation(build("gpt"), "auto", CUDA, torch.float32)
    assert activated == []


def test_a_kernel_that_is_not_installed_or_not_for_this_gpu_is_refused(build, gpu):
    gpu(9, set())
    with pytest.raises(ValueError, match="the module flash_attn_interface is not installed"):
        use_implementation(build("gpt"), "flash_attention_3", CUDA, torch.bfloat16)
    gpu(10, {FA3})
    with pytest.raises(ValueError, match=r"it needs compute capability 9\.x, and this GPU has 10\.x"):
        use_implementation(build("gpt"), "flash_attention_3", CUDA, torch.bfloat16)


def test_torch_knows_the_names_of_the_kernels():
    known = set(torch.nn.attention.list_flash_attention_impls())
    assert {registered for registered, _, _ in file._KERNELS.values()} <= known


def test_a_run_is_told_once_of_a_dense_mask():
    config = ModelConfig(attention_dropout=0.1)
    (note,) = notes(config, CUDA, packed=True)
    assert "attention_dropout is 0.1" in note
    assert "dense mask" in note
    assert notes(config, CUDA, packed=False) == notes(config, CPU, packed=True) == []
    assert notes(ModelConfig(), CUDA, packed=True) == []
