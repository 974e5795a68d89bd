"""Every file in configs/ is complete, holds together, and describes the model that it says it does."""

import re
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import yaml

from ingot.launcher.config.finetune import FinetuneConfig
from ingot.launcher.config.parser import parse
from ingot.launcher.config.prepare import PrepareOptions, check
from ingot.launcher.config.pretrain import TrainConfig
from ingot.model.transformer import LanguageModel

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
RUNS = sorted(path for path in CONFIGS.glob("*.yaml") if not path.stem.endswith("-corpus"))
PUBLISHED = {"gpt2-124m": 124_439_808, "bert-base": 109_514_298}


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_a_run_is_valid_for_one_and_two_ranks_and_builds(path):
    config = parse(TrainConfig, ["--config", str(path)], "")
    for num_ranks in (1, 2):
        config.check(num_ranks)
    assert config.run.name == path.stem
    with torch.device("meta"):
        model = LanguageModel(config.model)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == PUBLISHED.get(path.stem, count)


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_a_run_says_what_matters_instead_of_leaving_it_to_defaults(path):
    """Sections are complete but for options that have no effect there, which these few lists name."""
    silent = {
        "run": {"dry_run", "dry_run_ranks", "device_memory_gb", "init_from", "epochs", "tokens", "deterministic",
                "profile_steps", "profile_rank", "memory_snapshots", "memory_snapshot_steps", "gc_every"},
        "model": {"head_dim", "num_key_value_heads", "rope_theta", "qk_norm", "type_vocab_size", "embedding_norm",
                  "head_transform", "head_bias", "pair_head", "attention_dropout", "first_norm", "qkv_bias",
                  "output_bias", "mlp_bias", "norm_bias", "position_offset", "local_rope_theta", "rope_scaling",
                  "layer_pattern", "sliding_window", "final_logit_softcapping"},
        "data": {"mlm_probability", "threads", "prefetch", "allow_changed", "mixture_schedule", "packing", "shuffle",
                 "window_shards", "partitions", "mask_unit", "sentence_pairs", "fim_rate", "cache_dir",
                 "cache_bytes", "strict", "max_bad_fraction", "intra_document_masking"},
        "batch": {"ramp"},
        "optimizer": {"kind", "muon_matrices", "momentum", "eps", "lr_decay_ratio", "state_dtype"},
        "parallel": {"deepspeed", "timeout_seconds", "init_timeout_seconds", "rendezvous_seconds", "data_shard",
                     "tensor", "check_devices", "activation_checkpointing", "compile", "offload", "offload_dir",
                     "attn_implementation", "activation_checkpointing_every", "activation_memory_budget",
                     "activation_offload", "compile_cache", "flight_recorder", "float8", "async_tensor_parallel",
                     "reduce_dtype", "reshard_after_forward", "sync_each_micro_batch", "symmetric_memory"},
    }  # fmt: skip
    written = yaml.safe_load(path.read_text())
    whole = asdict(parse(TrainConfig, ["--config", str(path)], ""))
    assert written.keys() == whole.keys() - {"distillation", "loss"}
    for section in written:
        values = whole[section]
        assert values.keys() - written[section].keys() <= silent[section], section


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_pretraining_has_no_dropout_in_attention(path):
    """On GPUs flash attention has none: packed sequences would need a dense mask."""
    assert parse(TrainConfig, ["--config", str(path)], "").model.attention_dropout == 0


def test_published_shapes_are_there():
    assert {path.stem for path in RUNS} >= PUBLISHED.keys()


def test_the_demo_accumulates_two_micro_batches_on_two_ranks():
    for name in ("demo", "demo-bert"):
        config = parse(TrainConfig, ["--config", str(CONFIGS / f"{name}.yaml")], "")
        assert config.batch.global_size // config.batch.micro_size // 2 == 2


def test_the_demo_corpus_fits_the_demo():
    options = parse(PrepareOptions, ["--config", str(CONFIGS / "demo-corpus.yaml"), "--input", "[.]"], "")
    check(options)
    config = parse(TrainConfig, ["--config", str(CONFIGS / "demo.yaml")], "")
    assert options.tokenizer.vocab_size == config.model.vocab_size
    assert options.output == config.data.train[0].path


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"parallel.tensor": 3},
            "parallel.tensor 3 does not divide the 4 processes of the world; it can be 1, 2 or 4",
        ),
        (
            {"parallel.tensor": 4, "model.num_attention_heads": 2, "model.hidden_size": 64},
            "model.num_attention_heads 2 is not a multiple of it",
        ),
        (
            {"parallel.tensor": 2, "data.sequence_length": 63},
            "data.sequence_length 63 is not a multiple of it",
        ),
        ({"parallel.data_shard": 2}, "engine zero cuts over all data ranks; leave it out, or set parallel.engine fsdp"),
        (
            {"parallel.zero_stage": 3, "parallel.activation_checkpointing": "selective"},
            "set it to full, or parallel.engine to fsdp",
        ),
        ({"parallel.zero_stage": 3, "parallel.compile": True}, "set parallel.zero_stage to 2"),
        (
            {"parallel.zero_stage": 3, "parallel.activation_checkpointing": "memory_budget"},
            "is a choice of torch.compile; set parallel.engine to fsdp, or parallel.activation_checkpointing to full",
        ),
        (
            {"parallel.compile": False, "parallel.activation_checkpointing": "memory_budget"},
            "is a choice of torch.compile; set parallel.compile to true",
        ),
        ({"parallel.activation_checkpointing_every": 2}, "set that to selective or full"),
        ({"parallel.activation_offload": True, "parallel.activation_checkpointing": "selective"}, "set that to full"),
        ({"run.profile_steps": [3, 2]}, "give the first and the last step"),
        ({"run.profile_rank": 4}, "there are 4 process"),
        ({"run.memory_snapshot_steps": [5]}, "needs run.memory_snapshots true"),
        ({"parallel.zero_stage": 0, "parallel.offload": "optimizer"}, "needs parallel.zero_stage 1, which is 0"),
        (
            {"parallel.engine": "fsdp", "parallel.offload": "optimizer"},
            "engine fsdp has parallel.offload all",
        ),
        ({"parallel.offload_dir": "/disk"}, "parallel.offload_dir needs parallel.offload optimizer or all"),
        ({"optimizer.kind": "muon"}, "ZeRO-1 splits them anywhere; set parallel.engine to fsdp"),
        ({"optimizer.kind": "muon", "parallel.tensor": 2}, "set parallel.tensor to 1"),
    ],
)
def test_layouts_that_cannot_be_are_refused_with_what_can(settings, message):
    arguments = [text for name, value in settings.items() for text in (f"--{name}", str(value).lower())]
    config = parse(TrainConfig, ["--config", str(CONFIGS / "demo.yaml"), *arguments], "")
    with pytest.raises(ValueError, match=re.escape(message)):
        config.check(4)


@pytest.mark.parametrize("path", sorted((CONFIGS / "finetune").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_fine_tuning_run_is_valid_and_needs_only_files_and_a_start(path):
    given = ["--config", str(path), "--init.model", "released", "--task.train", "a.tsv", "--task.validation", "b.tsv"]
    config = parse(FinetuneConfig, given, "")
    for num_ranks in (1, 2):
        config.check(num_ranks)
    assert config.run.name == path.stem
    assert f"--config configs/finetune/{path.name}" in path.read_text()
    with pytest.raises(ValueError, match=r"init.model names nothing .* task.train names no file"):
        parse(FinetuneConfig, ["--config", str(path)], "").check(1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"parallel.tensor": 2, "method.kind": "lora"},
            "cannot split what method.kind lora adds; set it to 1",
        ),
        (
            {"parallel.tensor": 2, "method.adversarial": "fgm"},
            "needs whole embeddings; set parallel.tensor to 1",
        ),
        ({"optimizer.kind": "muon"}, "optimizer.kind muon is for pretraining"),
        ({"task.early_stopping_patience": 2}, "task.early_stopping_patience needs task.validation"),
        (
            {"method.r_drop": 1, "task.kind": "token_classification"},
            "are for classification, multiple_choice, not token_classification",
        ),
        ({"method.adversarial": "fgm", "method.r_drop": 1}, "do not go together"),
        ({"method.adversarial": "fgm", "parallel.zero_stage": 3}, "set parallel.zero_stage to 2 or less"),
        ({"loss.label_smoothing": 0.1, "task.kind": "regression"}, "set it to 0 for regression"),
        ({"loss.z_loss": 0.1}, "z_loss is for instruction; set it to 0 for classification"),
        ({"method.unfreeze_steps": 5, "method.kind": "lora"}, "needs method.kind full, which is lora"),
        ({"run.steps": 0, "task.epochs": 0}, "task.epochs and run.steps are both 0; set one of them"),
    ],
)
def test_what_does_not_go_together_in_fine_tuning_is_refused(settings, message):
    arguments = [text for name, value in settings.items() for text in (f"--{name}", str(value))]
    config = parse(FinetuneConfig, ["--init.model", "x", "--task.train", "a.tsv", *arguments], "")
    with pytest.raises(ValueError, match=re.escape(message)):
        config.check(2)
