"""A fine-tuning run, from its configuration to its exit code."""

import json
import math
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from torch import Tensor

from ingot.data.corpus.quarantine import Quarantine
from ingot.data.tasks.reader import TaskReader
from ingot.data.tasks.tasks import TaskData, TaskSettings, read_task
from ingot.data.tokenizers.tokenizer import Tokenizer
from ingot.launcher.config.finetune import SCORES, TEXTS, FinetuneConfig
from ingot.launcher.finetuning.evaluation import evaluate
from ingot.launcher.finetuning.plots import draw_confusion, draw_curves
from ingot.launcher.finetuning.predictions import report, truth
from ingot.launcher.finetuning.pruning import Pruner, each_matrix, magnitude, singular_values, triplets
from ingot.launcher.loading import peft_methods
from ingot.launcher.loading.base_model import Start, find_tokenizer, open_start
from ingot.launcher.loading.teacher import learn_from
from ingot.launcher.runtime.exit_codes import DONE, bad_input
from ingot.launcher.runtime.peer_watchdog import Lifeline
from ingot.launcher.runtime.run_lock import lock
from ingot.launcher.training.bad_data import DamageWatch
from ingot.launcher.training.best_checkpoint import Best
from ingot.launcher.training.build import put_under_engine
from ingot.launcher.training.logger import Metrics
from ingot.launcher.training.resume import check_same_data, choose_start, resume
from ingot.launcher.training.setup import about_checkpoints, folder_of, open_run, start_mesh
from ingot.launcher.training.trainer import Trainer
from ingot.model.config import ModelConfig
from ingot.model.costs.flops import flops_per_token
from ingot.model.finetuning.adversarial import make_robust
from ingot.model.tensor_plan import tensor_plan, tensor_problems
from ingot.parallel import mesh as meshes
from ingot.parallel.engines.engine import Engine
from ingot.parallel.mesh import Mesh


def finetune(config: FinetuneConfig) -> int:
    """Runs, once or for each of task.seeds, and returns the exit code. Each rank calls it.

    Raises:
        BadInput: anything that the user can mend, before the run folder is touched.
    """
    try:
        with Lifeline() as lifeline:
            with bad_input():
                mesh = start_mesh(config, lifeline)
                files = read_files(config)
            results = []
            for seed in config.task.seeds or [config.run.seed]:
                name = f"{config.run.name}-seed{seed}" if config.task.seeds else config.run.name
                one = replace(
                    config, run=replace(config.run, seed=seed, name=name), task=replace(config.task, seeds=[])
                )
                code, scores = _run(one, mesh, files)
                if code != DONE:
                    return code
                results.append(scores)
            if mesh.is_main and len(results) > 1:
                _tell_together(config, results)
            return DONE
    finally:
        meshes.stop()  # threads of a process group that is left alone can abort the process as it exits


@dataclass
class Files:
    """What a run reads: the same for each seed."""

    tokenizer: Tokenizer
    train: TaskData
    validation: TaskData | None


def read_files(config: FinetuneConfig) -> Files:
    """Reads the task's files with the tokenizer of the start.

    Raises:
        ValueError, OSError: what is wrong with them.
    """
    tokenizer = find_tokenizer(config.init.model, config.init.tokenizer)
    settings = task_settings(config)
    train = read_task(config.task.train, settings, tokenizer)
    if config.task.kind in ("classification", "multi_label", "tagging") and len(train.labels) < 2:
        raise ValueError(f"{config.task.train} has only the label {train.labels[0]!r}; there must be two or more")
    validation = None
    if config.task.validation is not None:
        validation = read_task(config.task.validation, replace(settings, labels=train.labels or None), tokenizer)
    return Files(tokenizer, train, validation)


def open_model(config: FinetuneConfig, files: Files) -> Start:
    """The model that learns, before it has memory.

    Raises:
        ValueError: there is none, or it does not fit the task or the tokenizer.
    """
    tokenizer, task = files.tokenizer, config.task
    start = open_start(
        config.init.model,
        task.kind,
        files.train.labels,
        seed=config.run.seed,
        weights=config.init.pretrained,
        layers=config.init.keep_layers,
        dropout=task.dropout,
        pooling=task.pooling,
    )
    model = start.model.config
    if tokenizer.vocab_size > model.vocab_size:
        raise ValueError(
            f"tokenizer {tokenizer.folder} has {tokenizer.vocab_size} ids, and the model in {config.init.model} knows "
            f"{model.vocab_size}; name its own with init.tokenizer"
        )
    learned = config.method.num_virtual_tokens if config.method.kind in peft_methods.PROMPTS else 0
    if task.max_length + learned > model.max_position_embeddings:
        raise ValueError(
            f"task.max_length {task.max_length} and {learned} learned tokens are beyond the model's "
            f"{model.max_position_embeddings} positions; lower task.max_length"
        )
    if problems := tensor_problems(model, config.parallel.tensor, 0):  # rows are made to fit
        raise ValueError("; ".join(problems))
    return start


def task_settings(config: FinetuneConfig) -> TaskSettings:
    task = config.task
    return TaskSettings(
        task.kind,
        task.text_columns or TEXTS[task.kind],
        label=task.label_column,
        labels=task.labels,
        word_column=task.conll_word_column,
        label_column=task.conll_label_column,
        max_length=task.max_length,
        refuse=task.overlong == "refuse",
        stride=task.doc_stride,
        context=task.document_context,
        prompt=task.template,
    )


def reader_of(
    config: FinetuneConfig, data: TaskData, model: ModelConfig, mesh: Mesh | None, *, shuffle: bool
) -> TaskReader:
    """Batches for this rank of a mesh, or, without one, for a process alone."""
    ranks = {} if mesh is None else {"multiple": mesh.tensor, "rank": mesh.data_rank, "num_ranks": mesh.num_data}
    return TaskReader(
        data.examples,
        global_size=config.batch.global_size,
        micro_tokens=config.batch.micro_tokens,
        labels="labels" if config.task.kind == "generation" else "targets",
        seed=config.run.seed,
        shuffle=shuffle,
        token_types=model.type_vocab_size > 1,
        **ranks,
    )


def values_of(start: Start, shapes: dict[str, tuple[int, ...]], seed: int) -> Callable[..., Tensor]:
    """The first values of a model with a method's additions, box by box."""

    def part(name: str, offset: tuple[int, ...], shape: tuple[int, ...]) -> Tensor:
        if not peft_methods.is_added(name):
            return start.part(peft_methods.plain_name(name), offset, shape)
        whole = peft_methods.first_values(name, shapes[name], seed)
        return whole[tuple(slice(o, o + n) for o, n in zip(offset, shape, strict=True))]

    return part


def engine_of(config: FinetuneConfig, start: Start, mesh: Mesh, labels: list[str], tokenizer: Tokenizer) -> Engine:
    """The model with the method's additions, and a teacher beside it, under its engine, filled."""
    model, method = start.model, config.method
    peft_methods.apply(method, model, has_head=config.task.kind != "generation")
    make_robust(model, method.adversarial, method.adversarial_norm, method.adversarial_steps, method.r_drop)
    learn_from(
        config.distillation,
        model,
        kind=config.task.kind,
        labels=labels,
        tokenizer=tokenizer,
        length=config.task.max_length,
        precision=config.parallel.precision,
        device=mesh.device,
    )
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    pace_of = peft_methods.pace(method, model.config.num_hidden_layers)
    engine = put_under_engine(
        model, config.optimizer, config.parallel, mesh, plan=tensor_plan(model.config), pace_of=pace_of
    )
    engine.fill(values_of(start, shapes, config.run.seed))
    return engine


def pruner_of(config: FinetuneConfig, engine: Engine) -> Callable[[int], object]:
    """What is done after each step: pruning, of weights or of ranks, where it is configured."""
    method, steps = config.method, config.run.steps
    share, group_of, importance = method.sparsity, each_matrix, magnitude
    if method.kind == "adalora":
        share, group_of, importance = 1 - method.r / method.init_r, singular_values, triplets
    if not share:
        return lambda step: None
    span = {"begin": method.sparsity_begin, "end": method.sparsity_end or max(1, 2 * steps // 3)}
    return Pruner(engine, group_of, importance=importance, final=share, every=method.sparsity_every, last=steps, **span)


def _run(config: FinetuneConfig, mesh: Mesh, files: Files) -> tuple[int, dict]:
    """One run: its exit code, and the best scores."""
    folder = folder_of(config)
    with bad_input():
        held = lock(folder) if folder.is_dir() and mesh.is_main else None
        start, tokenizer = open_model(config, files), files.tokenizer
        model, task = start.model.config, getattr(start.model, "task", None)
        parts = [files.train] if files.validation is None else [files.train, files.validation]
        template = tokenizer.template(pair=False)
        train, *validation = (peft_methods.with_learned_tokens(config.method, part, model, template) for part in parts)
        reader = reader_of(config, train, model, mesh, shuffle=True)
        held_out = [reader_of(config, part, model, mesh, shuffle=False) for part in validation]
        steps = config.run.steps or max(1, math.ceil(config.task.epochs * reader.num_instances / reader.global_size))
        config = replace(config, run=replace(config.run, steps=steps))
        engine = engine_of(config, start, mesh, train.labels, tokenizer)
        stamp = {"examples": reader.fingerprint, "count": reader.num_instances, "seed": config.run.seed}
        check_same_data(stamp)
        progress, notes = resume(engine, choose_start(config.run.resume, folder), stamp, asdict(model))
    said = [start.note, _about_data(config, train), _about_parameters(engine, config)]
    metrics, held = open_run(config, tokenizer, mesh, held, progress, said, notes)
    watch = DamageWatch(Quarantine(), metrics, folder, max_bad_fraction=0.0)
    watch.start([])
    about = about_checkpoints(config, stamp, tokenizer, mesh)
    about |= {"model": asdict(model), "task": None if task is None else asdict(task), "labels": train.labels}
    predicted: list = []

    def evaluate_now() -> dict:
        nonlocal predicted
        scores, predicted = evaluate(
            engine, held_out[0], validation[0], config.task.kind, config.task.max_answer_tokens
        )
        return scores

    best = Best(
        folder / "best",
        config.task.best_metric or SCORES[config.task.kind][0],
        engine,
        metrics,
        progress,
        patience=config.task.early_stopping_patience,
        every=config.run.eval_every,
        about=about,
    )

    def enough(scores: dict) -> bool:
        result = best(scores)
        if best.is_new and predicted and mesh.is_main:
            _write_predictions(folder, config, validation[0], predicted, metrics, best.step)
        return result

    lengths = [len(example.ids) for example in train.examples]
    trainer = Trainer(
        config,
        engine,
        reader,
        metrics,
        folder,
        progress=progress,
        evaluate=evaluate_now if held_out else None,
        watch=watch,
        about=about,
        flops_per_token=flops_per_token(model, round(float(np.mean(lengths)))),
        enough=enough,
        after_step=pruner_of(config, engine),
    )
    try:
        code = trainer.run()
        if code == DONE and best.scores:
            shown = ", ".join(f"{name} {value:.4f}" for name, value in best.scores.items())
            metrics.say(f"done: best at step {best.step}: {shown}")
            if mesh.is_main:
                (folder / "best.json").write_text(json.dumps({"step": best.step, **best.scores}) + "\n")
                metrics.figure("curves", draw_curves(folder / "metrics.jsonl"), progress.step)
        return code, best.scores
    finally:
        metrics.close()
        if held is not None:
            held.close()


def _write_predictions(
    folder: Path, config: FinetuneConfig, data: TaskData, predicted: list, metrics: Metrics, step: int
) -> None:
    """RUN/predictions.jsonl and RUN/report.txt of the best step, and a confusion matrix in TensorBoard."""
    kind, true = config.task.kind, truth(config.task.kind, data, data.labels)
    with (folder / "predictions.jsonl").open("w") as file:
        for source, mine, right in zip(data.sources, predicted, true, strict=True):
            line = {"where": source.where, "predicted": mine, "true": right}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    table = report(kind, predicted, true, data.labels)
    if table:
        (folder / "report.txt").write_text(table)
    if kind == "classification":
        metrics.figure("confusion", draw_confusion(predicted, true, data.labels), step)


def _about_data(config: FinetuneConfig, train: TaskData) -> str:
    lengths = [len(example.ids) for example in train.examples]
    text = f"{config.task.train}: {len(lengths):,} examples of {np.mean(lengths):.1f} tokens, at most {max(lengths)}"
    if train.truncated:
        text += f"; {train.truncated:,} longer than task.max_length {config.task.max_length}"
    if train.mended:
        text += f"; {train.mended:,} labels I- that continue nothing begin an entity, as in conlleval"
    labels = train.labels
    return text + (f"; labels: {', '.join(labels[:20])}{', ...' if len(labels) > 20 else ''}" if labels else "")


def _about_parameters(engine: Engine, config: FinetuneConfig) -> str:
    learning, total = engine.num_parameters(learning=True), engine.num_parameters()
    return f"{config.method.kind}: {learning:,} of {total:,} parameters learn ({learning / total:.2%})"


def _tell_together(config: FinetuneConfig, results: list[dict]) -> None:
    """Mean and standard deviation of each score over the seeds, also in RUN-seeds.json."""
    together = {}
    for name in results[0]:
        values = [result[name] for result in results]
        together[name] = {"mean": statistics.mean(values), "deviation": statistics.stdev(values), "values": values}
    path = Path(config.run.dir) / f"{config.run.name}-seeds.json"
    path.write_text(json.dumps({"seeds": config.task.seeds, **together}, indent=1) + "\n")
    for name, found in together.items():
        print(f"{name}: {found['mean']:.4f} +- {found['deviation']:.4f} over seeds {config.task.seeds}")
