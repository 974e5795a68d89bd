"""Generation, with and without compilation, beside transformers."""

import inspect
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from gpu_sections.bench import Bench, installed
from gpu_sections.models import shape_of


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
