"""Methods of fine-tuning: which parameters learn, how fast, and what is added to the model.

An added module wraps one of the model's own, whose parameters then have `.base_layer` in their names. The initial
values of added parameters leave the model's output as it is, or follow from the seed.
"""

import math
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ingot.data.tasks.examples import insert_virtual_tokens
from ingot.data.tasks.task_data import TaskData
from ingot.data.tokenizers.tokenizer import Template
from ingot.launcher.config.finetune import PROMPT_METHODS, Method
from ingot.model.config import ModelConfig
from ingot.model.finetuning.adalora import add_adalora
from ingot.model.finetuning.adapters import add_adapters
from ingot.model.finetuning.soft_prompts import add_prompts
from ingot.model.initialization import named_generator
from ingot.model.transformer import Transformer

MODULES = ("query", "key", "value", "output", "up", "gate", "down")
TARGETS = {"lora": ["query", "value"], "adalora": list(MODULES), "ia3": ["key", "value", "down"]}
"""The default of method.target_modules; modules that a model lacks are left out."""


def apply(method: Method, model: Transformer, has_head: bool) -> None:
    """Adds what the method adds to a model on the meta device, and freezes what does not learn.

    Args:
        has_head: whether the model has a head of the task, which then learns with every method.

    Raises:
        ValueError: target modules that the model lacks, or a linear probe without a head.
    """
    if method.kind == "full":
        return
    if method.kind == "linear_probe" and not has_head:
        raise ValueError(
            "method.kind linear_probe trains the head of the task, and a language model has none; use lora"
        )
    model.requires_grad_(False)
    if method.kind in TARGETS:
        _inject(method, model)
    elif method.kind == "adapters":
        add_adapters(model, method.r)
    elif method.kind in PROMPT_METHODS:
        add_prompts(model, method.kind, method.num_virtual_tokens)
    for name, parameter in model.named_parameters():
        if is_added(name) or (has_head and name.startswith("head.")):
            parameter.requires_grad_(True)


def _inject(method: Method, model: Transformer) -> None:
    from peft import IA3Config, LoraConfig, inject_adapter_in_model

    present = {name.rsplit(".", 1)[-1] for name, _ in model.blocks.named_modules()} & set(MODULES)
    targets = method.target_modules or [target for target in TARGETS[method.kind] if target in present]
    if unknown := sorted(set(targets) - present):
        raise ValueError(f"method.target_modules has {', '.join(unknown)}; this model has {', '.join(sorted(present))}")
    pattern = rf"blocks\..*\.({'|'.join(targets)})"
    if method.kind == "adalora":
        add_adalora(model, method.init_r, method.lora_alpha, method.lora_dropout, pattern)
        return
    if method.kind == "lora":
        alpha: Any = method.lora_alpha  # peft computes alpha / r: a float does as well as the int that it declares
        lora = LoraConfig(r=method.r, lora_alpha=alpha, lora_dropout=method.lora_dropout, target_modules=pattern)
        inject_adapter_in_model(lora, model)
        return
    inner = [target for target in targets if target in ("down", "output")]  # whose inputs are scaled
    scaled: str | list[str] = rf"blocks\..*\.({'|'.join(inner)})" if inner else []
    inject_adapter_in_model(IA3Config(target_modules=pattern, feedforward_modules=scaled), model)


def with_virtual_tokens(method: Method, data: TaskData, model: ModelConfig, template: Template) -> TaskData:
    """The examples with the virtual tokens that the method learns: first if the model is causal, otherwise after the
    token that opens the text."""
    if method.kind not in PROMPT_METHODS:
        return data
    position, count = 0 if model.causal else len(template.before), method.num_virtual_tokens
    return replace(data, examples=[insert_virtual_tokens(example, count, position) for example in data.examples])


def is_added(name: str) -> bool:
    """Whether a parameter is added by a method."""
    return any(part.startswith(("lora_", "ia3_", "adapter_", "prompt_")) for part in name.split("."))


def plain_name(name: str) -> str:
    """The name of a wrapped parameter in the model without additions."""
    return name.replace(".base_layer", "")


def initial_value(name: str, shape: tuple[int, ...], seed: int) -> Tensor:
    """The initial value of an added parameter.

    0: LoRA's B, AdaLoRA's singular values, the up-projections of adapters, and biases. 1: IA3's vectors. Uniform within
    1 / sqrt(inputs), as in peft: LoRA's A, and the layers of the encoder of virtual tokens. Normal with standard
    deviation 0.02: AdaLoRA's A and B, down-projections, and virtual tokens.
    """
    if "ia3_" in name:
        return torch.ones(shape)
    if name.endswith(("lora_B.default.weight", "lora_E.default", "bias")) or "adapter_up" in name:
        return torch.zeros(shape)
    generator = named_generator(seed, name)
    if name.endswith("lora_A.default.weight") or "mlp_head" in name:
        bound = 1 / math.sqrt(shape[1])
        return torch.empty(shape).uniform_(-bound, bound, generator=generator)
    return torch.empty(shape).normal_(0.0, 0.02, generator=generator)


def layer_schedule(method: Method, num_hidden_layers: int) -> Callable[[str], tuple[float, int]]:
    """For the name of a parameter: the factor of its learning rate, and the first step at which it learns.

    The head and the final norm are above all layers, the embedding is below them. With layer decay d and L layers,
    layer l, counted from 0, has the factor d^(L - l), the embedding d^(L + 1) (Howard and Ruder 2018, arXiv
    1801.06146). With method.unfreeze_steps n they start n (L - l) and n (L + 1) steps later.
    """

    def factor_and_first_step(name: str) -> tuple[float, int]:
        layer = re.match(r"blocks\.(\d+)\.", name)
        below = 0
        if layer:
            below = num_hidden_layers - int(layer[1])
        elif name.startswith("embedding."):
            below = num_hidden_layers + 1
        return method.layer_decay**below, 1 + method.unfreeze_steps * below

    return factor_and_first_step
