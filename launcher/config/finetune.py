"""The typed tree of a fine-tuning run's configuration."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from ingot.launcher.config.distillation import Distillation
from ingot.launcher.config.pretrain import Loss, Optimizer, Parallel, Run
from ingot.launcher.config.types import (
    ColumnNumber,
    NonNegativeCount,
    NonNegativeFloat,
    PositiveCount,
    PositiveFloat,
    Seed,
    UnitIntervalBelowOne,
)
from ingot.parallel.mesh_sizes import sizes

SCORES = {
    "classification": ["accuracy", "loss", "f1", "f1_macro", "matthews", "precision", "recall"],
    "multi_label": ["f1_micro", "loss", "f1_macro", "accuracy"],
    "regression": ["spearman", "loss", "pearson", "mean_squared_error"],
    "choice": ["accuracy", "loss"],
    "tagging": ["f1", "loss", "precision", "recall", "accuracy"],
    "answers": ["f1", "loss", "exact_match"],
    "generation": ["loss", "perplexity"],
}
"""By kind of task: the scores of an evaluation, first the one that chooses the best checkpoint by default."""
TEXTS = {
    "classification": ["text"],
    "multi_label": ["text"],
    "regression": ["text"],
    "choice": ["text", "endings"],
    "tagging": ["words"],
    "answers": ["question", "context"],
    "generation": ["input", "output"],
}

PROMPTS = ("prompt", "p_tuning", "prefix")
"""Methods that learn tokens before a text."""


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
    """Tokenizer folder; by default the one of the model."""
    pretrained: bool = True
    """false takes only the shape and the tokenizer and starts from random weights, to compare: the difference is what
    pretraining gives."""
    keep_layers: list[NonNegativeCount] = field(default_factory=list)
    """Layers to keep, counted from 0: every second one for a student (Sanh et al. 2019). Empty keeps all."""


@dataclass(frozen=True)
class Task:
    """What is to be learned, from which files."""

    kind: Literal["classification", "multi_label", "regression", "choice", "tagging", "answers", "generation"] = (
        "classification"
    )
    """classification: one label of a set. multi_label: any number of them. regression: numbers. choice: which ending
    follows. tagging: a label for each word. answers: a passage of a paragraph. generation: a text that follows."""
    train: str = ""
    """File to learn from: .tsv, .csv, .jsonl, .json, .parquet, CoNLL columns, SQuAD's .json, or a folder that datasets
    saved (FOLDER:SPLIT)."""
    validation: str | None = None
    """File to score while training, and by which the best checkpoint is chosen."""
    text_columns: list[str] = field(default_factory=list)
    """Columns: of the text, or of the two of a pair; by default text; choice: text, endings; tagging: words; answers:
    question, context; generation: input, output, or one column of chat messages."""
    label_column: str = "label"
    """Column of the label; for regression several, with commas between."""
    labels: list[str] | None = None
    """The set of labels; by default all that the training file has."""
    conll_word_column: ColumnNumber = 0
    """Column of the word in CoNLL files, counted from 0."""
    conll_label_column: ColumnNumber = -1
    """Column of the label in CoNLL files; -1 is the last."""
    template: str = "{input}"
    """What a generation task puts around its input; must contain {input}."""
    max_length: PositiveCount = 128
    """Most tokens of an example. Tagging and answers cut longer ones into windows."""
    overlong: Literal["truncate", "refuse"] = "truncate"
    """What happens to an example that is longer: its end is cut off and it is counted, or the run is refused."""
    doc_stride: NonNegativeCount = 64
    """Tokens by which the windows of a long paragraph overlap (answers)."""
    document_context: NonNegativeCount = 0
    """Tagging of CoNLL files: most tokens of the document that stand on either side of a sentence, without labels, as
    far as task.max_length has room. Documents begin at -DOCSTART-."""
    max_answer_tokens: PositiveCount = 30
    """Most tokens of an answer."""
    pooling: Literal["first", "last", "mean"] | None = None
    """What stands for a text: its first token (BERT), its last (GPT), or the mean of all; by default as the model's
    family has it."""
    dropout: UnitIntervalBelowOne | None = None
    """Dropout of the whole model while fine-tuning; by default what its configuration says."""
    epochs: NonNegativeFloat = 3.0
    """Passes over the training file, where run.steps is 0."""
    best_metric: str | None = None
    """The score by which the best checkpoint is chosen, loss included; by default the task's own."""
    early_stopping_patience: NonNegativeCount = 0
    """Evaluations without a better score after which the run ends; 0 never ends it."""
    seeds: list[Seed] = field(default_factory=list)
    """Seeds to run one after the other, each in a run.name-seedN of its own, with mean and deviation at the end; empty
    runs run.seed alone."""


@dataclass(frozen=True)
class Method:
    """Which parameters learn, and how they are kept from over-fitting."""

    kind: Literal["full", "head", "lora", "adalora", "ia3", "adapters", "prompt", "p_tuning", "prefix"] = "full"
    """full: all. head: the task's head alone. lora, adalora (Zhang et al. 2023) and ia3: small additions to the
    matrices, by the peft library. adapters: bottlenecks behind attention and MLP (Houlsby et al. 2019). prompt,
    p_tuning and prefix: tokens before the text. The head of a task learns with each."""
    num_virtual_tokens: PositiveCount = 20
    """Tokens that prompt, p_tuning and prefix learn."""
    r: PositiveCount = 8
    """Rank of lora, width of adapters; of adalora the mean rank that is left in the end."""
    init_r: PositiveCount = 12
    """Rank with which each matrix of adalora begins."""
    lora_alpha: PositiveFloat = 16.0
    """Scale of lora: the product of its matrices counts lora_alpha / r (adalora: lora_alpha / init_r)."""
    lora_dropout: UnitIntervalBelowOne = 0.0
    """Dropout before lora, in training."""
    target_modules: list[str] = field(default_factory=list)
    """Modules that lora, adalora and ia3 change: query, key, value, output (of attention), up, gate, down (of the MLP);
    by default query and value for lora, all for adalora, key, value and down for ia3."""
    layer_decay: PositiveFloat = 1.0
    """Factor of the learning rate from each layer to the one below it (Howard and Ruder 2018); 1 is the same for
    all."""
    unfreeze_steps: NonNegativeCount = 0
    """Steps after which the next layer begins to learn, from the head downwards; 0 lets all learn at once."""
    adversarial: Literal["none", "fgm", "freelb"] = "none"
    """Learns at disturbed embeddings too: fgm in one step (Miyato et al. 2017), freelb in several (Zhu et al. 2020)."""
    adversarial_norm: NonNegativeFloat = 1.0
    """Norm of the disturbance of each example."""
    adversarial_steps: PositiveCount = 3
    """Number of ascent steps of freelb."""
    r_drop: NonNegativeFloat = 0.0
    """Weight of the divergence between two passes with different dropout (Liang et al. 2021); 0 is one pass."""
    sparsity: UnitIntervalBelowOne = 0.0
    """Share of the weights of each block's matrices that are 0 in the end, the smallest ones; 0 prunes nothing."""
    sparsity_begin: NonNegativeCount = 0
    """Step from which pruning sets in, and the ranks of adalora fall."""
    sparsity_end: NonNegativeCount = 0
    """Step at which the sparsity, or adalora's rank, is reached; 0 is two thirds of the run."""
    sparsity_every: PositiveCount = 20
    """Steps between two times of pruning."""


@dataclass(frozen=True)
class TaskBatch:
    """Batch sizes. The examples of a step are packed into rows without padding, equally many on each rank."""

    global_size: PositiveCount = 32
    """Number of examples in one optimizer step, over all ranks."""
    micro_tokens: PositiveCount = 4096
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
            *_start_problems(self, world_size),
            *_task_problems(self),
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
    if run.eval_samples:
        problems.append("run.eval_samples is for pretraining; shorten task.validation instead")
    if config.task.kind != "generation" and config.loss.z_loss:
        problems.append("loss.z_loss is of language models; set it to 0")
    if config.task.kind in ("regression", "multi_label") and config.loss.label_smoothing:
        problems.append(f"loss.label_smoothing is of classes; set it to 0 for {config.task.kind}")
    return problems


def _task_problems(config: FinetuneConfig) -> list[str]:
    task, problems = config.task, []
    if not task.train:
        problems.append("task.train names no file; give one to learn from")
    if task.early_stopping_patience and not (task.validation and config.run.eval_every):
        problems.append("task.early_stopping_patience needs task.validation and run.eval_every above 0")
    if task.best_metric is not None and task.best_metric not in SCORES[task.kind]:
        problems.append(f"task.best_metric {task.best_metric} is none of {task.kind}: {', '.join(SCORES[task.kind])}")
    if task.best_metric is not None and task.validation is None:
        problems.append(f"task.best_metric {task.best_metric} chooses nothing without task.validation; name a file")
    if len(set(task.seeds)) < len(task.seeds):
        problems.append(f"task.seeds {task.seeds} has one twice, which would be the same run")
    if task.document_context and task.kind != "tagging":
        problems.append(f"task.document_context is of tagging; set it to 0 for {task.kind}")
    if not config.run.steps and not task.epochs:
        problems.append("task.epochs and run.steps are both 0; set one of them")
    return problems


def _method_problems(config: FinetuneConfig, world_size: int) -> list[str]:
    method, kind, tensor, problems = config.method, config.task.kind, config.parallel.tensor, []
    if tensor > 1 and method.kind not in ("full", "head"):
        problems.append(
            f"parallel.tensor {tensor} cannot split what method.kind {method.kind} adds; set it to 1, or method.kind "
            f"to full or head"
        )
    if tensor > 1 and method.adversarial != "none":
        problems.append(f"method.adversarial {method.adversarial} needs whole embeddings; set parallel.tensor to 1")
    if (method.adversarial != "none" or method.r_drop) and kind not in ("classification", "choice"):
        problems.append(f"method.adversarial and method.r_drop are of classification and choice, not {kind}")
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
    teacher, method, kind, problems = config.distillation.teacher, config.method, config.task.kind, []
    if (method.adversarial != "none") + bool(method.r_drop) + (teacher is not None) > 1:
        problems.append("method.adversarial, method.r_drop and distillation.teacher do not go together; set only one")
    if teacher is not None:
        if kind not in ("classification", "choice", "tagging", "generation"):
            problems.append(f"distillation is of classification, choice, tagging, generation, not {kind}")
        if method.kind in PROMPTS:
            problems.append(f"distillation.teacher does not know the tokens of method.kind {method.kind}")
    return problems
