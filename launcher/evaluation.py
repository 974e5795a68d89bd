"""The validation loss of a language model: a sum over all targets, divided by their number."""

import math

import torch
import torch.distributed as dist

from data.objectives import IGNORE_INDEX
from data.reader import Reader
from launcher.trainer import to_device
from parallel.engine import Engine
from parallel.mesh import sum_over_ranks


def validation_scores(engine: Engine, readers: list[Reader], *, max_samples: int, causal: bool) -> dict:
    """Loss, perplexity, and what they can be held against, over the validation corpora together. Each rank calls it.

    Args:
        readers: one for each corpus, in the corpus's own order.
        max_samples: sequences to read of each corpus; 0 for all.
        causal: whether each token is a target, so that bits per byte mean something.

    Returns:
        loss (nats per target), perplexity, unigram_entropy (nats per token of the same splits: the loss of a model that
        knows no more than how frequent each token is there), and, if causal, bits_per_byte.
    """
    loss_sum = torch.zeros((), dtype=torch.float64, device=engine.mesh.device)
    num_targets, num_tokens = 0, [0] * len(readers)
    for index, reader in enumerate(readers):
        stop = min(reader.num_instances, max_samples) if max_samples else reader.num_instances
        for batch in reader.steps(0, stop=stop):
            for micro in batch.micro_batches:
                inputs = to_device(micro, engine.mesh.device)
                inputs.pop("pair_labels_B", None)  # the loss of the tokens alone is what the entropy compares with
                loss_sum += engine.forward(inputs)
                num_targets += int((micro["labels"] != IGNORE_INDEX).sum())
            num_tokens[index] += batch.num_tokens
    dist.all_reduce(loss_sum)
    num_targets, *num_tokens = sum_over_ranks([num_targets, *num_tokens])
    corpora = [reader.corpora[0] for reader in readers]
    total = max(1, sum(num_tokens))
    loss = float(loss_sum) / max(1, num_targets)
    scores = {
        "loss": loss,
        "perplexity": math.exp(min(loss, 700.0)),
        "unigram_entropy": sum(n * corpus.unigram_entropy for n, corpus in zip(num_tokens, corpora, strict=True))
        / total,
    }
    if causal:
        bytes_per_token = sum(n * c.text_bytes / c.num_tokens for n, c in zip(num_tokens, corpora, strict=True)) / total
        scores["bits_per_byte"] = loss / math.log(2) / bytes_per_token
    return scores
