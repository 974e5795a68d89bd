"""Scores of validation."""

import json
import math
import shutil

import pytest

from ingot.data.corpus.shards import Corpus
from ingot.launcher.training.validation import scores_of_losses


def test_bits_per_byte_needs_the_bytes_of_the_text(corpus, tmp_path):
    opened = Corpus.open(corpus, "train")
    scores = scores_of_losses(200.0, 100, [100], [opened], causal=True)
    bits = 2 / math.log(2) * opened.num_tokens / opened.text_bytes
    assert scores["bits_per_byte"] == pytest.approx(bits)

    shutil.copytree(corpus, tmp_path / "corpus")
    manifest = json.loads((corpus / "manifest.json").read_text())
    manifest["splits"]["train"]["text_bytes"] = 0  # it is not known, as of image tokens
    (tmp_path / "corpus/manifest.json").write_text(json.dumps(manifest))
    unknown = Corpus.open(tmp_path / "corpus", "train")
    for corpora in ([unknown], [opened, unknown]):
        scores = scores_of_losses(200.0, 100, [50] * len(corpora), corpora, causal=True)
        assert scores["loss"] == 2
        assert "bits_per_byte" not in scores
