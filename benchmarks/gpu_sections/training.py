"""Training: each model with each way to train it, and each engine, beside transformers."""

import statistics
import types
import typing
from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from gpu_sections.bench import Bench, why_missing
from gpu_sections.models import shape_of
from gpu_sections.packing import boundaries, documents

MICROS = 4


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
