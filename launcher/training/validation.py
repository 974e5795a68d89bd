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

Forward = Callable[[Batch], torch.Tensor]
"""From the model's arguments for a micro-batch to the sum of its losses over the targets (nats)."""


def validation_scores(engine: Engine, readers: list[Reader], *, max_samples: int, causal: bool) -> dict:
    """The scores of the validation corpora together, over all ranks; see `scores_of_losses`. Each rank must call it.

    Args:
        readers: one for each corpus, which does not shuffle.
        max_samples: the most sequences to read of each corpus; 0 means all.
        causal: whether each token is a target, so that bits per byte are defined.
    """
    loss_sum, num_targets, num_tokens = sum_losses_of_corpora(engine.forward, readers, max_samples, engine.mesh.device)
    dist.all_reduce(loss_sum, group=engine.mesh.data_group)
    counts = [count * (engine.mesh.tensor_rank == 0) for count in (num_targets, *num_tokens)]
    num_targets, *num_tokens = sum_over_ranks(counts)
    return scores_of_losses(float(loss_sum), num_targets, num_tokens, [reader.corpora[0] for reader in readers], causal)


def sum_losses_of_corpora(
    forward: Forward, readers: list[Reader], max_samples: int, device: torch.device
) -> tuple[torch.Tensor, int, list[int]]:
    """On this rank: the summed loss (nats, fp64, on the device), the number of targets, the tokens of each corpus."""
    loss_sum, num_targets, num_tokens = torch.zeros((), dtype=torch.float64, device=device), 0, [0] * len(readers)
    for index, reader in enumerate(readers):
        stop = min(reader.num_instances, max_samples) if max_samples else reader.num_instances
        for batch in reader.steps(0, stop=stop):
            loss, targets = sum_losses(forward, batch.micro_batches, device)
            loss_sum += loss
            num_targets += targets
            num_tokens[index] += batch.num_tokens
    return loss_sum, num_targets, num_tokens


def sum_losses(
    forward: Forward, micro_batches: Iterable[dict[str, np.ndarray]], device: torch.device
) -> tuple[torch.Tensor, int]:
    """The summed loss of micro-batches (nats, fp64, on the device), and their number of targets."""
    loss_sum, num_targets = torch.zeros((), dtype=torch.float64, device=device), 0
    for micro in micro_batches:
        inputs = to_device(micro, device)
        inputs.pop(
            "pair_labels_B", None
        )  # the unigram entropy is comparable with the loss of the tokens, without that of the pairs
        loss_sum += forward(inputs)
        num_targets += int((micro["labels"] != IGNORE_INDEX).sum())
    return loss_sum, num_targets


def scores_of_losses(
    loss_sum: float, num_targets: int, num_tokens: list[int], corpora: list[Corpus], causal: bool
) -> dict[str, float]:
    """Loss and perplexity, and figures to compare them with.

    Args:
        loss_sum: in nats, over all targets.
        num_tokens: the tokens read from each corpus.

    Returns:
        loss (nats per target); perplexity; unigram_entropy (nats per token of the same splits: the loss of a model that
        knows only the frequency of each token); if causal and the corpora say how many bytes of text they hold,
        bits_per_byte.
    """
    total = max(1, sum(num_tokens))
    loss = loss_sum / max(1, num_targets)
    scores = {
        "loss": loss,
        "perplexity": perplexity(loss),
        "unigram_entropy": sum(n * corpus.unigram_entropy for n, corpus in zip(num_tokens, corpora, strict=True))
        / total,
    }
    if causal and all(corpus.text_bytes and corpus.num_tokens for corpus in corpora):  # 0 bytes: not known
        bytes_per_token = sum(n * c.text_bytes / c.num_tokens for n, c in zip(num_tokens, corpora, strict=True)) / total
        scores["bits_per_byte"] = loss / math.log(2) / bytes_per_token
    return scores


def perplexity(loss: float) -> float:
    """e^loss; the loss counts as at most 700, so that the result is a finite number."""
    return math.exp(min(loss, 700.0))
