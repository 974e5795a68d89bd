"""The typed tree of a fine-tuning run's configuration."""

from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal

from ingot.launcher.config.distillation import Distillation
from ingot.launcher.config.optimizer import Loss, Optimizer
from ingot.launcher.config.parallel import Parallel
from ingot.launcher.config.pretrain import Run
from ingot.launcher.config.schema.types import (
    ColumnNumber,
    NonNegativeCount,
    NonNegativeFloat,
    PositiveCount,
    PositiveFloat,
    Range,
    Seed,
    Size,
    UnitIntervalBelowOne,
)
from ingot.launcher.tasks.registry import DEFAULT, names_where, task_kind
from ingot.parallel.mesh_sizes import sizes

PROMPT_METHODS = ("prompt_tuning", "p_tuning", "prefix_tuning")
"""Methods that learn virtual tokens before a text."""


@dataclass(frozen=True)
class FinetuneRun(Run):
    """The run: where it writes, how many steps it trains, how often it reports and saves."""

    steps: NonNegativeCount = 0
    """Number of optimizer steps in total; 0 trains task.epochs."""
    eval_every: NonNegativeCount = 0
    """Steps between two evaluations on task.validation; 0 evaluates only at the end."""
    save_every: NonNegativeCount = 0
    """Steps between two checkpoints; 0 saves only at the end."""


@dataclass(frozen=True)
class Init:
    """The model that fine-tuning starts from."""

    model: str = ""
    """A run, a checkpoint, a Hugging Face folder or a name on its hub. The weights of the body are taken, and those of
    the head if it fits the task."""
    tokenizer: str | None = None
    """Tokenizer: a folder, a name on the hub, or a file; by default the one of the model."""
    pretrained: bool = True
    """false takes only the shape and the tokenizer and starts from random weights, to compare: the difference is what
    pretraining gives."""
    keep_layers: list[Annotated[int, Range(0, 1000)]] = field(default_factory=list)
    """Layers to keep, counted from 0: every second one for a student (Sanh et al. 2019). Empty keeps all."""


@dataclass(frozen=True)
class Task:
    """What is learned, from which files."""

    kind: str = DEFAULT
    """Kind of the task: one of those that the first lines of the help describe."""
    train: str = ""
    """File to learn from: .tsv, .csv, .jsonl, .json, .parquet, CoNLL columns, SQuAD's .json, or a folder that datasets
    saved (FOLDER:SPLIT)."""
    validation: str | None = None
    """File of the same format for the evaluations, which choose the best checkpoint."""
    text_columns: list[str] = field(default_factory=list)
    """Columns of the input. Empty takes the default of the task's kind. Pairs have two columns, multiple_choice the
    text and one column with a list of endings or one for each ending, instruction input and output, or one column of
    chat messages."""
    label_column: str = "label"
    """Column of the label; for regression several, with commas between them."""
    labels: list[str] | None = None
    """The set of labels; null takes all that the training file has."""
    label_names: list[str] = field(default_factory=list)
    """Other names for labels of the files, as LABEL=NAME: 0=negative 1=positive. Predictions, reports and the exported
    model have the names."""
    conll_word_column: ColumnNumber = 0
    """Column of the word in CoNLL files, counted from 0."""
    conll_label_column: ColumnNumber = -1
    """Column of the label in CoNLL files; -1 is the last."""
    template: str = "{input}"
    """Text around the input of an instruction; it must contain {input}."""
    chat_template: Literal["auto", "always", "never"] = "auto"
    """Whether the tokenizer's chat template writes the examples of instruction, of which the model learns what the
    assistant says. auto: chats, not inputs and outputs. always: an input is what the user says, and an output the
    answer. never: chats as lines ROLE: CONTENT. A tokenizer without a template gets one, which stays with the model."""
    max_length: Size = 128
    """Maximum number of tokens of an example. Longer sentences of token_classification and paragraphs of
    question_answering become several windows."""
    overlong: Literal["truncate", "refuse"] = "truncate"
    """What happens to a longer example: its end is dropped and the example counted, or the run stops with a message."""
    doc_stride: Annotated[int, Range(0, 10**6)] = 64
    """Tokens by which the windows of a long paragraph overlap (question_answering)."""
    document_context: Annotated[int, Range(0, 10**6)] = 0
    """Maximum number of tokens of the document that are added before and after a sentence, without labels, if
    task.max_length has room (token_classification of CoNLL files). Documents begin at -DOCSTART-."""
    max_answer_tokens: Size = 30
    """Maximum number of tokens of an answer (question_answering)."""
    no_answer: bool = True
    """Whether a question may have no answer in its paragraph, as in SQuAD 2.0. false, as in SQuAD 1.1: each has one, so
    that a question without is refused and a prediction is never empty (question_answering)."""
    pooling: Literal["first", "last", "mean"] | None = None
    """Which hidden state stands for a text: that of the first token (BERT), of the last (GPT), or the mean of all; null
    is the choice of the model's family."""
    dropout: UnitIntervalBelowOne | None = None
    """Dropout of the whole model while fine-tuning; null keeps that of the model's configuration."""
    epochs: Annotated[float, Range(0, 10**6)] = 3.0
    """Number of passes over the training file, if run.steps is 0."""
    best_metric: str | None = None
    """Score that chooses the best checkpoint; null takes the first score of the task's kind."""
    early_stopping_patience: NonNegativeCount = 0
    """Number of evaluations without a better score after which the run ends; 0 never ends it early."""
    seeds: list[Seed] = field(default_factory=list)
    """Seeds to run one after the other. Each has its own folder run.name-seedN, and the mean and standard deviation of
    the scores are reported at the end. Empty runs once, with run.seed."""


@dataclass(frozen=True)
class Method:
    """Which parameters learn, and what prevents over-fitting."""

    kind: Literal[
        "full", "linear_probe", "lora", "adalora", "ia3", "adapters", "prompt_tuning", "p_tuning", "prefix_tuning"
    ] = "full"
    """full: all parameters. linear_probe: only the head of the task. lora, adalora (Zhang et al. 2023) and ia3: small
    additions to the matrices, by the peft library. adapters: bottlenecks after attention and MLP (Houlsby et al. 2019).
    prompt_tuning, p_tuning and prefix_tuning: virtual tokens before the text. The head of the task learns with each."""
    num_virtual_tokens: Annotated[int, Range(1, 10**5)] = 20
    """Number of virtual tokens of prompt_tuning, p_tuning and prefix_tuning."""
    r: Annotated[int, Range(1, 10**5)] = 8
    """Rank of lora; width of adapters; mean rank at the end of adalora."""
    init_r: Annotated[int, Range(1, 10**5)] = 12
    """Initial rank of each matrix of adalora."""
    lora_alpha: PositiveFloat = 16.0
    """Scale of lora: the product of its matrices is multiplied by lora_alpha / r (adalora: lora_alpha / init_r)."""
    lora_dropout: UnitIntervalBelowOne = 0.0
    """Dropout of the input of lora, in training."""
    target_modules: list[str] = field(default_factory=list)
    """Modules that lora, adalora and ia3 change: query, key, value, output (of attention), up, gate, down (of the MLP).
    Empty takes query and value for lora, all for adalora, key, value and down for ia3."""
    layer_decay: PositiveFloat = 1.0
    """Factor of the learning rate from each layer to the one below it (Howard and Ruder 2018); 1 is the same rate for
    all."""
    unfreeze_steps: NonNegativeCount = 0
    """Steps after which the next layer begins to learn, from the head downwards; with 0 all learn from the start."""
    adversarial: Literal["none", "fgm", "freelb"] = "none"
    """Also trains on perturbed embeddings: fgm in one step (Miyato et al. 2017), freelb in several (Zhu et al.
    2020)."""
    adversarial_norm: NonNegativeFloat = 1.0
    """Norm of the perturbation of each example."""
    adversarial_steps: Annotated[int, Range(1, 1000)] = 3
    """Number of ascent steps of freelb."""
    r_drop: NonNegativeFloat = 0.0
    """Weight of the divergence between two passes with different dropout (Liang et al. 2021); 0 computes one pass."""
    sparsity: UnitIntervalBelowOne = 0.0
    """Fraction of the weights of each block's matrices that are 0 at the end, the smallest ones; 0 prunes nothing."""
    sparsity_begin: NonNegativeCount = 0
    """Step at which pruning, or the reduction of adalora's ranks, begins."""
    sparsity_end: NonNegativeCount = 0
    """Step at which the final sparsity, or rank of adalora, is reached; 0 is two thirds of the run."""
    sparsity_every: PositiveCount = 20
    """Steps between two prunings."""


@dataclass(frozen=True)
class TaskBatch:
    """Batch sizes. The examples of a step are packed into rows without padding, equally many on each rank."""

    global_size: Annotated[int, Range(1, 10**7)] = 32
    """Number of examples in one optimizer step, over all ranks."""
    micro_tokens: Annotated[int, Range(1, 10**7)] = 4096
    """Maximum number of tokens that one rank computes at a time. It changes memory and speed, never the result."""


def _optimizer() -> Optimizer:
    return Optimizer(
        learning_rate=5e-5,
        betas=(0.9, 0.999),
        weight_decay=0.01,
        schedule="linear",
        warmup_steps=0,
        min_lr_ratio=0.0,
    )


@dataclass(frozen=True)
class FinetuneConfig:
    """A fine-tuning run."""

    run: FinetuneRun = field(default_factory=FinetuneRun)
    init: Init = field(default_factory=Init)
    task: Task = field(default_factory=Task)
    method: Method = field(default_factory=Method)
    distillation: Distillation = field(default_factory=Distillation)
    batch: TaskBatch = field(default_factory=TaskBatch)
    optimizer: Optimizer = field(default_factory=_optimizer)
    loss: Loss = field(default_factory=Loss)
    parallel: Parallel = field(default_factory=Parallel)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def check(self, world_size: int) -> None:
        """Looks for options that do not fit together on so many processes, before anything is started.

        Raises:
            ValueError: all problems at once, each with its value and a remedy.
        """
        problems = [
            *self.parallel.problems(),
            *self.optimizer.problems(self.parallel),
            *self.run.profile_problems(world_size),
            *_start_problems(self, world_size),
            *_task_problems(self),
            *_kind_problems(self),
            *_method_problems(self, world_size),
            *self.distillation.problems(self.parallel.tensor),
            *_distillation_problems(self),
        ]
        if problems:
            raise ValueError("; ".join(problems))

    def sharded(self, world_size: int) -> bool:
        """Whether parameters lie in parts on several ranks."""
        if self.parallel.engine == "zero":
            return self.parallel.zero_stage == 3
        return self.parallel.offload == "all" or (world_size > 1 and self.parallel.data_shard != 1)


def _start_problems(config: FinetuneConfig, world_size: int) -> list[str]:
    """Of the sections init, run, optimizer and loss, and of the layout."""
    problems, run = [], config.run
    if not config.init.model:
        problems.append("init.model names nothing to start from; give a run, a checkpoint or a Hugging Face folder")
    try:
        sizes(world_size, config.parallel.tensor, config.parallel.data_shard)
    except ValueError as error:
        problems.append(str(error))
    if config.optimizer.kind != "adamw":
        problems.append(f"optimizer.kind {config.optimizer.kind} is for pretraining; set it to adamw")
    if run.dry_run:
        problems.append("run.dry_run is for pretraining; leave it out")
    if run.init_from is not None:
        problems.append("run.init_from is for pretraining; init.model says where fine-tuning starts")
    if run.epochs is not None or run.tokens is not None:
        problems.append("run.epochs and run.tokens are for pretraining; set task.epochs or run.steps")
    if run.eval_samples:
        problems.append("run.eval_samples is for pretraining; shorten task.validation instead")
    return problems


def _kind_problems(config: FinetuneConfig) -> list[str]:
    """Of what the kind of the task does not allow, or the name of the kind."""
    task, method, teacher, problems = config.task, config.method, config.distillation.teacher, []
    try:
        kind = task_kind(task.kind)
    except ValueError as error:
        return [str(error)]
    if config.loss.z_loss and not kind.z_loss:
        problems.append(f"loss.z_loss is for {names_where('z_loss')}; set it to 0 for {kind.name}")
    if config.loss.label_smoothing and not kind.label_smoothing:
        names = names_where("label_smoothing")
        problems.append(f"loss.label_smoothing is for {names}; set it to 0 for {kind.name}")
    if (method.adversarial != "none" or method.r_drop) and not kind.adversarial:
        names = names_where("adversarial")
        problems.append(f"method.adversarial and method.r_drop are for {names}, not {kind.name}; leave them out")
    if teacher is not None and not kind.distillation:
        problems.append(f"distillation is for {names_where('distillation')}, not {kind.name}; leave it out")
    if task.document_context and not kind.document_context:
        names = names_where("document_context")
        problems.append(f"task.document_context is for {names}; set it to 0 for {kind.name}")
    if task.label_names and not kind.has_label_set:
        problems.append(f"task.label_names is for {names_where('has_label_set')}, not {kind.name}; leave it out")
    if task.best_metric is not None and task.best_metric not in kind.metrics:
        problems.append(f"task.best_metric is {task.best_metric}; {kind.name} has {', '.join(kind.metrics)}")
    return problems


def _task_problems(config: FinetuneConfig) -> list[str]:
    task, problems = config.task, []
    if not task.train:
        problems.append("task.train names no file; give one to learn from")
    if task.early_stopping_patience and not (task.validation and config.run.eval_every):
        problems.append("task.early_stopping_patience needs task.validation and run.eval_every above 0")
    if task.best_metric is not None and task.validation is None:
        problems.append(f"task.best_metric {task.best_metric} chooses nothing without task.validation; name a file")
    if wrong := [part for part in task.label_names if not all(part.partition("="))]:
        problems.append(f"task.label_names has {', '.join(map(repr, wrong))}; give each as LABEL=NAME")
    if len({part.partition("=")[0] for part in task.label_names}) < len(task.label_names):
        problems.append(f"task.label_names {task.label_names} names a label twice; name each once")
    if len(set(task.seeds)) < len(task.seeds):
        problems.append(f"task.seeds {task.seeds} has one twice, which would be the same run")
    if not config.run.steps and not task.epochs:
        problems.append("task.epochs and run.steps are both 0; set one of them")
    return problems


def _method_problems(config: FinetuneConfig, world_size: int) -> list[str]:
    method, tensor, problems = config.method, config.parallel.tensor, []
    if tensor > 1 and method.kind not in ("full", "linear_probe"):
        problems.append(
            f"parallel.tensor {tensor} cannot split what method.kind {method.kind} adds; set it to 1, or method.kind "
            f"to full or linear_probe"
        )
    if tensor > 1 and method.adversarial != "none":
        problems.append(f"method.adversarial {method.adversarial} needs whole embeddings; set parallel.tensor to 1")
    if method.adversarial != "none" and config.sharded(world_size):
        problems.append(
            f"method.adversarial {method.adversarial} needs whole parameters; set parallel.zero_stage to 2 or less, or "
            f"parallel.data_shard to 1"
        )
    if method.sparsity_end and method.sparsity_begin >= method.sparsity_end:
        problems.append(
            f"method.sparsity_begin is {method.sparsity_begin}; it must be below method.sparsity_end "
            f"{method.sparsity_end}"
        )
    if method.sparsity and method.kind != "full":
        problems.append(f"method.sparsity needs method.kind full, which is {method.kind}")
    if method.kind == "adalora" and method.init_r < method.r:
        problems.append(f"method.init_r is {method.init_r}; it must be at least method.r {method.r}")
    if method.unfreeze_steps and method.kind != "full":
        problems.append(f"method.unfreeze_steps needs method.kind full, which is {method.kind}")
    return problems


def _distillation_problems(config: FinetuneConfig) -> list[str]:
    teacher, method, problems = config.distillation.teacher, config.method, []
    if (method.adversarial != "none") + bool(method.r_drop) + (teacher is not None) > 1:
        problems.append("method.adversarial, method.r_drop and distillation.teacher do not go together; set only one")
    if teacher is not None and method.kind in PROMPT_METHODS:
        problems.append(
            f"distillation.teacher does not know the virtual tokens of method.kind {method.kind}; choose another method"
        )
    return problems
