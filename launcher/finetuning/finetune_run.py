"""A fine-tuning run, from its configuration to its exit code."""

import json
import math
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from torch import Tensor

from ingot.data.tasks.instruction import end_ids, uses_chat_template
from ingot.data.tasks.reader import TaskReader, fingerprint
from ingot.data.tasks.task_data import TaskData, TaskSettings
from ingot.data.tokenizers.tokenizer import Tokenizer
from ingot.launcher.config.finetune import PROMPT_METHODS, FinetuneConfig
from ingot.launcher.finetuning.evaluation import evaluate
from ingot.launcher.finetuning.pruning import Pruner, each_matrix, magnitude, singular_values, triplets
from ingot.launcher.finetuning.result_files import BestScores, PredictionFiles
from ingot.launcher.loading import peft_methods
from ingot.launcher.loading.base_model import BaseModel, find_tokenizer, open_base_model
from ingot.launcher.loading.teacher import learn_from
from ingot.launcher.runtime.exit_codes import DONE, bad_input
from ingot.launcher.tasks.registry import task_kind
from ingot.launcher.tasks.task_kind import TaskKind
from ingot.launcher.training.batch_sizes import BatchSizes
from ingot.launcher.training.build import build_engine, float8_messages
from ingot.launcher.training.callbacks.best_checkpoint import BestCheckpoint, EarlyStopping
from ingot.launcher.training.callbacks.callback import Callback
from ingot.launcher.training.common_values import start_files
from ingot.launcher.training.job import Job, RunContext
from ingot.launcher.training.resume import checkpoints_to_try
from ingot.launcher.training.run import run
from ingot.launcher.training.setup import RunLock, rank_group, run_folder, start_mesh
from ingot.model.config import ModelConfig
from ingot.model.costs.flops import flops_per_token
from ingot.model.finetuning.adversarial import add_regularizer
from ingot.model.finetuning.task_model import TaskModel
from ingot.model.huggingface.families.registry import export_note
from ingot.model.tensor_plan import tensor_plan, tensor_problems
from ingot.parallel.engines.engine import Engine
from ingot.parallel.mesh import Mesh


def finetune(config: FinetuneConfig) -> int:
    """Fine-tunes, once or with each of task.seeds, and returns the exit code. Each rank calls it.

    Raises:
        BadInput: there is a mistake that the user can correct. The folder of the run is unchanged.
    """
    with rank_group(config) as watchdog:
        with bad_input():
            files = read_files(config)  # first what needs no other rank
            mesh, config = start_mesh(config, watchdog, files.identities(config))
        results = []
        for seed in config.task.seeds or [config.run.seed]:
            name = f"{config.run.name}-seed{seed}" if config.task.seeds else config.run.name
            one = replace(config, run=replace(config.run, seed=seed, name=name), task=replace(config.task, seeds=[]))
            with bad_input():
                run_lock = RunLock(run_folder(one))
            outcome = run(one, mesh, run_lock, partial(make_job, one, mesh, files))
            if outcome.code != DONE:
                return outcome.code
            results.append(outcome.find(BestCheckpoint).scores)
        if mesh.is_main and len(results) > 1:
            _report_seeds(config, results)
        return DONE


@dataclass
class Files:
    """What a run reads; it is the same for each seed."""

    tokenizer: Tokenizer
    train: TaskData
    validation: TaskData | None

    def identities(self, config: FinetuneConfig) -> dict[str, str]:
        """What identifies the files and what the run starts from, by name.

        Raises:
            ValueError: the checkpoint to resume from is missing, or there is one and there should be none.
        """
        found = {"the tokenizer": self.tokenizer.sha256[:16], "the labels": ", ".join(self.train.labels)}
        parts = {config.task.train: self.train, config.task.validation: self.validation}
        found |= {f"the examples of {path}": fingerprint(part.examples) for path, part in parts.items() if part}
        candidates = checkpoints_to_try(config.run.resume, run_folder(config))
        return found | start_files(candidates, config.init.model, config.distillation.teacher)


def read_files(config: FinetuneConfig) -> Files:
    """Reads the files of the task with the tokenizer of the base model.

    Raises:
        ValueError, OSError: a file is missing or does not fit the task.
    """
    tokenizer = find_tokenizer(config.init.model, config.init.tokenizer)
    kind, settings = task_kind(config.task.kind), task_settings(config)
    if kind.head is None and uses_chat_template(settings):
        tokenizer = tokenizer.with_chat_template()  # it stays with the run
    train = kind.read(config.task.train, settings, tokenizer)
    if kind.has_label_set and len(train.labels) < 2:
        labels = f"only the label {train.labels[0]!r}" if train.labels else "no labels"
        raise ValueError(f"{config.task.train} has {labels}; there must be two or more")
    validation = None
    if config.task.validation is not None:
        validation = kind.read(config.task.validation, replace(settings, labels=train.labels or None), tokenizer)
    return Files(tokenizer, train, validation)


def open_model(config: FinetuneConfig, files: Files) -> BaseModel:
    """The model to train, on the meta device, with the values of its parameters.

    Raises:
        ValueError: there is no model, or it does not fit the task or the tokenizer.
    """
    tokenizer, task = files.tokenizer, config.task
    base = open_base_model(
        config.init.model,
        task_kind(task.kind),
        files.train.labels,
        seed=config.run.seed,
        pretrained=config.init.pretrained,
        layers=config.init.keep_layers,
        dropout=task.dropout,
        pooling=task.pooling,
    )
    model = base.model.config
    if tokenizer.vocab_size > model.vocab_size:
        raise ValueError(
            f"tokenizer {tokenizer.folder} has {tokenizer.vocab_size} ids, and the model in {config.init.model} knows "
            f"{model.vocab_size}; give its own tokenizer with init.tokenizer"
        )
    learned = config.method.num_virtual_tokens if config.method.kind in PROMPT_METHODS else 0
    if task.max_length + learned > model.max_position_embeddings:
        raise ValueError(
            f"task.max_length {task.max_length} and {learned} virtual tokens are more than the model's "
            f"{model.max_position_embeddings} positions; lower task.max_length"
        )
    if problems := tensor_problems(model, config.parallel.tensor, 0):  # the reader pads rows for the tensor ranks
        raise ValueError("; ".join(problems))
    return base


def task_settings(config: FinetuneConfig) -> TaskSettings:
    """How the files of the task are read."""
    task = config.task
    return TaskSettings(
        text_columns=task.text_columns or task_kind(task.kind).text_columns,
        label_column=task.label_column,
        labels=task.labels,
        label_names=dict(part.split("=", 1) for part in task.label_names),
        conll_word_column=task.conll_word_column,
        conll_label_column=task.conll_label_column,
        max_length=task.max_length,
        refuse_overlong=task.overlong == "refuse",
        doc_stride=task.doc_stride,
        document_context=task.document_context,
        max_answer_tokens=task.max_answer_tokens,
        no_answer=task.no_answer,
        template=task.template,
        chat_template=task.chat_template,
    )


def task_reader(
    config: FinetuneConfig, data: TaskData, model: ModelConfig, mesh: Mesh | None, *, shuffle: bool
) -> TaskReader:
    """The reader of this rank of a mesh; without a mesh, of a single process."""
    ranks = {} if mesh is None else {"multiple": mesh.tensor, "rank": mesh.data_rank, "num_ranks": mesh.num_data}
    return TaskReader(
        data.examples,
        global_size=config.batch.global_size,
        micro_tokens=config.batch.micro_tokens,
        labels="labels" if task_kind(config.task.kind).head is None else "targets",
        seed=config.run.seed,
        shuffle=shuffle,
        token_types=model.type_vocab_size > 1,
        **ranks,
    )


def initial_values(base: BaseModel, shapes: dict[str, tuple[int, ...]], seed: int) -> Callable[..., Tensor]:
    """The initial values of a model with the parameters that a method adds, rectangle by rectangle."""

    def part(name: str, offset: tuple[int, ...], shape: tuple[int, ...]) -> Tensor:
        if not peft_methods.is_added(name):
            return base.part(peft_methods.plain_name(name), offset, shape)
        whole = peft_methods.initial_value(name, shapes[name], seed)
        return whole[tuple(slice(o, o + n) for o, n in zip(offset, shape, strict=True))]

    return part


def build_finetuning_engine(
    config: FinetuneConfig, base: BaseModel, mesh: Mesh, labels: list[str], tokenizer: Tokenizer
) -> Engine:
    """Adds the parameters of the method and the teacher to the model, builds its engine, and initializes it."""
    model, method, kind = base.model, config.method, task_kind(config.task.kind)
    peft_methods.apply(method, model, has_head=kind.head is not None)
    if isinstance(model, TaskModel):  # a language model has neither: FinetuneConfig.check
        add_regularizer(model, method.adversarial, method.adversarial_norm, method.adversarial_steps, method.r_drop)
    learn_from(
        config.distillation,
        model,
        kind=kind,
        labels=labels,
        tokenizer=tokenizer,
        length=config.task.max_length,
        precision=config.parallel.precision,
        device=mesh.device,
    )
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    schedule = peft_methods.layer_schedule(method, model.config.num_hidden_layers)
    engine = build_engine(
        model, config.optimizer, config.parallel, mesh, plan=tensor_plan(model.config), scale_and_start=schedule
    )
    engine.initialize(initial_values(base, shapes, config.run.seed))
    return engine


def make_pruner(config: FinetuneConfig, engine: Engine) -> Pruner | None:
    """The callback that prunes weights, or AdaLoRA's ranks; None if nothing is pruned."""
    method, steps = config.method, config.run.steps
    is_adalora = method.kind == "adalora"
    final = 1 - method.r / method.init_r if is_adalora else method.sparsity
    if not final:
        return None
    return Pruner(
        engine,
        singular_values if is_adalora else each_matrix,
        importance=triplets if is_adalora else magnitude,
        final=final,
        begin=method.sparsity_begin,
        end=method.sparsity_end or max(1, 2 * steps // 3),
        every=method.sparsity_every,
        last=steps,
    )


def make_job(config: FinetuneConfig, mesh: Mesh, files: Files) -> Job:
    """Builds the model, engine and readers of a fine-tuning run. Each rank must call it.

    Raises:
        ValueError: the options do not fit each other, the model or the files.
    """
    base, tokenizer, kind = open_model(config, files), files.tokenizer, task_kind(config.task.kind)
    model, task = base.model.config, getattr(base.model, "task", None)
    parts = [files.train] if files.validation is None else [files.train, files.validation]
    paths = [config.task.train, config.task.validation]
    template = tokenizer.template(pair=False)
    train, *validation = (peft_methods.with_virtual_tokens(config.method, part, model, template) for part in parts)
    reader = task_reader(config, train, model, mesh, shuffle=True)
    held_out = [task_reader(config, part, model, mesh, shuffle=False) for part in validation]
    steps = config.run.steps or max(1, math.ceil(config.task.epochs * reader.num_instances / reader.global_size))
    config = replace(config, run=replace(config.run, steps=steps))
    engine = build_finetuning_engine(config, base, mesh, train.labels, tokenizer)
    predicted: list = []  # of the last evaluation

    def evaluate_now() -> dict:
        scores, predicted[:] = evaluate(engine, held_out[0], validation[0], kind)
        return scores

    def callbacks(context: RunContext) -> list[Callback]:
        metric = config.task.best_metric or kind.metrics[0]
        best = BestCheckpoint(
            context.folder / "best",
            metric,
            engine,
            context.progress.step,
            context.metadata,
            lower_is_better=metric in kind.lower_is_better,
            keep_later=context.is_new_branch,
        )
        added: list[Callback] = [best]
        if config.task.early_stopping_patience:
            patience = config.task.early_stopping_patience
            added.append(EarlyStopping(best, context.callbacks, patience=patience, every=config.run.eval_every))
        if validation and mesh.is_main:
            added.append(PredictionFiles(context, best, kind, validation[0], predicted))
        if mesh.is_main:
            added.append(BestScores(context, best))
        pruner = make_pruner(config, engine)
        return added if pruner is None else [pruner, *added]

    return Job(
        config=config,
        tokenizer=tokenizer,
        model=model,
        engine=engine,
        reader=reader,
        batch_sizes=BatchSizes(config.batch.global_size),
        data_stamp={"examples": reader.fingerprint, "count": reader.num_instances, "seed": config.run.seed},
        flops_per_token=flops_per_token(model, round(float(np.mean([len(e.ids) for e in train.examples])))),
        task=task,
        evaluate=evaluate_now if held_out else None,
        callbacks=callbacks,
        metadata={
            "model": asdict(model),
            "task": None if task is None else asdict(task),
            "labels": train.labels,
        },
        messages=[
            base.note,
            export_note(model, task),
            *(_describe_data(path, part, tokenizer, kind) for path, part in zip(paths, parts, strict=False)),
            _describe_parameters(engine, config),
            *float8_messages(config.parallel, engine.module, tensor_plan(model)),
        ],
    )


def _describe_data(path: str | None, train: TaskData, tokenizer: Tokenizer, kind: TaskKind) -> str:
    lengths = [len(example.ids) for example in train.examples]
    text = f"{path}: {len(lengths):,} examples of {np.mean(lengths):.1f} tokens, at most {max(lengths)}"
    if train.num_truncated:
        text += f"; {train.num_truncated:,} longer than task.max_length {train.settings.max_length}"
    if train.num_stripped_answers:
        text += f"; {train.num_stripped_answers:,} answers lost the white space around them"
    if train.num_lost_answers:
        text += f"; {train.num_lost_answers:,} questions are not learned, because no window has their whole answer"
    if train.num_repaired_labels:
        text += f"; {train.num_repaired_labels:,} labels I- without an entity before them begin one, as in conlleval"
    if kind.head is None:
        ends = end_ids(train.settings, tokenizer)
        if not any(np.isin(example.target, ends).any() for example in train.examples):
            text += (
                f"; none is learned to end with one of the tokens {list(ends)}, so generated texts will not end either"
            )
    labels = train.labels
    return text + (f"; labels: {', '.join(labels[:20])}{', ...' if len(labels) > 20 else ''}" if labels else "")


def _describe_parameters(engine: Engine, config: FinetuneConfig) -> str:
    trained, total = engine.num_parameters(only_trainable=True), engine.num_parameters()
    return f"{config.method.kind}: {trained:,} of {total:,} parameters are trained ({trained / total:.2%})"


def _report_seeds(config: FinetuneConfig, results: list[dict]) -> None:
    """Prints the mean and the standard deviation of each score over the seeds, and writes them to RUN-seeds.json."""
    summary = {}
    for name in results[0]:
        values = [result[name] for result in results]
        summary[name] = {"mean": statistics.mean(values), "deviation": statistics.stdev(values), "values": values}
    path = Path(config.run.dir) / f"{config.run.name}-seeds.json"
    path.write_text(json.dumps({"seeds": config.task.seeds, **summary}, indent=1) + "\n")
    for name, figures in summary.items():
        print(f"{name}: {figures['mean']:.4f} +- {figures['deviation']:.4f} over seeds {config.task.seeds}")
