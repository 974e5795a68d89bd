"""One training step (forward, backward, AdamW) of a GPT-2 and of a BERT, compared with `transformers`.

python benchmarks/training_step.py                     # 8 layers, hidden size 512, 8 x 512 tokens, vocabulary 8192,
bf16 python benchmarks/training_step.py --device cuda --layers 12 --width 768 --vocabulary 50257 --length 1024

Each side runs in its own process, as for its users. The processes alternate step by step, so that a slower machine
slows all of them. Ingot: fp32 master weights, rounded to bf16 once in each forward (as its engines do). transformers:
fp32 weights under bf16 autocast (as its Trainer does), with SDPA, eager and with torch.compile. All use the fused
AdamW. It prints the median of the repeats and their range, the FLOP/s of the step, and its fraction of the FLOP/s of
bf16 matrix products on this machine, which alternate with the steps.

The FLOPs are those that a step needs: 6 per token and parameter that it is multiplied with; those of the head only for
target tokens, and of causal attention only the half that is seen. They are the same for all sides.
"""

import argparse
import multiprocessing
import statistics
import time

import _clone  # noqa: F401
import torch

SIDES = ("ingot", "transformers eager", "transformers compiled", "matmul")
MATMUL = (4096, 2048, 2048)


def batch(shape: argparse.Namespace, kind: str, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and labels; for a BERT 15 % of the tokens are targets."""
    generator = torch.Generator().manual_seed(0)
    size = (shape.batch, shape.length)
    ids_BT = torch.randint(0, shape.vocabulary, size, generator=generator)
    labels_BT = ids_BT
    if kind == "bert":
        labels_BT = ids_BT.masked_fill(torch.rand(size, generator=generator) >= 0.15, -100)
    return ids_BT.to(device), labels_BT.to(device)


def model_config(shape: argparse.Namespace, kind: str):
    from ingot.model.config import ModelConfig

    sizes = {
        "vocab_size": shape.vocabulary,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.width // 64,
    }
    sizes |= {"hidden_size": shape.width, "max_position_embeddings": shape.length}
    if kind == "gpt2":
        return ModelConfig(**sizes)
    return ModelConfig(
        **sizes,
        causal=False,
        norm_placement="post",
        norm_eps=1e-12,
        activation="gelu",
        type_vocab_size=2,
        embedding_norm=True,
        head_transform=True,
        head_bias=True,
    )


def ingot(shape: argparse.Namespace, kind: str, device: str):
    from ingot.model.initialization import initialize
    from ingot.model.transformer import LanguageModel
    from ingot.parallel.engines.bf16 import Bf16Compute

    module = LanguageModel(model_config(shape, kind))
    initialize(module, seed=1)
    module.to(device).train()
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-4, fused=True)
    compute, (ids_BT, labels_BT) = Bf16Compute(module), batch(shape, kind, device)
    if kind == "gpt2":  # the data room shifts; the last position has no target
        labels_BT = torch.cat((labels_BT[:, 1:], labels_BT.new_full((shape.batch, 1), -100)), dim=1)
    count = (labels_BT != -100).sum()

    def step() -> None:
        (compute(input_ids_BT=ids_BT, labels_BT=labels_BT) / count).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def theirs(shape: argparse.Namespace, kind: str, device: str, compiled: bool):
    import transformers

    transformers.utils.logging.set_verbosity_error()
    sizes = {"vocab_size": shape.vocabulary, "bos_token_id": 0, "eos_token_id": 0}
    if kind == "gpt2":
        config = transformers.GPT2Config(
            **sizes,
            n_positions=shape.length,
            n_embd=shape.width,
            n_layer=shape.layers,
            n_head=shape.width // 64,
            embd_pdrop=0.0,
            resid_pdrop=0.0,
            attn_pdrop=0.0,
            use_cache=False,
        )
        module = transformers.GPT2LMHeadModel(config)
    else:
        config = transformers.BertConfig(
            **sizes,
            hidden_size=shape.width,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.width // 64,
            intermediate_size=4 * shape.width,
            max_position_embeddings=shape.length,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        module = transformers.BertForMaskedLM(config)
    module.to(device).train()
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-4, fused=True)
    ids_BT, labels_BT = batch(shape, kind, device)
    forward = torch.compile(module) if compiled else module

    def step() -> None:
        with torch.autocast(device, torch.bfloat16):
            loss = forward(input_ids=ids_BT, labels=labels_BT).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def matmul(device: str):
    rows, inner, columns = MATMUL
    a, b = (torch.randn(size, device=device).bfloat16() for size in ((rows, inner), (inner, columns)))
    out = torch.empty(rows, columns, device=device, dtype=torch.bfloat16)

    def step() -> None:
        for _ in range(10):
            torch.mm(a, b, out=out)

    return step


def work(side: str, shape: argparse.Namespace, kind: str, pipe) -> None:
    """A process: one step for each message, answered with its seconds and the process's peak memory."""
    import resource

    torch.set_num_threads(shape.threads)
    if side == "matmul":
        step = matmul(shape.device)
    elif side == "ingot":
        step = ingot(shape, kind, shape.device)
    else:
        step = theirs(shape, kind, shape.device, compiled=side.endswith("compiled"))
    for _ in range(2):
        step()
    pipe.send(None)
    while pipe.recv():
        start = time.perf_counter()
        step()
        if shape.device == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        pipe.send((seconds, torch.cuda.max_memory_allocated() if shape.device == "cuda" else peak))


def step_flops(shape: argparse.Namespace, kind: str) -> float:
    from ingot.model.costs.flops import num_computing_parameters

    config = model_config(shape, kind)
    tokens = shape.batch * shape.length
    _, labels_BT = batch(shape, kind, "cpu")
    targets = int((labels_BT != -100).sum())
    head = config.vocab_size * config.hidden_size + (config.hidden_size**2 if config.head_transform else 0)
    body = num_computing_parameters(config) - head
    seen = shape.length / 2 if kind == "gpt2" else shape.length
    return 6 * body * tokens + 6 * head * targets + 12 * shape.layers * shape.width * seen * tokens


def compare(shape: argparse.Namespace, kind: str) -> None:
    context = multiprocessing.get_context("spawn")
    pipes, processes = {}, []
    for side in SIDES:  # one after another: compiling must not share the cores
        pipes[side], end = context.Pipe()
        process = context.Process(target=work, args=(side, shape, kind, end), daemon=True)
        process.start()
        processes.append(process)
        pipes[side].recv()
    results: dict[str, list[tuple[float, int]]] = {side: [] for side in SIDES}
    for _ in range(shape.repeats):
        for side, pipe in pipes.items():
            pipe.send(True)
            results[side].append(pipe.recv())
    for pipe, process in zip(pipes.values(), processes, strict=True):
        pipe.send(False)
        process.join()

    seconds = {side: [second for second, _ in pairs] for side, pairs in results.items()}
    median = {side: statistics.median(values) for side, values in seconds.items()}
    rate = 10 * 2 * MATMUL[0] * MATMUL[1] * MATMUL[2] / median["matmul"]
    flops, tokens = step_flops(shape, kind), shape.batch * shape.length
    print(f"\n{kind}: {flops / 1e9:,.0f} GFLOP a step; matrix products run at {rate / 1e9:,.0f} GFLOP/s")
    print(f"{'':24}{'s/step':>8}{'range':>16}{'tokens/s':>10}{'of matmul':>10}{'peak MiB':>10}{'ingot is':>12}")
    for side in SIDES[:-1]:
        low, high = min(seconds[side]), max(seconds[side])
        pairs = [a / b for a, b in zip(seconds[side], seconds["ingot"], strict=True)]
        faster = "" if side == "ingot" else f"{statistics.median(pairs):.2f} x as fast"
        print(
            f"{side:24}{median[side]:8.3f}{low:8.3f}-{high:.3f} {tokens / median[side]:10,.0f}"
            f"{flops / median[side] / rate:10.2f}{max(p for _, p in results[side]) / 2**20:10,.0f}  {faster}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", default=["gpt2", "bert"], choices=["gpt2", "bert"])
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--width", type=int, default=512, help="a multiple of 64, the size of a head")
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    shape = parser.parse_args()
    print(f"torch {torch.__version__}, {shape.layers} layers of {shape.width}, {shape.batch} x {shape.length} tokens, ")
    print(f"vocabulary {shape.vocabulary}, {shape.repeats} repeats on {shape.threads} threads of {shape.device}")
    for kind in shape.kinds:
        compare(shape, kind)


if __name__ == "__main__":
    main()
