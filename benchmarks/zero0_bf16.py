"""Why DeepSpeed's own ZeRO-0 in bf16 trains differently from ZeRO-1, and that Ingot's does not.

    python benchmarks/zero0_bf16.py

One process, a small model, the same data. Prints, after construction and before any step, Adam's step count and how far
the weights have moved, and then the losses of native DeepSpeed at stages 0 and 1 and of Ingot's engine at stage 0.
"""

import logging

import _clone  # noqa: F401
import torch

from ingot.parallel import mesh as meshes
from ingot.parallel.optimizer import adamw, matrices, parameter_groups
from tests.parallel.toy import GLOBAL, LENGTH, MICRO, VOCABULARY, Toy, build

STEPS, LEARNING_RATE = 8, 1e-2


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    inputs = torch.randint(0, VOCABULARY, (GLOBAL, LENGTH), generator=torch.Generator().manual_seed(step))
    return inputs, (inputs * 7 + 3) % VOCABULARY


def native(stage: int) -> tuple[float, float, list[float]]:
    """DeepSpeed in a plain script: Adam's step count and the weights' relative change at the start; the losses."""
    import deepspeed
    from deepspeed.utils import logger

    logger.setLevel(logging.ERROR)
    torch.manual_seed(0)
    module = Toy()
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    optimizer = adamw(
        parameter_groups(module, 0.1, matrices(module)), learning_rate=LEARNING_RATE, betas=(0.9, 0.95), eps=1e-8
    )
    config = {
        "train_batch_size": GLOBAL,
        "train_micro_batch_size_per_gpu": MICRO,
        "bf16": {"enabled": True},
        "zero_optimization": {"stage": stage},
        "gradient_clipping": 1.0,
    }
    engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=config, dist_init_required=False)
    count = max((float(state["step"]) for state in optimizer.state.values()), default=0.0)
    masters = {p.shape: p for group in optimizer.param_groups for p in group["params"]}
    moved = 0.0
    for initial in before.values():
        master = masters.get(
            initial.shape
        )  # ZeRO-1 keeps its masters flat; nothing steps on them before the first step
        if initial.ndim == 2 and master is not None:
            moved = max(moved, float((master - initial.bfloat16()).detach().norm() / initial.norm()))
    losses = []
    for step in range(STEPS):
        inputs, labels = batch(step)
        total = 0.0
        for start in range(0, GLOBAL, MICRO):
            loss = engine(inputs[start : start + MICRO], labels[start : start + MICRO]) / (MICRO * LENGTH)
            engine.backward(loss)
            engine.step()
            total += float(loss.detach()) * MICRO / GLOBAL
        losses.append(total)
    return count, moved, losses


def ours(mesh: meshes.Mesh) -> list[float]:
    engine = build("zero-0", mesh, "bf16")
    losses = []
    for step in range(STEPS):
        inputs, labels = batch(step)
        total = 0.0
        for start in range(0, GLOBAL, MICRO):
            rows = slice(start, start + MICRO)
            micro = {"input_ids": inputs[rows], "labels": labels[rows]}
            total += float(engine.forward_backward(micro, labels.numel(), start + MICRO == GLOBAL))
        engine.step(LEARNING_RATE)
        losses.append(total / labels.numel())
    return losses


def main() -> None:
    mesh = meshes.start("cpu")
    stage_0, stage_1 = native(0), native(1)
    print("Before the first step             Adam's count   matrices moved by")
    for name, (count, moved, _) in (("DeepSpeed, ZeRO-0", stage_0), ("DeepSpeed, ZeRO-1", stage_1)):
        print(f"{name:<34}{count:>12.0f}{moved:>19.1e}")
    print("\nstep   DeepSpeed ZeRO-1   DeepSpeed ZeRO-0   Ingot ZeRO-0")
    for step, losses in enumerate(zip(stage_1[2], stage_0[2], ours(mesh), strict=True), start=1):
        print(f"{step:>4}" + "".join(f"{loss:>19.6f}" for loss in losses))
    meshes.stop()


if __name__ == "__main__":
    main()
