"""The loss of a language model over corpora: a sum over all targets, divided by their number."""

import math
from collections.abc import Callable, Iterable

import numpy as np
import torch
import torch.distributed as dist

from ingot.data.corpus.shards import Corpus
from ingot.data.loader.reader import Reader
from ingot.data.sequences.objectives import IGNORE_INDEX
from ingot.launcher.training.inputs import to_device
from ingot.parallel.engines.engine import Batch, Engine
from ingot.parallel.mesh import sum_over_ranks

Forward = Callable[[Batch], torch.Tensor]  # a micro-batch to the sum of its targets' losses


def validation_scores(engine: Engine, readers: list[Reader], *, max_samples: int, causal: bool) -> dict:
    """`scores_of` the validation corpora together, over all ranks. Each rank calls it.

    Args:
        readers: one for each corpus, in the corpus's own order.
        max_samples: sequences to read of each corpus; 0 for all.
        causal: whether each token is a target, so that bits per byte mean something.
    """
    loss_sum, num_targets, num_tokens = corpus_sums(engine.forward, readers, max_samples, engine.mesh.device)
    dist.all_reduce(loss_sum, group=engine.mesh.data_group)
    counts = [count * (engine.mesh.tensor_rank == 0) for count in (num_targets, *num_tokens)]
    num_targets, *num_tokens = sum_over_ranks(counts)
    return scores_of(float(loss_sum), num_targets, num_tokens, [reader.corpora[0] for reader in readers], causal)


def corpus_sums(
    forward: Forward, readers: list[Reader], max_samples: int, device: torch.device
) -> tuple[torch.Tensor, int, list[int]]:
    """This rank's summed loss (fp64, on the device), its number of targets, and its tokens of each corpus."""
    loss_sum, num_targets, num_tokens = torch.zeros((), dtype=torch.float64, device=device), 0, [0] * len(readers)
    for index, reader in enumerate(readers):
        stop = min(reader.num_instances, max_samples) if max_samples else reader.num_instances
        for batch in reader.steps(0, stop=stop):
            loss, targets = sums(forward, batch.micro_batches, device)
            loss_sum += loss
            num_targets += targets
            num_tokens[index] += batch.num_tokens
    return loss_sum, num_targets, num_tokens


def sums(
    forward: Forward, micro_batches: Iterable[dict[str, np.ndarray]], device: torch.device
) -> tuple[torch.Tensor, int]:
    """The summed loss of micro-batches (fp64, on the device), and their number of targets."""
    loss_sum, num_targets = torch.zeros((), dtype=torch.float64, device=device), 0
    for micro in micro_batches:
        inputs = to_device(micro, device)
        inputs.pop("pair_labels_B", None)  # the loss of the tokens alone is what the entropy compares with
        loss_sum += forward(inputs)
        num_targets += int((micro["labels"] != IGNORE_INDEX).sum())
    return loss_sum, num_targets


def scores_of(
    loss_sum: float, num_targets: int, num_tokens: list[int], corpora: list[Corpus], causal: bool
) -> dict[str, float]:
    """Loss, perplexity, and what they can be held against.

    Args:
        loss_sum: nats over all targets.
        num_tokens: tokens read of each corpus.

    Returns:
        loss (nats per target), perplexity, unigram_entropy (nats per token of the same splits: the loss of a model that
        knows no more than how frequent each token is there), and, if causal, bits_per_byte.
    """
    total = max(1, sum(num_tokens))
    loss = loss_sum / max(1, num_targets)
    scores = {
        "loss": loss,
        "perplexity": perplexity(loss),
        "unigram_entropy": sum(n * corpus.unigram_entropy for n, corpus in zip(num_tokens, corpora, strict=True))
        / total,
    }
    if causal:
        bytes_per_token = sum(n * c.text_bytes / c.num_tokens for n, c in zip(num_tokens, corpora, strict=True)) / total
        scores["bits_per_byte"] = loss / math.log(2) / bytes_per_token
    return scores


def perplexity(loss: float) -> float:
    """e^loss, where that is a number."""
    return math.exp(min(loss, 700.0))
