"""Matrix products, the loss, and attention, each alone."""

import statistics
from typing import Any

import torch

from gpu_sections.bench import Bench
from gpu_sections.packing import boundaries, documents


def device(bench: Bench) -> None:
    def product() -> None:
        size = 64 if bench.tiny else 8192
        a, b = (torch.randn(size, size, device=bench.device, dtype=torch.bfloat16) for _ in range(2))
        seconds = statistics.median(bench.times(lambda: a @ b))
        bench.say(f"matrix product {size} x {size} x {size}, bf16", TFLOPs=2 * size**3 / seconds / 1e12)

    bench.cases({"matrix product": product})


def loss(bench: Bench) -> None:
    from torch.nn import functional as F

    from ingot.model import loss as ours

    rows, width = (64, 32) if bench.tiny else (16384, 768)
    flops = 6 * rows * width

    def run(vocabulary: int, name: str) -> None:
        factors = [torch.randn(n, width, device=bench.device, dtype=torch.bfloat16) for n in (rows, vocabulary)]
        hidden, weight = (x.mul_(0.1).requires_grad_() for x in factors)
        labels = torch.randint(0, vocabulary, (rows,), device=bench.device)
        plain = ours.fuses

        def step() -> None:
            hidden.grad = weight.grad = None
            if name.startswith("F.cross_entropy"):
                F.cross_entropy(F.linear(hidden, weight).float(), labels, reduction="sum").backward()
            else:
                ours.linear_cross_entropy(hidden, weight, None, labels).backward()

        try:
            if name == "operator by operator":
                ours.fuses = lambda device: False
            elif bench.tiny and name == "fused":
                ours.fuses = lambda device: True
            seconds = statistics.median(bench.times(step))
        finally:
            ours.fuses = plain
        products = flops * vocabulary / seconds / 1e12
        bench.say(f"{rows} x {width} x {vocabulary}, {name}", ms=seconds * 1e3, TFLOPs=products, GiB=bench.memory())

    sizes = (97, 128) if bench.tiny else (50257, 50304)
    names = ("fused", "operator by operator", "F.cross_entropy")
    bench.cases({f"{name} {v}": (lambda v=v, name=name: run(v, name)) for v in sizes for name in names})


def attention(bench: Bench) -> None:
    from ingot.model.attention.attention import attention as attend
    from ingot.model.attention.attention import prepare_layout

    shapes = ((2, 64, 2, 1, 32),) if bench.tiny else ((16, 1024, 12, 12, 64), (8, 2048, 16, 8, 128))

    def run(shape: tuple[int, ...], backend: Any, packed: bool) -> None:
        B, T, H, K, E = shape
        q, k, v = (
            torch.randn(B, T, heads, E, device=bench.device, dtype=torch.bfloat16, requires_grad=True)
            for heads in (H, K, K)
        )
        lengths = documents(B, T, seed=0)
        cu_seqlens = boundaries(lengths, bench.device) if packed else None
        layout = prepare_layout(
            B, T, True, cu_seqlens, bench.device, dtype=torch.bfloat16, head_size=E, backend=backend
        )
        gradient = torch.ones_like(q)

        def step() -> None:
            attend(q, k, v, layout).backward(gradient)
            q.grad = k.grad = v.grad = None

        seconds = statistics.median(bench.times(step, seconds=1.0))
        pairs = sum(n * (n + 1) // 2 for n in lengths) if packed else B * T * (T + 1) // 2
        name = f"{shape} {'documents' if packed else 'rows'}, {backend or f'auto: {layout.backend}'}"
        bench.say(name, ms=seconds * 1e3, needed_TFLOPs=12 * H * E * pairs / seconds / 1e12)

    cases = {}
    for shape in shapes:
        for packed in (False, True):
            for backend in (None, "sdpa", *(() if bench.tiny else ("varlen", "flex"))):
                if not (packed and backend == "sdpa" and shape[1] > 1024):  # a dense mask
                    name = f"{shape} {packed} {backend}"
                    cases[name] = lambda shape=shape, backend=backend, packed=packed: run(shape, backend, packed)
    bench.cases(cases)
    for kernel in getattr(torch.nn.attention, "list_flash_attention_impls", list)():
        name = f"varlen by {kernel}"
        try:
            torch.nn.attention.activate_flash_attention_impl(kernel)
        except Exception as error:  # not installed, or not for this GPU
            bench.say(name, skipped=f"{type(error).__name__}: {error}"[:120])
            continue
        if not bench.tiny:
            bench.cases({name: lambda kernel=kernel: run(shapes[-1], "varlen", True)})
        torch.nn.attention.restore_flash_attention_impl()
