"""Methods of fine-tuning: which parameters learn, how fast, and what is added to the model.

Added modules wrap one of the model's own, whose parameters then have `.base_layer` in their names; what is added has
first values that change nothing or follow from the seed.
"""

import math
import re
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from ingot.data.tasks.examples import with_prompts
from ingot.data.tasks.tasks import TaskData
from ingot.data.tokenizers.tokenizer import Template
from ingot.launcher.config.finetune import PROMPTS, Method
from ingot.model.config import ModelConfig
from ingot.model.finetuning.adalora import add_adalora
from ingot.model.finetuning.adapters import add_adapters
from ingot.model.finetuning.soft_prompts import add_prompts
from ingot.model.initialization import named_generator
from ingot.model.transformer import Transformer

KNOWN = ("query", "key", "value", "output", "up", "gate", "down")
TARGETS = {"lora": ["query", "value"], "adalora": list(KNOWN), "ia3": ["key", "value", "down"]}
"""Modules that are changed where nothing else is said, of those that a model has."""


def apply(method: Method, model: Transformer, has_head: bool) -> None:
    """Adds what the method adds to a model on the meta device, and freezes what does not learn.

    Args:
        has_head: whether the model has a head of the task, which then learns with every method.

    Raises:
        ValueError: targets that the model does not have, or a head alone where there is none.
    """
    if method.kind == "full":
        return
    if method.kind == "head" and not has_head:
        raise ValueError("method.kind head needs a task with a head; generation has none")
    model.requires_grad_(False)
    if method.kind in TARGETS:
        _inject(method, model)
    elif method.kind == "adapters":
        add_adapters(model, method.r)
    elif method.kind in PROMPTS:
        add_prompts(model, method.kind, method.num_virtual_tokens)
    for name, parameter in model.named_parameters():
        if is_added(name) or (has_head and name.startswith("head.")):
            parameter.requires_grad_(True)


def _inject(method: Method, model: Transformer) -> None:
    from peft import IA3Config, LoraConfig, inject_adapter_in_model

    present = {name.rsplit(".", 1)[-1] for name, _ in model.blocks.named_modules()} & set(KNOWN)
    targets = method.target_modules or [target for target in TARGETS[method.kind] if target in present]
    if unknown := sorted(set(targets) - present):
        raise ValueError(f"method.target_modules has {', '.join(unknown)}; this model has {', '.join(sorted(present))}")
    pattern = rf"blocks\..*\.({'|'.join(targets)})"
    if method.kind == "adalora":
        add_adalora(model, method.init_r, method.lora_alpha, method.lora_dropout, pattern)
        return
    if method.kind == "lora":
        settings = LoraConfig(
            r=method.r, lora_alpha=method.lora_alpha, lora_dropout=method.lora_dropout, target_modules=pattern
        )
    else:
        inner = [target for target in targets if target in ("down", "output")]  # whose inputs are scaled
        settings = IA3Config(
            target_modules=pattern, feedforward_modules=rf"blocks\..*\.({'|'.join(inner)})" if inner else []
        )
    inject_adapter_in_model(settings, model)


def with_learned_tokens(method: Method, data: TaskData, model: ModelConfig, template: Template) -> TaskData:
    """The examples with the tokens that the method learns: first where a model reads from left to right, else behind
    the token that stands for the whole."""
    if method.kind not in PROMPTS:
        return data
    at = 0 if model.causal else len(template.before)
    return replace(data, examples=[with_prompts(example, method.num_virtual_tokens, at) for example in data.examples])


def is_added(name: str) -> bool:
    """Whether a parameter is one that a method adds."""
    return any(part.startswith(("lora_", "ia3_", "adapter_", "prompt_")) for part in name.split("."))


def plain_name(name: str) -> str:
    """The name that a wrapped parameter has in the model itself."""
    return name.replace(".base_layer", "")


def first_values(name: str, shape: tuple[int, ...], seed: int) -> Tensor:
    """The whole first value of an added parameter: LoRA's B, AdaLoRA's singular values, the up-projections of adapters
    and biases are 0, IA3's vectors 1, LoRA's A as in peft uniform within 1 / sqrt(inputs), AdaLoRA's A and B,
    down-projections and learned tokens normal with 0.02, the layers of their encoder as LoRA's A."""
    if "ia3_" in name:
        return torch.ones(shape)
    if name.endswith(("lora_B.default.weight", "lora_E.default", "bias")) or "adapter_up" in name:
        return torch.zeros(shape)
    generator = named_generator(seed, name)
    if name.endswith("lora_A.default.weight") or "mlp_head" in name:
        bound = 1 / math.sqrt(shape[1])
        return torch.empty(shape).uniform_(-bound, bound, generator=generator)
    return torch.empty(shape).normal_(0.0, 0.02, generator=generator)


def pace(method: Method, num_hidden_layers: int) -> Callable[[str], tuple[float, int]]:
    """Of a parameter's name the factor of its learning rate and the first step at which it learns.

    The head and the final norm stand above all layers, the embedding below them: with layer decay d and L layers, layer
    l, from 0, learns with d^(L - l), the embedding with d^(L + 1). With unfreezing every n steps they begin n (L - l)
    and n (L + 1) steps later.
    """

    def pace_of(name: str) -> tuple[float, int]:
        layer = re.match(r"blocks\.(\d+)\.", name)
        below = (
            num_hidden_layers - int(layer[1])
            if layer
            else num_hidden_layers + 1
            if name.startswith("embedding.")
            else 0
        )
        return method.layer_decay**below, 1 + method.unfreeze_steps * below

    return pace_of
