"""Pruning while training: of matrices the smallest weights become 0 (Zhu and Gupta 2017, arXiv 1710.01878), of AdaLoRA
the singular values of all layers together to which the loss is least sensitive.

The share of zeros grows with the cube of the way that is left. What is small is decided anew each time from the
weights and Adam's moments, so there is no other state: a weight that was 0 may grow again before the next time, and
after the last one, at the end, all zeros stay.
"""

from collections.abc import Callable

import torch
import torch.distributed as dist

from ingot.launcher.training.callbacks.callback import Callback
from ingot.parallel.engines.engine import Engine
from ingot.parallel.tensor_shards import TensorShard, parameter_of

HALVINGS = 40  # of the interval in which a threshold lies: finer than fp32
SQUARES = "optimizer/exp_avg_sq/"  # names of Adam's means of squared gradients begin so
SINGULAR = ".lora_E."  # in the names of AdaLoRA's singular values; in those of its matrices it is lora_A or lora_B


def sparsity_at(step: int, *, final: float, begin: int, end: int) -> float:
    """The share of zeros after a step: 0 until `begin`, `final` from `end` on."""
    done = min(1.0, max(0.0, (step - begin) / max(1, end - begin)))
    return final * (1 - (1 - done) ** 3)


Held = tuple[TensorShard, torch.Tensor]
"""A part of a parameter, and the means of its squared gradients."""
Measure = Callable[[TensorShard, torch.Tensor], torch.Tensor]
"""From these two to the importance of each value of the part."""


class Pruner(Callback):
    """Prunes tensors of an engine.

    Args:
        group_of: of a shard the group of tensors whose smallest values become 0 together, or None for none.
        importance: from the rank's shards of the model, each with the means of its squared gradients, to what says of
            one of them what makes its values small. Each rank calls it.
        final: share of zeros in the end.
        begin, end: steps between which it grows.
        every: steps between two times.
        last: the run's last step, after which it is done once more.
    """

    def __init__(
        self,
        engine: Engine,
        group_of: Callable[[TensorShard], str | None],
        *,
        importance: Callable[[list[Held]], Measure],
        final: float,
        begin: int,
        end: int,
        every: int,
        last: int,
    ):
        self.engine, self.group_of, self.importance, self.final = engine, group_of, importance, final
        self.begin, self.end, self.every, self.last = begin, end, every, last

    def on_step_end(self, step: int) -> None:
        self.prune(step)

    def prune(self, step: int) -> float | None:
        """Prunes after a step, on all ranks, where it is time; the share of zeros, or None."""
        if step < self.begin or (step % self.every and step not in (self.end, self.last)):
            return None
        share = sparsity_at(step, final=self.final, begin=self.begin, end=self.end)
        if share <= 0:
            return None
        parts = self._parts()
        names = self._names(parts)
        thresholds = self._thresholds(names, parts, share)
        with torch.no_grad():
            for name, threshold in zip(names, thresholds.tolist(), strict=True):
                for tensor, important in parts.get(name, ()):
                    tensor.masked_fill_(important <= threshold, 0.0)
        self.engine.sync_from_shards(step)
        return share

    def _parts(self) -> dict[str, list[tuple[torch.Tensor, torch.Tensor]]]:
        """For each group this rank's tensors and the importance of what they hold."""
        shards = {shard.key: shard for shard in self.engine.shards()}
        held = [
            (shard, shards[SQUARES + parameter_of(shard.name), *shard.key[1:]].tensor)
            for shard in shards.values()
            if shard.name.startswith("model/")
        ]
        importance, parts = self.importance(held), {}
        for shard, squares in held:
            group = self.group_of(shard)
            if group is not None:
                parts.setdefault(group, []).append((shard.tensor, importance(shard, squares)))
        return parts

    def _names(self, parts: dict[str, list]) -> list[str]:
        everywhere: list = [None] * dist.get_world_size()
        dist.all_gather_object(everywhere, sorted(parts))
        return sorted({name for each in everywhere for name in each})

    def _thresholds(self, names: list[str], parts: dict[str, list], share: float) -> torch.Tensor:
        """For each group the importance up to which that share of its weights lies, by halving an interval; ranks that
        hold the same parts each count them, which changes no share."""
        held = [[important.flatten() for _, important in parts.get(name, ())] for name in names]
        flat = [torch.cat(each) if each else torch.zeros(0) for each in held]
        sizes = torch.tensor([values.numel() for values in flat], dtype=torch.float64)
        high = torch.tensor([float(values.max()) if values.numel() else 0.0 for values in flat], dtype=torch.float64)
        dist.all_reduce(sizes)
        dist.all_reduce(high, op=dist.ReduceOp.MAX)
        low, wanted = torch.full_like(high, -1e-12), share * sizes - 1e-6  # whole numbers as they are meant
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            counts = torch.tensor(
                [int((values <= bound).sum()) for values, bound in zip(flat, middle.tolist(), strict=True)],
                dtype=torch.float64,
            )
            dist.all_reduce(counts)
            enough = counts >= wanted
            high, low = torch.where(enough, middle, high), torch.where(enough, low, middle)
        return high


def magnitude(held: list[Held]) -> Measure:
    return lambda shard, squares: shard.tensor.detach().abs()


def sensitivity(held: list[Held]) -> Measure:
    """|value x gradient|, how much the loss changes to first order without it (AdaLoRA's, arXiv 2303.10512), with the
    root mean square of the gradients that Adam keeps, which checkpoints hold and layouts share out already."""
    return lambda shard, squares: shard.tensor.detach().abs() * squares.to(shard.tensor.device).sqrt()


def triplets(held: list[Held]) -> Measure:
    """`sensitivity` of singular values, with the means over the row of A and the column of B of each (section 3.3
    there)."""
    alone = sensitivity(held)
    sums: dict[str, torch.Tensor] = {}  # by the name of the singular values: (A or B, sum and number, rank)
    for shard, squares in held:
        for place, (part, ranks) in enumerate(((".lora_A.", 0), (".lora_B.", 1))):
            if part in shard.name:
                name, box = shard.name.replace(part, SINGULAR), shard.rectangle
                both = sums.setdefault(name, torch.zeros(2, 2, shard.global_shape[ranks], dtype=torch.float64))
                both = both[place, :, box.offset[ranks] : box.offset[ranks] + box.shape[ranks]]
                both[0] += alone(shard, squares).sum(1 - ranks).cpu()
                both[1] += box.shape[1 - ranks]
    everywhere: list = [None] * dist.get_world_size()
    dist.all_gather_object(everywhere, sums)

    def together(shard: TensorShard, squares: torch.Tensor) -> torch.Tensor:
        total = sum(each[shard.name] for each in everywhere if shard.name in each)
        means_R = (total[:, 0] / total[:, 1]).sum(0).to(shard.tensor)
        begin, count = shard.rectangle.offset[0], shard.rectangle.shape[0]
        return alone(shard, squares) + means_R[begin : begin + count, None]

    return together


def each_matrix(shard: TensorShard) -> str | None:
    """Each matrix of the blocks by itself; embeddings, heads, norms and biases stay."""
    name = shard.name
    return (
        name if name.startswith("model/blocks.") and name.endswith(".weight") and len(shard.global_shape) == 2 else None
    )


def singular_values(shard: TensorShard) -> str | None:
    """Those of all layers together: which of them are 0 is how AdaLoRA spends its budget of ranks."""
    return "ranks" if shard.name.startswith("model/") and SINGULAR in shard.name else None
