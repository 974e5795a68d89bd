"""Writes docs/support-matrix.md: which features go together, from the registries and the checks that refuse the rest.

python -m ingot.launcher.planning.support_matrix
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, get_args, get_type_hints

from ingot.data.sequences.options import OBJECTIVES, PACKINGS, SequenceOptions
from ingot.launcher.config.finetune import FinetuneConfig, Init, Method, Task
from ingot.launcher.config.pretrain import Batch, CorpusSource, Data, TrainConfig
from ingot.launcher.loading.peft_methods import TARGETS
from ingot.launcher.tasks.registry import DEFAULT, TASK_KINDS
from ingot.launcher.tasks.task_kind import TaskKind
from ingot.model.config import ModelConfig
from ingot.model.huggingface.families.registry import FAMILIES
from ingot.model.huggingface.mapping.family import Family
from ingot.model.huggingface.peft_prompts import TYPES

PATH = Path(__file__).resolve().parents[2] / "docs" / "support-matrix.md"
RANKS = 8
LAYOUTS: dict[str, dict[str, Any]] = {
    "ZeRO-0": {"parallel.engine": "zero", "parallel.zero_stage": 0},
    "ZeRO-1": {"parallel.engine": "zero", "parallel.zero_stage": 1},
    "ZeRO-2": {"parallel.engine": "zero", "parallel.zero_stage": 2},
    "ZeRO-3": {"parallel.engine": "zero", "parallel.zero_stage": 3},
    "replicas": {"parallel.engine": "fsdp", "parallel.data_shard": 1},
    "HSDP": {"parallel.engine": "fsdp", "parallel.data_shard": 2},
    "FSDP2": {"parallel.engine": "fsdp"},
}
PRETRAINING: dict[str, dict[str, Any]] = {
    "`parallel.tensor: 2`": {"parallel.tensor": 2},
    "`parallel.activation_checkpointing: selective`": {"parallel.activation_checkpointing": "selective"},
    "`parallel.activation_checkpointing: full`": {"parallel.activation_checkpointing": "full"},
    "`parallel.activation_checkpointing: memory_budget`": {"parallel.activation_checkpointing": "memory_budget"},
    "`parallel.activation_offload: true`": {
        "parallel.activation_offload": True,
        "parallel.activation_checkpointing": "full",
    },
    "`parallel.compile: true`": {"parallel.compile": True},
    "`parallel.offload: optimizer`": {"parallel.offload": "optimizer"},
    "`parallel.offload: all`": {"parallel.offload": "all"},
    "`parallel.offload: all` with `offload_dir`": {"parallel.offload": "all", "parallel.offload_dir": "nvme"},
    "`parallel.float8: tensorwise`, `rowwise`": {"parallel.float8": "rowwise"},
    "`optimizer.kind: muon`": {"optimizer.kind": "muon"},
    "`optimizer.state_dtype: bf16`": {"optimizer.state_dtype": "bf16"},
    "`distillation.teacher`": {"distillation.teacher": "runs/large"},
}
OBJECTIVE: dict[str, dict[str, Any]] = {
    **{f"`packing: {each}`": {"packing": each} for each in PACKINGS},
    "`mask_unit: word`, `span`": {"mask_unit": "word"},
    "`sentence_pairs: nsp`, `sop`": {"sentence_pairs": "nsp"},
    "`fim_rate`": {"fim_rate": 0.5},
}
FINETUNING: dict[str, dict[str, Any]] = {
    "`loss.label_smoothing`": {"loss.label_smoothing": 0.1},
    "`loss.z_loss`": {"loss.z_loss": 1e-4},
    "`method.r_drop`": {"method.r_drop": 1.0},
    "`method.adversarial`": {"method.adversarial": "fgm"},
    "`distillation.teacher`": {"distillation.teacher": "runs/large"},
    "`task.document_context`": {"task.document_context": 64},
}
METHOD: dict[str, dict[str, Any]] = {
    "`parallel.tensor: 2`": {"parallel.tensor": 2},
    "`method.sparsity`": {"method.sparsity": 0.5},
    "`method.unfreeze_steps`": {"method.unfreeze_steps": 100},
    "`distillation.teacher`": {"distillation.teacher": "runs/large"},
    "`method.adversarial`": {"method.adversarial": "fgm"},
}
LAYOUT: dict[str, dict[str, Any]] = {
    "`method.adversarial`": {"method.adversarial": "fgm"},
    "`parallel.tensor: 2` with `method.kind: lora`": {"parallel.tensor": 2, "method.kind": "lora"},
}
YES, NO = "yes", "no"
INTRODUCTION = """# Support matrix

What goes with what. This page is generated from the registries and from the checks that refuse the rest before a run starts: `python -m ingot.launcher.planning.support_matrix` writes it. Do not edit it by hand. Below a table is, for each column or row with a no, the message of the check.
"""  # noqa: E501  # a paragraph is a line in docs/
FAMILIES_TEXT = """By `data.objective` of pretraining and `task.kind` of fine-tuning. A cell names the class of `transformers` in which the exported model opens. "no export": it trains, and Ingot uses it. "no": it does not train. Every family goes with every engine; `parallel.tensor` needs heads, hidden size and sequence length that it divides.
"""  # noqa: E501
METHODS_TEXT = """By `method.kind`. Each method goes with each engine, and with each kind of task, except that `instruction` has no head for a `linear_probe`. As an adapter for `peft`, IA3 needs a family that keeps queries, keys and values apart (not GPT-2).
"""  # noqa: E501
ENGINES_TEXT = f"""On {RANKS} ranks, each with precision bf16 and fp32. Each layout loads the checkpoints of all others.
"""


def page() -> str:
    """The whole page."""
    pretraining, finetuning = partial(_problem, _pretraining()), partial(_problem, _finetuning(DEFAULT))
    parts = [
        INTRODUCTION,
        "## Families\n\n" + FAMILIES_TEXT,
        _families(),
        "## Objectives of pretraining\n\nOptions of the section `data`, by `data.objective`.\n",
        _table("`data.objective`", OBJECTIVES, OBJECTIVE, _problem_of_sequences),
        "## Engines\n\n" + ENGINES_TEXT,
        _table(
            "option",
            PRETRAINING,
            LAYOUTS,
            lambda name, layout: pretraining({**PRETRAINING[name], **layout}),
        ),
        "Only while fine-tuning:\n",
        _table("option", LAYOUT, LAYOUTS, lambda name, layout: finetuning({**LAYOUT[name], **layout})),
        "## Kinds of tasks\n\nWhile fine-tuning, by `task.kind`.\n",
        _table("`task.kind`", TASK_KINDS, FINETUNING, lambda name, changes: _problem(_finetuning(name), changes)),
        "## Methods of fine-tuning\n\n" + METHODS_TEXT,
        _methods(),
    ]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def _pretraining() -> TrainConfig:
    return TrainConfig(
        data=Data(train=[CorpusSource(path="corpora/demo")]), batch=Batch(global_size=RANKS, micro_size=1)
    )


def _finetuning(kind: str) -> FinetuneConfig:
    return FinetuneConfig(init=Init(model="runs/demo"), task=Task(kind=kind, train="train.tsv"))


def _problem(config: TrainConfig | FinetuneConfig, changes: Mapping[str, Any]) -> str:
    """Why the configuration with these options is refused on `RANKS` ranks; empty if it is not."""
    for name, value in changes.items():
        section, option = name.split(".")
        config = replace(config, **{section: replace(getattr(config, section), **{option: value})})
    try:
        config.check(RANKS)
    except ValueError as error:
        return str(error)
    return ""


def _problem_of_sequences(objective: str, changes: Mapping[str, Any]) -> str:
    try:
        SequenceOptions(sequence_length=128, objective=objective, **changes).check()
    except ValueError as error:
        return str(error)
    return ""


def _table(
    title: str,
    rows: Iterable[str],
    columns: Mapping[str, Mapping[str, Any]],
    problem: Callable[[str, Mapping[str, Any]], str],
) -> str:
    """A table of yes and no, and one reason for each row or column that has a no."""
    lines: list[list[str]] = []
    reasons: dict[str, str] = {}
    by_row = set(columns) == set(LAYOUTS)
    for row in rows:
        name = row if "`" in row else f"`{row}`"
        problems = {column: problem(row, changes) for column, changes in columns.items()}
        lines.append([name, *(NO if found else YES for found in problems.values())])
        for column, found in problems.items():
            if found:
                reasons.setdefault(name if by_row else column, found)
    return _markdown([title, *columns], lines) + _listed(reasons)


def _listed(reasons: Mapping[str, str]) -> str:
    lines = [f"- {name}: {reason}\n" for name, reason in reasons.items()]
    return "".join([*lines, "\n"]) if lines else ""


def _families() -> str:
    titles = ["family", "`data.objective`", "pretrained", "with sentence pairs", *(f"`{name}`" for name in TASK_KINDS)]
    lines = []
    for name, family in FAMILIES.items():
        is_causal = family.implied.get("causal", ModelConfig.causal)
        pretrained = [_architecture(family, "language"), _architecture(family, "pretraining", missing=NO)]
        tasks = [_task_cell(family, kind, is_causal) for kind in TASK_KINDS.values()]
        lines.append([name, "clm" if is_causal else "mlm", *pretrained, *tasks])
    return _markdown(titles, lines)


def _task_cell(family: Family, kind: TaskKind, is_causal: bool) -> str:
    if kind.attention != "any" and (kind.attention == "causal") != is_causal:
        return NO
    if kind.head is None:
        return _architecture(family, "language")
    return _architecture(family, "choice" if kind.head.problem == "choice" else kind.head.kind)


def _architecture(family: Family, kind: str, missing: str = "no export") -> str:
    return family.heads[kind].architecture if kind in family.heads else missing


def _methods() -> str:
    kinds = [str(kind) for kind in get_args(get_type_hints(Method)["kind"])]
    titles = ["`method.kind`", *METHOD, "export to `transformers`", "`export.py --adapter true`, for `peft`"]
    lines: list[list[str]] = []
    reasons: dict[str, str] = {}
    for kind in kinds:
        problems = {
            name: _problem(_finetuning(DEFAULT), {"method.kind": kind, **changes}) for name, changes in METHOD.items()
        }
        for name, problem in problems.items():
            if problem:
                reasons.setdefault(name, problem)
        merges = "merged" if kind in TARGETS else YES if kind in ("full", "linear_probe") else NO
        adapter = YES if kind in TARGETS else NO
        if kind in TYPES:
            adapter = "GPTs, `instruction`" if kind == "prefix_tuning" else "GPTs"
        lines.append([f"`{kind}`", *(NO if problem else YES for problem in problems.values()), merges, adapter])
    return _markdown(titles, lines) + _listed(reasons)


def _markdown(titles: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [titles, ["---"] * len(titles), *lines]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows) + "\n"


def main() -> None:
    PATH.write_text(page(), encoding="utf-8")
    print(f"wrote {PATH}")


if __name__ == "__main__":
    main()
