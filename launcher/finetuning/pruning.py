"""Pruning during training: the least important values become 0.

Of matrices these are the smallest weights (Zhu and Gupta 2017, arXiv 1710.01878). Of AdaLoRA these are the singular
values, over all layers, to which the loss is least sensitive (Zhang et al. 2023, arXiv 2303.10512).

The share of zeros follows the cubic schedule of Zhu and Gupta. Each time, the values to prune are chosen again from the
weights and Adam's moments, so pruning has no state of its own. A pruned weight may grow again until the next time; the
last pruning is after the last step.
"""

from collections.abc import Callable

import torch
import torch.distributed as dist

from ingot.launcher.training.callbacks.callback import Callback
from ingot.parallel.engines.engine import Engine
from ingot.parallel.tensor_shards import TensorShard, parameter_of

BISECTIONS = 40  # of the interval of a threshold; then it is narrower than fp32 can resolve
SECOND_MOMENTS = "optimizer/exp_avg_sq/"  # the start of the names of Adam's means of squared gradients
SINGULAR_VALUES = ".lora_E."  # in the names of AdaLoRA's singular values; its matrices have .lora_A. or .lora_B.


def sparsity_at(step: int, *, final: float, begin: int, end: int) -> float:
    """The share of zeros after a step: 0 until step `begin`, `final` from step `end` on (Zhu and Gupta, equation 1)."""
    done = min(1.0, max(0.0, (step - begin) / max(1, end - begin)))
    return final * (1 - (1 - done) ** 3)


ShardAndMoments = tuple[TensorShard, torch.Tensor]
"""A shard of a parameter, and Adam's means of its squared gradients."""
Importance = Callable[[TensorShard, torch.Tensor], torch.Tensor]
"""From these two to the importance of each value of the shard."""
Group = list[tuple[torch.Tensor, torch.Tensor]]
"""Tensors, each with the importance of its values."""


class Pruner(Callback):
    """Prunes the parameters of an engine after optimizer steps.

    Args:
        group_of: from a shard to the name of its group. A group has one threshold. None: the shard is not pruned.
        importance: from all shards of the rank to the function that computes the importance of one of them. It is
            called on every rank, so it may call collectives.
        final: share of zeros at the end.
        begin, end: the steps between which the share grows.
        every: steps between two prunings.
        last: the last step of the run; after it the parameters are pruned once more.
    """

    def __init__(
        self,
        engine: Engine,
        group_of: Callable[[TensorShard], str | None],
        *,
        importance: Callable[[list[ShardAndMoments]], Importance],
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
        """Prunes after a step, if the schedule says so. Each rank must call it. Returns the share of zeros, or None."""
        if step < self.begin or (step % self.every and step not in (self.end, self.last)):
            return None
        share = sparsity_at(step, final=self.final, begin=self.begin, end=self.end)
        if share <= 0:
            return None
        groups = self._groups()
        names = self._names(groups)
        thresholds = self._thresholds(names, groups, share)
        with torch.no_grad():
            for name, threshold in zip(names, thresholds.tolist(), strict=True):
                for tensor, importance in groups.get(name, ()):
                    tensor.masked_fill_(importance <= threshold, 0.0)
        self.engine.sync_from_shards(step)
        return share

    def _groups(self) -> dict[str, Group]:
        """For each group, this rank's tensors with the importance of their values."""
        shards = {shard.key: shard for shard in self.engine.shards()}
        shards_and_moments = [
            (shard, shards[SECOND_MOMENTS + parameter_of(shard.name), *shard.key[1:]].tensor)
            for shard in shards.values()
            if shard.name.startswith("model/")
        ]
        importance = self.importance(shards_and_moments)
        groups: dict[str, Group] = {}
        for shard, moments in shards_and_moments:
            group = self.group_of(shard)
            if group is not None:
                groups.setdefault(group, []).append((shard.tensor, importance(shard, moments)))
        return groups

    def _names(self, groups: dict[str, Group]) -> list[str]:
        """The names of the groups of all ranks."""
        by_rank: list = [None] * dist.get_world_size()
        dist.all_gather_object(by_rank, sorted(groups))
        return sorted({name for names in by_rank for name in names})

    def _thresholds(self, names: list[str], groups: dict[str, Group], share: float) -> torch.Tensor:
        """For each group, the importance that `share` of its values do not exceed, by bisection.

        Ranks that hold copies of the same shard each count it, which does not change the share.
        """
        by_group = [[importance.flatten() for _, importance in groups.get(name, ())] for name in names]
        flat = [torch.cat(parts) if parts else torch.zeros(0) for parts in by_group]
        sizes = torch.tensor([values.numel() for values in flat], dtype=torch.float64)
        high = torch.tensor([float(values.max()) if values.numel() else 0.0 for values in flat], dtype=torch.float64)
        dist.all_reduce(sizes)
        dist.all_reduce(high, op=dist.ReduceOp.MAX)
        low = torch.full_like(high, -1e-12)
        targets = share * sizes - 1e-6  # a rounding error must not prune one value more
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            counts = torch.tensor(
                [int((values <= bound).sum()) for values, bound in zip(flat, middle.tolist(), strict=True)],
                dtype=torch.float64,
            )
            dist.all_reduce(counts)
            reached = counts >= targets
            high, low = torch.where(reached, middle, high), torch.where(reached, low, middle)
        return high


def magnitude(shards: list[ShardAndMoments]) -> Importance:
    """The absolute value."""
    return lambda shard, moments: shard.tensor.detach().abs()


def sensitivity(shards: list[ShardAndMoments]) -> Importance:
    """|value x gradient|: how much the loss changes, to first order, if the value becomes 0 (AdaLoRA, arXiv 2303.10512,
    section 3.2).

    For the gradient it takes the root of Adam's mean of squared gradients, which is already saved in checkpoints and
    sharded like the parameters.
    """
    return lambda shard, moments: shard.tensor.detach().abs() * moments.to(shard.tensor.device).sqrt()


def triplets(shards: list[ShardAndMoments]) -> Importance:
    """The importance of AdaLoRA's triplets (section 3.3): the sensitivity of a singular value, plus the mean
    sensitivity of its row of A and of its column of B. Each rank must call it."""
    sensitivity_of = sensitivity(shards)
    sums: dict[str, torch.Tensor] = {}  # by the name of the singular values: (A or B, sum and count, rank R)
    for shard, moments in shards:
        for index, (matrix, dim_R) in enumerate(((".lora_A.", 0), (".lora_B.", 1))):
            if matrix in shard.name:
                name, rectangle = shard.name.replace(matrix, SINGULAR_VALUES), shard.rectangle
                total = sums.setdefault(name, torch.zeros(2, 2, shard.global_shape[dim_R], dtype=torch.float64))
                begin = rectangle.offset[dim_R]
                part = total[index, :, begin : begin + rectangle.shape[dim_R]]
                part[0] += sensitivity_of(shard, moments).sum(1 - dim_R).cpu()
                part[1] += rectangle.shape[1 - dim_R]
    by_rank: list = [None] * dist.get_world_size()
    dist.all_gather_object(by_rank, sums)

    def importance(shard: TensorShard, moments: torch.Tensor) -> torch.Tensor:
        total = sum(sums[shard.name] for sums in by_rank if shard.name in sums)
        means_R = (total[:, 0] / total[:, 1]).sum(0).to(shard.tensor)
        begin, count = shard.rectangle.offset[0], shard.rectangle.shape[0]
        return sensitivity_of(shard, moments) + means_R[begin : begin + count, None]

    return importance


def each_matrix(shard: TensorShard) -> str | None:
    """A group for each matrix of the blocks. Embeddings, heads, norms and biases are not pruned."""
    name = shard.name
    is_matrix = name.startswith("model/blocks.") and name.endswith(".weight") and len(shard.global_shape) == 2
    return name if is_matrix else None


def singular_values(shard: TensorShard) -> str | None:
    """One group for the singular values of all layers: AdaLoRA distributes one budget of ranks over the layers."""
    return "ranks" if shard.name.startswith("model/") and SINGULAR_VALUES in shard.name else None
