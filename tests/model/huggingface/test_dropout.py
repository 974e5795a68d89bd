"""Dropout is at the same places as in transformers and as strong: over many draws the outputs of both models have the
same mean and spread, although packed documents and padded rows draw differently."""

import pytest
import torch

from ingot.model.huggingface.load import load

transformers = pytest.importorskip("transformers")
LENGTHS, DRAWS, AT_ONCE = (5, 9, 9, 12, 20), 600, 60


@pytest.mark.parametrize("places", ["hidden", "attention"])
def test_dropout_is_as_strong_as_theirs(places, tmp_path):
    hidden, weights = (0.3, 0.0) if places == "hidden" else (0.0, 0.5)
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_labels=3,
        max_position_embeddings=32, hidden_dropout_prob=hidden, attention_probs_dropout_prob=weights,
        initializer_range=0.3,
    )  # fmt: skip
    transformers.BertForSequenceClassification(config).save_pretrained(tmp_path)
    theirs = transformers.BertForSequenceClassification.from_pretrained(tmp_path).train()
    ours = load(tmp_path, "sequence").train()
    rows = [torch.randint(5, 50, (length,)) for length in LENGTHS]
    padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    cu_seqlens = torch.tensor([0, *LENGTHS * AT_ONCE]).cumsum(0, dtype=torch.int32)
    packed, padded, mask = torch.cat(rows).repeat(AT_ONCE, 1), padded.repeat(AT_ONCE, 1), mask.repeat(AT_ONCE, 1)
    with torch.no_grad():
        mine = torch.cat([ours(packed, cu_seqlens=cu_seqlens) for _ in range(DRAWS // AT_ONCE)])
        other = torch.cat([theirs(padded, attention_mask=mask).logits for _ in range(DRAWS // AT_ONCE)])
    mine, other = (logits.view(DRAWS, len(LENGTHS), -1) for logits in (mine, other))
    mean_SC, spread_SC = other.mean(0), other.std(0)
    assert spread_SC.min() > 0.02
    error_SC = spread_SC * (2 / DRAWS) ** 0.5  # standard error of a difference of two means
    assert ((mine.mean(0) - mean_SC) / error_SC).abs().max() < 4.5
    assert (mine.std(0).mean() / spread_SC.mean() - 1).abs() < 0.08
