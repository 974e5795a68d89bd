"""Speed on one GPU: training, loss, attention and generation, beside transformers, in at most nine minutes.

    python benchmarks/gpu.py                      # everything that fits into the time; also: make gpu
    python benchmarks/gpu.py --only gpt2 loss     # some sections
    python benchmarks/gpu.py --minutes 20         # more time for each section
    python benchmarks/gpu.py --tiny               # every branch, in small, on a CPU: only a test of the script

torch is enough; DeepSpeed, transformers, torchao and FlashAttention 3 are measured where they are installed. Each section
runs in a process of its own with its share of the time, so one that fails, hangs or breaks the device costs only itself.
What was left out is said. Every line is also kept in a JSON file with versions, device and commit.

tokens/s is the median over steps. MFU is by the convention of model/costs/flops.py; "computed" is the share of the peak by
what is really needed (causal half, documents and rows without a target deducted). GiB is the peak of what torch
allocated. Training: fp32 master weights, bf16 computation, AdamW, clipping, gradients accumulated over 4 micro-batches;
Ingot trains on packed documents (a mean of a third of the length), transformers on unpacked rows, which are faster.
"""  # noqa: E501  # the commands

import argparse
import gc
import importlib.util
import inspect
import itertools
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
import types
import typing
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import _clone
import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
SECTIONS = {  # and their shares of the time
    "device": 0.05,
    "loss": 0.09,
    "attention": 0.09,
    "gpt2": 0.21,
    "llama": 0.22,
    "bert": 0.12,
    "engines": 0.14,
    "generation": 0.08,
}
MICROS = 4


class Bench:
    """One section: where it runs, how long it may take, and what it found."""

    def __init__(self, section: str, seconds: float, tiny: bool, results: Path):
        self.section, self.end, self.tiny = section, time.monotonic() + seconds, tiny
        self.device = torch.device("cpu" if tiny else "cuda")
        self.results = results
        self._longest = 0.0

    def say(self, name: str, **values: Any) -> None:
        """Prints a line and keeps it."""
        text = "  ".join(f"{key} {_shown(value)}" for key, value in values.items())
        print(f"  {name:<58} {text}", flush=True)
        with self.results.open("a") as file:
            file.write(json.dumps({"section": self.section, "name": name, **values}) + "\n")

    def cases(self, cases: dict[str, Callable[[], None]]) -> None:
        """Runs each case that fits into the time. One that fails does not end the others."""
        for name, case in cases.items():
            left = self.end - time.monotonic()
            if left < self._longest / 2 and not self.tiny:
                self.say(name, skipped=f"{left:.0f} s are left of the section's time")
                continue
            start = time.monotonic()
            try:
                case()
            except Exception as error:  # a case must not end the others
                traceback.print_exc(limit=3)
                self.say(name, failed=f"{type(error).__name__}: {error}"[:300])
            gc.collect()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            self._longest = max(self._longest, time.monotonic() - start)

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def times(self, function: Callable[[], Any], seconds: float = 2.0, warm: int = 3, most: int = 30) -> list[float]:
        """Seconds of single runs."""
        warm, most = (1, 2) if self.tiny else (warm, most)
        for _ in range(warm):
            function()
        self.wait()
        found: list[float] = []
        end = time.monotonic() + seconds
        while len(found) < 2 or (len(found) < most and time.monotonic() < end):
            start = time.perf_counter()
            function()
            self.wait()
            found.append(time.perf_counter() - start)
        return found

    @property
    def peak(self) -> float | None:
        from ingot.model.costs.flops import peak_flops

        return peak_flops(torch.cuda.get_device_name(), torch.bfloat16) if self.device.type == "cuda" else None

    def memory(self) -> float | None:
        return torch.cuda.max_memory_allocated() / 2**30 if self.device.type == "cuda" else None


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return str(value)


def installed(*names: str) -> bool:
    return all(importlib.util.find_spec(name) is not None for name in names)


def why_missing(bench: Bench, name: str, *packages: str) -> bool:
    """Says so, and True, if a package is missing."""
    missing = [each for each in packages if not installed(each)]
    if missing:
        bench.say(name, skipped=f"{', '.join(missing)} is not installed")
    return bool(missing)


# device ------------------------------------------------------------------------------------------------------------


def device(bench: Bench) -> None:
    def product() -> None:
        size = 64 if bench.tiny else 8192
        a, b = (torch.randn(size, size, device=bench.device, dtype=torch.bfloat16) for _ in range(2))
        seconds = statistics.median(bench.times(lambda: a @ b))
        bench.say(f"matrix product {size} x {size} x {size}, bf16", TFLOPs=2 * size**3 / seconds / 1e12)

    bench.cases({"matrix product": product})


# loss --------------------------------------------------------------------------------------------------------------


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


# attention ---------------------------------------------------------------------------------------------------------


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


# training ----------------------------------------------------------------------------------------------------------


def documents(rows: int, length: int, seed: int) -> list[int]:
    """Lengths of the documents of rows, with a mean of about a third of a row. No document crosses the end of a row."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(rows):
        cuts = sorted({0, length, *torch.randint(1, length, (2,), generator=generator).tolist()})
        found += [b - a for a, b in itertools.pairwise(cuts)]
    return found


def boundaries(lengths: list[int], device: torch.device) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).int().to(device)


def shape_of(kind: str, tiny: bool) -> tuple[Any, int, int]:
    """Configuration, sequences of a micro-batch, and their length."""
    from ingot.model.config import ModelConfig

    gpt2 = {"vocab_size": 50257, "num_hidden_layers": 12, "num_attention_heads": 12, "hidden_size": 768}
    llama = {"vocab_size": 32768, "num_hidden_layers": 20, "num_attention_heads": 16, "hidden_size": 2048}
    llama |= {"num_key_value_heads": 8, "intermediate_size": 5632, "max_position_embeddings": 2048}
    llama |= {"positions": "rotary", "norm": "rmsnorm", "activation": "silu", "gated_mlp": True, "bias": False}
    llama |= {"tie_word_embeddings": False}
    bert = {**gpt2, "vocab_size": 30522, "max_position_embeddings": 512, "causal": False, "norm_placement": "post"}
    bert |= {"norm_eps": 1e-12, "activation": "gelu", "type_vocab_size": 2, "embedding_norm": True}
    bert |= {"head_transform": True, "head_bias": True}
    values, rows, length = {"gpt2": (gpt2, 32, 1024), "llama": (llama, 8, 2048), "bert": (bert, 64, 512)}[kind]
    if tiny:
        values = {**values, "vocab_size": 97, "num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 32}
        values |= {"intermediate_size": 64, "max_position_embeddings": 32}
        values |= {"num_key_value_heads": 1} if "num_key_value_heads" in values else {}
        rows, length = 2, 32
    return ModelConfig(**values), rows, length


def micro_batches(bench: Bench, kind: str, packed: bool) -> Iterator[tuple[dict[str, Tensor], list[int], int]]:
    """Inputs of the model, lengths of the documents, and number of targets, of the micro-batches of a step."""
    config, rows, length = shape_of(kind, bench.tiny)
    for seed in range(MICROS):
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(5, config.vocab_size, (rows, length), generator=generator)
        labels = ids.roll(-1, 1)
        if not config.causal:
            labels = ids.masked_fill(torch.rand(ids.shape, generator=generator) >= 0.15, -100)
        lengths = documents(rows, length, seed) if packed else [length] * rows
        batch = {"input_ids_BT": ids, "labels_BT": labels}
        targets = (labels.flatten() != -100).nonzero()[:, 0]
        if not config.causal:
            batch["target_rows"] = targets
        if packed:
            starts = boundaries(lengths, torch.device("cpu")).long()
            positions = torch.arange(rows * length) - starts[:-1].repeat_interleave(starts.diff())
            batch |= {"cu_seqlens": starts.int(), "positions_BT": positions.view(rows, length)}
        yield {name: tensor.to(bench.device) for name, tensor in batch.items()}, lengths, len(targets)


def enabling(options: type, name: str) -> Any:
    """The value that switches an option of a dataclass on; None if there is no such option."""
    hint = typing.get_type_hints(options).get(name)
    if hint is None:
        return None
    values = list(_values(hint))
    if True in values:
        return True
    return next((value for value in values if value not in (False, None, "none", "off", "auto", "null")), None)


def _values(hint: Any) -> Iterator[Any]:
    if hint is bool:
        yield from (False, True)
    elif typing.get_origin(hint) is typing.Literal:
        yield from typing.get_args(hint)
    elif typing.get_origin(hint) in (typing.Union, types.UnionType, typing.Annotated):
        for each in typing.get_args(hint):
            yield from _values(each)


def train(bench: Bench, name: str, kind: str, packed: bool = True, **options: Any) -> None:
    """Steps of an engine, as `ingot pretrain` makes them, on batches that lie on the device."""
    from ingot.launcher.config.optimizer import Optimizer
    from ingot.launcher.config.parallel import Parallel
    from ingot.launcher.training.build import build_engine
    from ingot.model.initialization import InitialValues
    from ingot.model.tensor_plan import tensor_plan
    from ingot.model.transformer import LanguageModel

    if hasattr(torch, "_dynamo"):
        torch._dynamo.reset()
    if "compile" in {field.name for field in fields(Parallel)}:
        options = {"compile": False, **options}
    parallel = Parallel(**{"engine": "fsdp", "precision": "bf16", **options})
    config, rows, _ = shape_of(kind, bench.tiny)
    with torch.device("meta"):
        model = LanguageModel(config)
    values = InitialValues(model, 1)
    plan = tensor_plan(config)
    sizes = {"micro_batch": rows, "num_micro_batches": MICROS}
    engine = build_engine(model, Optimizer(), parallel, mesh(bench), plan=plan, **sizes)
    if bench.tiny:
        engine.initialize(values.part)
    else:  # random values made on the device: the numbers of a run take seconds to make on the host
        engine.initialize(lambda name, offset, shape: torch.randn(shape, device=bench.device).mul_(0.02))
    engine.module.train()
    batches = list(micro_batches(bench, kind, packed))
    num_targets = sum(targets for _, _, targets in batches)
    number = 0

    def step() -> None:
        nonlocal number
        number += 1
        for place, (batch, _, _) in enumerate(batches):
            engine.forward_backward(batch, num_targets, place == MICROS - 1)
        engine.step(1e-5, number)

    seconds = bench.times(step, seconds=4.0, warm=3)
    report(bench, name, kind, seconds, [(lengths, targets) for _, lengths, targets in batches])


def report(bench: Bench, name: str, kind: str, seconds: list[float], work: list[tuple[list[int], int]]) -> None:
    from ingot.model.costs.flops import computed_flops, flops_per_token

    config, rows, length = shape_of(kind, bench.tiny)
    middle, tokens = statistics.median(seconds), rows * length * MICROS
    counted = flops_per_token(config, length) * tokens / middle
    needed = sum(computed_flops(config, lengths, targets) for lengths, targets in work) / middle
    shares: dict[str, Any] = {}
    if bench.peak is not None:
        shares = {"MFU": round(counted / bench.peak, 4), "computed": round(needed / bench.peak, 4)}
    bench.say(
        f"{kind}, {name}",
        **{"tokens/s": tokens / middle, "TFLOPs": counted / 1e12, **shares},
        GiB=bench.memory(),
        spread=round((max(seconds) - min(seconds)) / middle, 3),
        steps=len(seconds),
    )


_MESHES: list[Any] = []


def mesh(bench: Bench) -> Any:
    """The mesh of this process, made once."""
    from ingot.parallel import mesh as meshes

    if not _MESHES:
        _MESHES.append(meshes.start(bench.device.type))
    return _MESHES[0]


def train_transformers(bench: Bench, kind: str, compiled: bool) -> None:
    """The same size under bf16 autocast, as the Trainer of transformers computes."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    torch._dynamo.reset()
    config, _, length = shape_of(kind, bench.tiny)
    ends = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0, "use_cache": False}
    size = {"vocab_size": config.vocab_size, "attn_implementation": "sdpa"}
    width, layers, heads = config.hidden_size, config.num_hidden_layers, config.num_attention_heads
    usual = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
    usual |= {"intermediate_size": config.mlp_size, "max_position_embeddings": config.max_position_embeddings}
    if kind == "gpt2":
        none = {"embd_pdrop": 0.0, "resid_pdrop": 0.0, "attn_pdrop": 0.0}
        theirs = transformers.GPT2Config(
            **size, **ends, **none, n_embd=width, n_layer=layers, n_head=heads, n_positions=length
        )
    elif kind == "llama":
        more = {"num_key_value_heads": config.kv_heads, "tie_word_embeddings": False}
        theirs = transformers.LlamaConfig(**size, **ends, **usual, **more)
    else:
        none = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        theirs = transformers.BertConfig(**size, **usual, **none)
    made = transformers.AutoModelForMaskedLM if kind == "bert" else transformers.AutoModelForCausalLM
    with torch.device(bench.device):
        model = made.from_config(theirs).float().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    forward = torch.compile(model) if compiled else model
    batches = list(micro_batches(bench, kind, packed=False))

    def step() -> None:
        for batch, _, _ in batches:
            with torch.autocast(bench.device.type, torch.bfloat16):
                labels = batch["input_ids_BT"] if config.causal else batch["labels_BT"]
                found = forward(input_ids=batch["input_ids_BT"], labels=labels).loss
            (found / MICROS).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    seconds = bench.times(step, seconds=4.0, warm=2)
    name = f"transformers{', compiled' if compiled else ''}, rows"
    report(bench, name, kind, seconds, [(lengths, targets) for _, lengths, targets in batches])


def training(bench: Bench, kind: str) -> None:
    from ingot.launcher.config.parallel import Parallel

    compiled = {"compile": enabling(Parallel, "compile")}
    cases: dict[str, Callable[[], None]] = {
        "compiled": lambda: train(bench, "compiled", kind, **compiled),
    }
    if not why_missing(bench, f"{kind}, transformers", "transformers"):
        cases["transformers compiled"] = lambda: train_transformers(bench, kind, compiled=True)
    names = [field.name for field in fields(Parallel) if "fp8" in field.name or "float8" in field.name]
    if not names:
        bench.say(f"{kind}, fp8", skipped="this version has no option for it")
    for name in names[:1]:
        fp8 = {**compiled, name: enabling(Parallel, name)}
        cases["fp8"] = lambda fp8=fp8: train(bench, f"compiled, {fp8}", kind, **fp8)
    cases["rows"] = lambda: train(bench, "compiled, rows without documents", kind, packed=False, **compiled)
    cases["not compiled"] = lambda: train(bench, "not compiled", kind)
    for each in ("selective", "full"):
        name = f"compiled, activation_checkpointing {each}"
        cases[name] = lambda each=each, name=name: train(
            bench, name, kind, **{**compiled, "activation_checkpointing": each}
        )
    if not why_missing(bench, f"{kind}, transformers", "transformers"):
        cases["transformers"] = lambda: train_transformers(bench, kind, compiled=False)
    bench.cases(cases)


def gpt2(bench: Bench) -> None:
    training(bench, "gpt2")


def llama(bench: Bench) -> None:
    training(bench, "llama")


def bert(bench: Bench) -> None:
    training(bench, "bert")


def engines(bench: Bench) -> None:
    """On one device nothing can be sharded: what shows is the cost of each engine's way."""
    from ingot.launcher.config.parallel import Parallel

    compiled = {"compile": enabling(Parallel, "compile")}
    cases: dict[str, Callable[[], None]] = {"fsdp": lambda: train(bench, "engine fsdp", "gpt2", **compiled)}
    if not why_missing(bench, "gpt2, engine zero", "deepspeed"):
        for stage in (1, 2, 3, 0):
            options = {"engine": "zero", "zero_stage": stage, **(compiled if stage < 3 else {})}
            name = f"ZeRO-{stage}{'' if stage < 3 else ', not compiled'}"
            cases[name] = lambda name=name, options=options: train(bench, name, "gpt2", **options)
    bench.cases(cases)
    bench.say("gpt2, FSDP2 and sharding", skipped="they need several devices: start the run itself with torchrun")


# generation --------------------------------------------------------------------------------------------------------


def generation(bench: Bench) -> None:
    from ingot.model.generation.generate import Sampling, complete
    from ingot.model.initialization import initialize
    from ingot.model.transformer import LanguageModel

    config, _, _ = shape_of("llama", bench.tiny)
    tokens = 8 if bench.tiny else 128
    model = LanguageModel(config)
    if bench.tiny:
        initialize(model, 1)
    model = model.to(bench.device, torch.bfloat16).eval()
    prompts = {batch: [[7 + n for n in range(9)] for _ in range(batch)] for batch in (1, 8)}

    def run(batch: int, options: dict[str, Any]) -> None:
        sampling = Sampling(max_tokens=tokens, temperature=0)

        def go() -> None:
            complete(model, prompts[batch], sampling, **options)

        start = time.perf_counter()
        go()
        bench.wait()
        first = time.perf_counter() - start
        second = statistics.median(bench.times(go, seconds=2.0, warm=0))
        name = f"batch {batch}, {tokens} tokens{', ' + ', '.join(options) if options else ''}"
        bench.say(name, **{"first ms/token": first / tokens * 1e3, "ms/token": second / tokens * 1e3})

    def theirs(batch: int) -> None:
        import transformers

        usual = {"hidden_size": config.hidden_size, "num_hidden_layers": config.num_hidden_layers}
        usual |= {"num_attention_heads": config.num_attention_heads, "intermediate_size": config.mlp_size}
        usual |= {"num_key_value_heads": config.kv_heads, "vocab_size": config.vocab_size}
        made = transformers.LlamaConfig(**usual, bos_token_id=None, eos_token_id=None, pad_token_id=0)
        with torch.device(bench.device):
            other = transformers.AutoModelForCausalLM.from_config(made).to(torch.bfloat16).eval()
        ids = torch.tensor(prompts[batch], device=bench.device)

        def go() -> None:
            with torch.no_grad():
                other.generate(
                    ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=tokens, use_cache=True
                )

        seconds = statistics.median(bench.times(go, seconds=2.0, warm=1))
        bench.say(f"batch {batch}, {tokens} tokens, transformers", **{"ms/token": seconds / tokens * 1e3})

    ways: list[dict[str, Any]] = [{}]
    if "compile" in inspect.signature(complete).parameters:
        ways.append({"compile": True})
    cases: dict[str, Callable[[], None]] = {}
    for batch in prompts:
        for options in ways:
            cases[f"{batch} {options}"] = lambda batch=batch, options=options: run(batch, options)
        if installed("transformers"):
            cases[f"{batch} transformers"] = lambda batch=batch: theirs(batch)
    bench.cases(cases)


# all ---------------------------------------------------------------------------------------------------------------


def versions(tiny: bool) -> dict[str, Any]:
    from importlib import metadata

    packages = ("torch", "triton", "deepspeed", "transformers", "torchao", "flash-attn-3", "flash-attn")
    found: dict[str, Any] = {"python": platform.python_version()}
    for name in packages:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    if not tiny:
        found |= {"device": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
        found["cudnn"] = torch.backends.cudnn.version()
    command = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
    commit = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return found | {"commit": commit or None, "date": time.strftime("%Y-%m-%d %H:%M")}


def run_section(name: str, seconds: float, tiny: bool, results: Path) -> None:
    """One section in this process."""
    bench = Bench(name, seconds, tiny, results)
    try:
        globals()[name](bench)
    except Exception as error:  # a section must not end the others
        traceback.print_exc(limit=3)
        bench.say(name, failed=f"{type(error).__name__}: {error}"[:300])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=list(SECTIONS), default=list(SECTIONS))
    parser.add_argument("--minutes", type=float, default=8.7, help="for all sections together; start-up included")
    parser.add_argument("--tiny", action="store_true", help="every branch in small on the CPU, not compiled")
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "gpu.json", help="JSON with the results")
    parser.add_argument("--section", choices=list(SECTIONS), help=argparse.SUPPRESS)  # in a process of its own
    parser.add_argument("--seconds", type=float, default=math.inf, help=argparse.SUPPRESS)
    parser.add_argument("--results", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if not arguments.tiny and not torch.cuda.is_available():
        print("torch sees no CUDA device here; --tiny runs every branch on the CPU", file=sys.stderr)
        return 2
    if arguments.section:
        run_section(arguments.section, arguments.seconds, arguments.tiny, arguments.results)
        return 0
    start = time.monotonic()
    found = versions(arguments.tiny)
    print(json.dumps(found), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results.jsonl"
        results.touch()
        if arguments.tiny:
            torch.compiler.set_stance("force_eager")  # compiling takes minutes on a CPU, and is not what is tested
        share = sum(SECTIONS[name] for name in arguments.only)
        for place, name in enumerate(arguments.only):
            left = arguments.minutes * 60 - (time.monotonic() - start)
            later = sum(SECTIONS[other] for other in arguments.only[place:])
            seconds = left * SECTIONS[name] / later if share else 0.0
            print(f"\n{name} ({seconds:.0f} s)", flush=True)
            if arguments.tiny:
                run_section(name, seconds, True, results)
            else:
                run_apart(name, seconds, results)
        lines = [json.loads(line) for line in results.read_text().splitlines()]
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps({"versions": found, "results": lines}, indent=1) + "\n")
    failed = sum("failed" in line for line in lines)
    print(f"\n{time.monotonic() - start:.0f} s, {len(lines)} lines, {failed} failed; kept in {arguments.output}")
    return 0


def run_apart(name: str, seconds: float, results: Path) -> None:
    """One section in a process of its own, which is ended when its time is over."""
    command = [sys.executable, __file__, "--section", name, "--seconds", str(seconds * 0.9), "--results", str(results)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    try:
        code = subprocess.run(command, timeout=seconds, check=False, env=environment).returncode
        problem = f"the process ended with {code}" if code else None
    except subprocess.TimeoutExpired:
        problem = f"its {seconds:.0f} s were over"
    if problem:
        print(f"  {name}: {problem}", flush=True)
        with results.open("a") as file:
            file.write(json.dumps({"section": name, "name": name, "failed": problem}) + "\n")


if __name__ == "__main__":
    assert _clone
    sys.exit(main())
