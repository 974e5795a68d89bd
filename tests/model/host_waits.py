"""Prints, as JSON, what each kind of training step asks a GPU for: `python -m tests.model.host_waits LIBRARY`.

A step is a forward and a backward of fake CUDA tensors (tests/fake_cuda.py). Nothing is patched but the questions
whether the device has flash attention and a compiler.
"""

import json
import sys

from tests import fake_cuda

if __name__ == "__main__":
    fake_cuda.load(sys.argv[1])

import torch
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from ingot.model import fused_cross_entropy, loss
from ingot.model.attention import varlen
from ingot.model.config import ModelConfig
from ingot.model.transformer import LanguageModel

SIZES = {"vocab_size": 1003, "num_hidden_layers": 3, "num_attention_heads": 2, "hidden_size": 128}
BERT = {"causal": False, "norm_placement": "post", "embedding_norm": True, "head_transform": True, "head_bias": True}
MODERN = {"causal": False, "positions": "rotary", "layer_pattern": "GLL", "sliding_window": 64, "bias": False}
GROUPED = {"positions": "rotary", "norm": "rmsnorm", "gated_mlp": True, "num_key_value_heads": 1, "bias": False}
KINDS = {"gpt": {}, "bert": BERT, "modernbert": MODERN, "llama": GROUPED}

WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "_unique2"}


class Watcher(TorchDispatchMode):
    """Names of the operators that ran, and of those for which the host waits for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.waits: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        self.names.add(name)
        if name in WAITS:
            self.waits.append(name)
        result = function(*args, **(kwargs or {}))
        if name in ("_to_copy", "copy_") and result.device.type == "cpu":
            self.waits += [f"{name} to the host" for x in args if torch.is_tensor(x) and x.device.type == "cuda"]
        return result


def step(kind: str, with_rows: bool) -> dict:
    with FakeTensorMode(), Watcher() as watcher:
        torch.set_default_dtype(torch.bfloat16)
        with torch.device("cuda"):
            model = LanguageModel(ModelConfig(**SIZES, **KINDS[kind])).train()
        torch.set_default_dtype(torch.float32)
        ids, labels = (torch.zeros(4, 256, dtype=torch.long, device="cuda") for _ in range(2))
        inputs = {
            "cu_seqlens": torch.zeros(12, dtype=torch.int32, device="cuda"),
            "positions_BT": torch.zeros(4, 256, dtype=torch.long, device="cuda"),
        }
        if with_rows:
            inputs["target_rows"] = torch.zeros(150, dtype=torch.long, device="cuda")
        watcher.names.clear()
        watcher.waits.clear()
        failure = None
        try:
            model(ids, labels_BT=labels, **inputs).backward()
        except RuntimeError as error:  # what a fake tensor cannot tell the host
            failure = f"{type(error).__name__}: {error}"
        gradients = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
        missing = sorted({name for name, _ in model.named_parameters()} - gradients)
        return {"waits": watcher.waits, "names": sorted(watcher.names), "failure": failure, "missing": missing}


def main() -> None:
    varlen._capability = lambda device: (9, 0)
    torch.backends.cuda.is_flash_attention_available = lambda: True
    loss.fuses = lambda device: True
    fused_cross_entropy._compiled = lambda function: function
    print(json.dumps({f"{kind} {rows}": step(kind, rows) for kind in KINDS for rows in (True, False)}))


if __name__ == "__main__":
    main()
