"""Continued pretraining: a released model learns from a corpus with its own tokenizer."""

import json

import pytest
import torch
import yaml

from ingot.launcher import pretrain
from ingot.launcher.config.prepare import PrepareOptions, TokenizerOptions
from ingot.launcher.preparation.prepare import prepare
from ingot.launcher.runtime.exit_codes import BadInput
from ingot.model.huggingface.load import load
from ingot.parallel.checkpoint import read_manifest, read_tensor
from tests.launcher.tiny_models import released_bert


def test_pretraining_continues_from_a_released_model(tmp_path):
    from transformers import BertConfig, BertForMaskedLM

    bert = released_bert(tmp_path / "bert")
    torch.manual_seed(1)
    BertForMaskedLM(BertConfig.from_pretrained(bert)).save_pretrained(bert)
    source = tmp_path / "texts"
    source.mkdir()
    for number in range(40):
        (source / f"{number}.txt").write_text("the film was great and the music was fine\n" * 10)
    tokenizer = TokenizerOptions(path=str(bert))
    prepare(PrepareOptions(input=[str(source)], output=str(tmp_path / "corpus"), tokenizer=tokenizer, workers=1))
    vocab_size = json.loads((bert / "config.json").read_text())["vocab_size"]
    settings = {
        "run": {"dir": str(tmp_path / "runs"), "steps": 2, "device": "cpu", "init_from": str(bert), "eval_every": 0},
        "model": {
            "vocab_size": vocab_size, "num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 32,
            "intermediate_size": 64, "max_position_embeddings": 64, "causal": False, "positions": "learned",
            "norm": "layernorm", "norm_placement": "post",
            "bias": True, "type_vocab_size": 2, "embedding_norm": True, "head_transform": True, "head_bias": True,
            "norm_eps": 1e-12, "activation": "gelu", "gated_mlp": False, "tie_word_embeddings": True,
        },
        "data": {"train": [{"path": str(tmp_path / "corpus")}], "sequence_length": 32, "objective": "mlm"},
        "batch": {"global_size": 4, "micro_size": 4},
        "parallel": {"engine": "fsdp", "precision": "fp32"},
    }  # fmt: skip
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(settings))
    assert pretrain.main(["--config", str(config), "--optimizer.learning_rate", "1e-12"]) == 0
    folder = tmp_path / "runs/run/checkpoints/step-00000002"
    found = read_tensor(folder, read_manifest(folder), "model/blocks.1.attention.query.weight")
    torch.testing.assert_close(found, load(bert, "language").blocks[1].attention.query.weight.data)
    with pytest.raises(BadInput, match=r"the model in .* has another configuration; set .*model.num_hidden_layers 2"):
        pretrain.main(["--config", str(config), "--model.num_hidden_layers", "3", "--run.name", "other"])
