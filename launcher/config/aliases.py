"""Options under the names that they had before: still read in a file, on the command line and in a checkpoint.

This is the one table. Entries may be removed once nobody has such files any more; nothing else knows the old names.
"""

import os
import sys
from collections.abc import Iterator, Mapping
from functools import cache

from ingot.launcher.config.schema.options import Option, options

OPTIONS = {
    "run.dry": "run.dry_run",
    "run.dry_ranks": "run.dry_run_ranks",
    "run.weights_from": "run.init_from",
    "run.keep": "run.keep_checkpoints",
    "optimizer.clip_norm": "optimizer.max_grad_norm",
    "optimizer.final_fraction": "optimizer.min_lr_ratio",
    "optimizer.schedule_steps": "optimizer.lr_decay_steps",
    "optimizer.decay_fraction": "optimizer.lr_decay_ratio",
    "optimizer.z_loss": "loss.z_loss",
    "optimizer.label_smoothing": "loss.label_smoothing",
    "parallel.recompute": "parallel.activation_checkpointing",
    "data.weight_changes": "data.mixture_schedule",
    "data.pairs": "data.sentence_pairs",
    "model.width": "model.hidden_size",
    "model.mlp_width": "model.intermediate_size",
    "model.num_layers": "model.num_hidden_layers",
    "model.num_heads": "model.num_attention_heads",
    "model.num_kv_heads": "model.num_key_value_heads",
    "model.max_positions": "model.max_position_embeddings",
    "model.rotary_base": "model.rope_theta",
    "model.rotary_local_base": "model.local_rope_theta",
    "model.rotary_scaling": "model.rope_scaling",
    "model.rope_scaling.kind": "model.rope_scaling.rope_type",
    "model.rope_scaling.original_positions": "model.rope_scaling.original_max_position_embeddings",
    "model.rope_scaling.short_factors": "model.rope_scaling.short_factor",
    "model.rope_scaling.long_factors": "model.rope_scaling.long_factor",
    "model.tie_head": "model.tie_word_embeddings",
    "model.token_types": "model.type_vocab_size",
    "model.window": "model.sliding_window",
    "model.logit_softcap": "model.final_logit_softcapping",
    "model.init_std": "model.initializer_range",
    "init.path": "init.model",
    "init.weights": "init.pretrained",
    "init.layers": "init.keep_layers",
    "task.texts": "task.text_columns",
    "task.label": "task.label_column",
    "task.word_column": "task.conll_word_column",
    "task.stride": "task.doc_stride",
    "task.context": "task.document_context",
    "task.score": "task.best_metric",
    "task.patience": "task.early_stopping_patience",
    "task.prompt": "task.template",
    "task.long": "task.overlong",
    "method.tokens": "method.num_virtual_tokens",
    "method.targets": "method.target_modules",
    "method.rank": "method.r",
    "method.first_rank": "method.init_r",
    "method.alpha": "method.lora_alpha",
    "method.dropout": "method.lora_dropout",
    "label": "label_column",
    "normalise": "normalize",
}
VALUES = {
    "task.kind": {
        "tagging": "token_classification",
        "answers": "question_answering",
        "choice": "multiple_choice",
        "generation": "instruction",
    },
    "method.kind": {"head": "linear_probe", "prompt": "prompt_tuning", "prefix": "prefix_tuning"},
}
CONLL_LABEL = ("task.label_column", "task.conll_label_column")
"""The first was the number of a column of CoNLL files, and is now the name of a column."""
SYNONYMS = {
    name: options
    for names, options in {
        ("lr", "peak_lr", "max_lr", "base_lr"): ("learning_rate",),
        ("wd", "l2"): ("weight_decay",),
        ("d_model", "n_embd", "dim", "hidden_dim", "embed_dim", "d_hidden"): ("hidden_size",),
        ("n_layer", "n_layers", "layers", "depth", "num_blocks"): ("num_hidden_layers",),
        ("n_head", "n_heads", "heads", "nhead"): ("num_attention_heads",),
        ("n_kv_heads", "n_kv_head", "num_query_groups"): ("num_key_value_heads",),
        ("n_positions", "n_ctx"): ("max_position_embeddings",),
        ("ffn_dim", "d_ff", "ffn_hidden_size", "n_inner", "ffn_size"): ("intermediate_size",),
        ("block_size", "seq_length", "seq_len", "context_length"): ("sequence_length", "max_length"),
        ("max_seq_length", "max_seq_len"): ("sequence_length", "max_position_embeddings", "max_length"),
        ("model_type", "architecture", "arch", "family"): ("preset",),
        ("batch_size", "train_batch_size"): ("global_size",),
        ("per_device_train_batch_size", "micro_batch_size", "gradient_accumulation_steps"): (
            "micro_size",
            "micro_tokens",
        ),
        ("num_train_epochs", "num_epochs"): ("epochs",),
        ("max_steps", "train_steps", "num_train_steps", "max_iters", "num_steps", "total_steps", "iterations"): (
            "steps",
        ),
        ("max_train_tokens", "num_tokens", "train_tokens", "total_tokens"): ("tokens",),
        ("save_steps", "save_interval", "checkpoint_every"): ("save_every",),
        ("eval_steps", "eval_interval"): ("eval_every",),
        ("logging_steps", "log_interval"): ("log_every",),
        ("gc_freq", "gc_interval"): ("gc_every",),
        ("save_total_limit",): ("keep_checkpoints",),
        ("output_dir", "out_dir"): ("dir", "output"),
        ("gradient_clipping", "grad_clip", "clip_grad"): ("max_grad_norm",),
        ("lr_scheduler_type", "lr_scheduler", "scheduler", "lr_schedule"): ("schedule",),
        ("warmup_ratio", "num_warmup_steps", "warmup_iters"): ("warmup_steps",),
        ("adam_epsilon", "epsilon"): ("eps",),
        ("adam_beta1", "adam_beta2", "beta1", "beta2"): ("betas",),
        ("gradient_checkpointing", "recompute_granularity"): ("activation_checkpointing",),
        ("fp16", "bf16", "mixed_precision"): ("precision",),
        ("tp", "tp_size", "tensor_parallel_size", "tensor_model_parallel_size"): ("tensor",),
        ("zero", "stage"): ("zero_stage",),
        ("torch_compile",): ("compile",),
        ("dataset", "dataset_path", "train_file", "train_data", "data_path"): ("train", "input"),
        ("eval_dataset", "validation_file", "val_data"): ("validation",),
        ("dataloader_num_workers", "num_workers"): ("threads", "workers"),
        ("resume_from_checkpoint", "resume_from"): ("resume",),
        ("lora_r", "lora_rank"): ("r",),
        ("model_name_or_path", "base_model", "pretrained_model"): ("model", "init_from", "checkpoint"),
        ("max_new_tokens",): ("max_tokens",),
    }.items()
    for name in names
}
"""How others call an option: named in the message about an unknown one, and not read."""


class Neighbours:
    """A value of the old model.window. It did not count the token itself, as the sliding_window of a causal model does.

    Whether the model is causal is known once all files and arguments are joined.
    """

    def __init__(self, value: object):
        self.value = value


def present(name: str, value: object, known: Mapping[str, Option]) -> tuple[str, object]:
    """Name and value of an option as they are called now.

    Args:
        name: its dotted name.
        known: the options of the command by name; an old name or value counts only where it means one of them.
    """
    if name == CONLL_LABEL[0] and CONLL_LABEL[1] in known and _is_whole_number(value):
        return CONLL_LABEL[1], value
    new = OPTIONS.get(name)
    if new is None or new not in known or name in known:
        new = name
    if name == "model.window" and value is not None:
        return new, Neighbours(value)
    if isinstance(value, str) and new in known and value not in known[new].kind.choices:
        value = VALUES.get(new, {}).get(value, value)
    return new, value


def note(where: str, changes: dict[str, str], *, most: int = 100) -> None:
    """Says on stderr, once, which old names were read as which new ones. Of several ranks only the first speaks.

    Args:
        most: of more changes than these only the number is given.
    """
    parts = [f"{old} is now {new}" for old, new in changes.items()]
    text = "; ".join(parts[:most]) + (f"; and {len(parts) - most} more" if len(parts) > most else "")
    if changes:
        say(f"{where} has old names, which are still read: {text}")


def say(text: str) -> None:
    """Prints a note about the configuration to stderr, once. Of several ranks only the first speaks."""
    if os.environ.get("RANK", "0") == "0" and text not in _SAID:
        _SAID.add(text)
        print(f"note: {text}", file=sys.stderr, flush=True)


_SAID: set[str] = set()


def modernize(config: dict, where: str | None = None) -> dict:
    """A whole configuration, as a checkpoint's manifest holds it, with the names and values of today.

    Args:
        config: nested dicts: sections, and in them options. It is not changed.
        where: the checkpoint, for a notice; None says nothing.
    """
    found: dict = {}
    changes: dict[str, str] = {}
    for name, value in _flat(config):
        new, now = present(name, value, _all_options())
        if new != name:
            changes[name] = new
        elif isinstance(now, str) and now != value:
            changes[f"{name} {value}"] = now
        section = found
        *sections, key = new.split(".")
        for each in sections:
            section = section.setdefault(each, {})
        section[key] = now
    count_window(found)
    if where is not None:
        note(where, changes, most=3)  # a checkpoint has them all, and nobody has to do anything
    return found


def modernize_manifest(manifest: dict, where: object = None) -> dict:
    """A checkpoint's manifest whose `config` and `model` have the names and values of today.

    Args:
        where: the checkpoint, for a notice; None says nothing.
    """
    said = None if where is None else f"checkpoint {where}"
    found = dict(manifest)
    if isinstance(manifest.get("config"), dict):
        found["config"] = modernize(manifest["config"], said)
        if "chat_template" not in found["config"].get("task", {"chat_template": ""}):
            found["config"]["task"]["chat_template"] = "never"  # it was made when there were no templates
    if isinstance(manifest.get("model"), dict):
        found["model"] = modernize({"model": manifest["model"]})["model"]
    return found


def count_window(config: dict) -> None:
    """Puts the value of sliding_window in place of an old `model.window`."""
    model = config.get("model")
    if isinstance(model, dict) and isinstance(window := model.get("sliding_window"), Neighbours):
        causal = str(model.get("causal", True)).lower() != "false"
        number = int(str(window.value)) if _is_whole_number(window.value) else None
        model["sliding_window"] = window.value if number is None else number + causal


@cache
def _all_options() -> dict[str, Option]:
    """The options of pretraining and fine-tuning; only these two commands write checkpoints."""
    from ingot.launcher.config.finetune import FinetuneConfig
    from ingot.launcher.config.pretrain import TrainConfig

    return {option.name: option for cls in (TrainConfig, FinetuneConfig) for option in options(cls)}


_OPAQUE = ("parallel.deepspeed",)
"""Options whose values are dicts."""


def _flat(tree: dict, prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and value and name not in _OPAQUE:
            # A section that was renamed too: its options are found under its present name.
            yield from _flat(value, f"{OPTIONS.get(name, name)}.")
        else:
            yield name, value


def _is_whole_number(value: object) -> bool:
    if isinstance(value, str):
        return value.removeprefix("-").isdecimal()
    return isinstance(value, int) and not isinstance(value, bool)
