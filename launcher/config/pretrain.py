"""The typed tree of a training run's configuration: read from one YAML file, overridden on the command line, strict."""

from dataclasses import asdict, dataclass, field
from typing import Annotated, Literal

from ingot.data.loader.batch_sharding import check_batch_sizes
from ingot.launcher.config.distillation import Distillation
from ingot.launcher.config.optimizer import Loss, Optimizer
from ingot.launcher.config.parallel import Parallel
from ingot.launcher.config.schema.types import (
    ClosedUnitInterval,
    NonNegativeCount,
    NonNegativeFloat,
    OpenUnitInterval,
    PositiveCount,
    PositiveFloat,
    PositiveInt,
    Range,
    Ranks,
    Seed,
    Size,
    Threads,
)
from ingot.model.config import ModelConfig
from ingot.model.tensor_plan import tensor_problems
from ingot.parallel.mesh_sizes import sizes

OF_ONE_MACHINE = (
    *("data.threads", "data.prefetch", "data.cache_dir", "data.cache_bytes"),
    *("parallel.offload_dir", "parallel.compile_cache", "parallel.rendezvous_seconds"),
)
"""Options that may differ between ranks: they fit a machine's disks and cores, and decide nothing about the run."""


@dataclass(frozen=True)
class Run:
    """The run: where it writes, how many steps it trains, how often it reports and saves."""

    name: str = "run"
    """Name of the run. Its folder is run.dir/run.name."""
    dir: str = "runs"
    """Folder that holds the folders of runs."""
    seed: Seed = 1234
    """Seed of the initial weights, data order, masks and dropout."""
    steps: PositiveCount | None = None
    """Number of optimizer steps in total, including those before a resume; by default 1000, unless run.epochs or
    run.tokens says it."""
    epochs: Annotated[float, Range(0, 10**6, open_low=True)] | None = None
    """Number of passes over data.train, instead of run.steps: the run ends when it has read as many sequences as all
    corpora together have, so many times. The configuration of the run then holds run.steps."""
    tokens: PositiveInt | None = None
    """Number of tokens to train on, instead of run.steps. The configuration of the run then holds run.steps."""
    log_every: PositiveCount = 10
    """Steps between two train lines in metrics.jsonl."""
    gc_every: NonNegativeCount = 50
    """Steps after which Python collects its garbage, on all ranks at once; 0 lets each rank do it at any time."""
    eval_every: NonNegativeCount = 100
    """Steps between two evaluations on data.validation; 0 evaluates only at the end."""
    eval_samples: NonNegativeCount = 0
    """Number of validation sequences that an evaluation reads; 0 reads all."""
    save_every: NonNegativeCount = 500
    """Steps between two checkpoints; 0 saves only at the end."""
    keep_checkpoints: NonNegativeCount = 3
    """How many checkpoints stay on disk; 0 keeps all."""
    resume: str = "auto"
    """auto: continue from the newest intact checkpoint of this run, or start at step 0 if it has none. never: start at
    step 0, and refuse a folder that has checkpoints. Or the PATH of a run or checkpoint to continue from."""
    init_from: str | None = None
    """A run, a checkpoint or a Hugging Face folder. A run without checkpoints takes its first weights from there;
    everything else starts at step 0."""
    device: Literal["auto", "cuda", "cpu"] = "auto"
    """Where to compute. auto uses CUDA if a GPU is present."""
    deterministic: bool = False
    """Use only operators that give the same bits each time: a run that is stopped and resumed on the same number of the
    same GPUs then ends with the same bits as one that was not. Steps are slower. CPUs need it for no operator."""
    profile_steps: tuple[PositiveCount, PositiveCount] | None = None
    """First and last step that torch's profiler records. It writes a trace for Perfetto, and a table, into RUN/profile
    (docs/profiling.md)."""
    profile_rank: NonNegativeCount = 0
    """The rank that is profiled."""
    memory_snapshots: bool = False
    """Record what allocates memory of the GPU, and write it into RUN/profile if the memory is exhausted."""
    memory_snapshot_steps: list[PositiveCount] = field(default_factory=list)
    """Steps after which run.memory_snapshots writes too."""
    dry_run: bool = False
    """Do not train. Print the memory and communication that this configuration needs; one process without a GPU is
    enough."""
    dry_run_ranks: Ranks | None = None
    """Number of processes that a dry run assumes; by default the number that was started."""
    device_memory_gb: PositiveFloat | None = None
    """Memory of a device in 10^9 bytes. The dry run says whether the job fits into it; by default the memory of the GPU
    in this machine."""

    @property
    def num_steps(self) -> int:
        """`steps` of a run that has begun (launcher/training/run_length.py)."""
        assert self.steps is not None
        return self.steps

    def length_problems(self) -> list[str]:
        """More than one way in which the length of the run is given."""
        given = [f"run.{name}" for name in ("steps", "epochs", "tokens") if getattr(self, name) is not None]
        return [f"{' and '.join(given)} are given; give one of them, and set the others to null"] if given[1:] else []

    def profile_problems(self, world_size: int) -> list[str]:
        """A profile that would never be written."""
        problems = []
        if self.profile_steps is not None and self.profile_steps[0] > self.profile_steps[1]:
            first, last = self.profile_steps
            problems.append(f"run.profile_steps is [{first}, {last}]; give the first and the last step")
        if self.profile_rank >= world_size:
            problems.append(f"run.profile_rank is {self.profile_rank}, and there are {world_size} process(es)")
        if self.memory_snapshot_steps and not self.memory_snapshots:
            problems.append("run.memory_snapshot_steps needs run.memory_snapshots true")
        return problems


@dataclass(frozen=True)
class CorpusSource:
    """One corpus folder, as launcher/prepare.py writes it."""

    path: str
    """The corpus folder: a local path, or a URL (s3://, gs://, https://, ...)."""
    weight: PositiveFloat = 1.0
    """Its share of the sequences, relative to the weights of the other corpora."""
    split: str | None = None
    """The split to read; by default train for data.train and validation for data.validation."""


@dataclass(frozen=True)
class MixtureChange:
    """New weights of the corpora of data.train, from a step on."""

    step: PositiveCount
    """The first optimizer step with these weights."""
    weights: list[NonNegativeFloat]
    """One weight for each corpus of data.train, in the same order; 0 leaves a corpus out."""


@dataclass(frozen=True)
class Data:
    """Corpora, and how sequences are made from them."""

    train: list[CorpusSource] = field(default_factory=list)
    """Corpora to train on: a list of {path, weight, split}, or of paths."""
    validation: list[CorpusSource] = field(default_factory=list)
    """Corpora to evaluate on; may be empty."""
    mixture_schedule: list[MixtureChange] = field(default_factory=list)
    """Weights of the corpora that change during the run, for a curriculum or for annealing: a list of {step,
    weights}."""
    sequence_length: Annotated[int, Range(1, 10**7)] = 1024
    """Number of tokens in a sequence. Several documents are packed into one sequence; attention and positions do not
    cross the end of a document, unless intra_document_masking is false."""
    intra_document_masking: bool = True
    """false: ignore where documents end inside a sequence. A token then also sees and predicts tokens of other
    documents, as in GPT-2 and GPT-3, and positions count from the start of the sequence. This is another model, and on
    a GPU it may be faster."""
    packing: Literal["concatenate", "best_fit"] = "concatenate"
    """concatenate: documents one after the other, split at the sequence length. best_fit: whole documents where they
    fit, and padding; for short documents."""
    shuffle: Literal["full", "window"] = "full"
    """full: each epoch has a new order of all sequences. window: only a few shards are open at a time, for shards on
    remote storage."""
    window_shards: Size = 64
    """Number of shards in a window."""
    partitions: Size = 1
    """With shuffle window: each epoch is split into so many parts that have their own shards. If it equals the number
    of data ranks, a rank reads only its part of the shards. It belongs to the run, not to the cluster: do not change it
    when the number of ranks changes."""
    objective: Literal["clm", "mlm"] = "clm"
    """clm: predict the next token (GPT). mlm: predict masked tokens (BERT)."""
    mlm_probability: OpenUnitInterval = 0.15
    """Share of the tokens that mlm selects. Of those, 80 % become the mask token, 10 % a random token, and 10 %
    stay."""
    mask_unit: Literal["token", "word", "span"] = "token"
    """What mlm masks together: single tokens, whole words, or spans of 1 to 10 words."""
    sentence_pairs: Literal["none", "nsp", "sop"] = "none"
    """Sentence pairs, with mlm and model.pair_head. nsp: does B follow A. sop: are A and B in the right order."""
    fim_rate: ClosedUnitInterval = 0.0
    """Share of the documents that clm rearranges for fill-in-the-middle. The tokenizer must have the tokens for it."""
    threads: Threads = 2
    """Threads of each rank that read ahead. They have no influence on the order."""
    prefetch: Annotated[int, Range(1, 10**4)] = 4
    """Number of optimizer steps to read ahead."""
    cache_dir: str | None = None
    """Folder on this machine's disk for copies of remote shards. Without it they are read over the network each time.
    Several runs may share it."""
    cache_bytes: PositiveInt = 100_000_000_000
    """Maximum size of cache_dir in bytes. The shards that were not used for the longest time are removed first."""
    strict: bool = False
    """Stop at the first damaged piece of data. Otherwise it is skipped, and other sequences of the same corpus replace
    its sequences; RUN/quarantine.jsonl lists what is damaged."""
    max_bad_fraction: ClosedUnitInterval = 1e-3
    """Share of the last 10,000 sequences that may be replaced because of damage. Above it the run stops."""
    allow_changed: bool = False
    """Resume although the corpora, or the options that make sequences from them, differ from those of the checkpoint.
    What was found damaged before is read again."""


@dataclass(frozen=True)
class RampPhase:
    """A number of optimizer steps with one batch size."""

    steps: PositiveCount
    """Number of optimizer steps in this phase."""
    global_size: Annotated[int, Range(1, 10**7)]
    """Number of sequences in each of these steps, over all ranks."""


@dataclass(frozen=True)
class Batch:
    """Batch sizes in sequences. Gradient accumulation is global_size / (micro_size x data ranks)."""

    global_size: Annotated[int, Range(1, 10**7)] = 32
    """Number of sequences in one optimizer step, over all ranks."""
    micro_size: Size = 8
    """Number of sequences that one rank computes at a time."""
    ramp: list[RampPhase] = field(default_factory=list)
    """Other batch sizes at the start of the run, before global_size: a list of {steps, global_size}."""


@dataclass(frozen=True)
class TrainConfig:
    """A training run."""

    run: Run = field(default_factory=Run)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: Data = field(default_factory=Data)
    batch: Batch = field(default_factory=Batch)
    optimizer: Optimizer = field(default_factory=Optimizer)
    loss: Loss = field(default_factory=Loss)
    distillation: Distillation = field(default_factory=Distillation)
    parallel: Parallel = field(default_factory=Parallel)

    def to_dict(self) -> dict:
        return asdict(self)

    def check(self, world_size: int) -> None:
        """Looks for options that do not fit together on so many processes, before anything is started.

        Raises:
            ValueError: all problems at once, each with its numbers and a remedy.
        """
        problems = [
            *self.run.length_problems(),
            *self.run.profile_problems(world_size),
            *_model_problems(self),
            *_batch_problems(self, world_size),
            *self.parallel.problems(),
            *self.distillation.problems(self.parallel.tensor),
            *_optimizer_problems(self),
            *_data_problems(self),
        ]
        if problems:
            raise ValueError("; ".join(problems))


def _model_problems(config: TrainConfig) -> list[str]:
    try:
        config.model.validate()
    except ValueError as error:
        return [str(error)]
    if config.parallel.tensor == 1:
        return []
    return tensor_problems(config.model, config.parallel.tensor, config.data.sequence_length)


def _batch_problems(config: TrainConfig, world_size: int) -> list[str]:
    batch, parallel = config.batch, config.parallel
    try:
        sizes(world_size, parallel.tensor, parallel.data_shard)
        for size in [batch.global_size, *(phase.global_size for phase in batch.ramp)]:
            check_batch_sizes(size, batch.micro_size, world_size // parallel.tensor)
    except ValueError as error:
        return [str(error)]
    return []


def _optimizer_problems(config: TrainConfig) -> list[str]:
    problems = config.optimizer.problems(config.parallel)
    if config.optimizer.kind == "muon":
        if config.parallel.tensor > 1:
            problems.append("optimizer.kind muon needs whole matrices; set parallel.tensor to 1")
        if config.parallel.engine == "zero" and config.parallel.zero_stage > 0:
            problems.append(
                f"optimizer.kind muon needs whole matrices, and ZeRO-{config.parallel.zero_stage} splits them "
                f"anywhere; set parallel.engine to fsdp"
            )
    return problems


def _data_problems(config: TrainConfig) -> list[str]:
    data, model, problems = config.data, config.model, []
    if data.sequence_length > model.max_position_embeddings:
        problems.append(
            f"data.sequence_length {data.sequence_length} is beyond the model's {model.max_position_embeddings} "
            f"positions; shorten it or raise model.max_position_embeddings"
        )
    if (data.objective == "clm") != model.causal:
        wanted = "true" if data.objective == "clm" else "false"
        problems.append(f"data.objective {data.objective} needs model.causal {wanted}")
    if (data.sentence_pairs != "none") != model.pair_head:
        wanted = str(data.sentence_pairs != "none").lower()
        problems.append(f"data.sentence_pairs {data.sentence_pairs} needs model.pair_head {wanted}")
    if data.sentence_pairs != "none" and not model.type_vocab_size:
        problems.append(f"data.sentence_pairs {data.sentence_pairs} needs model.type_vocab_size 2")
    for change in data.mixture_schedule:
        if change.step < 2 or len(change.weights) != len(data.train):
            problems.append(
                f"data.mixture_schedule at step {change.step} with {len(change.weights)} weights: the step must be "
                f"2 or later, and there must be one weight for each of the {len(data.train)} corpora"
            )
    if not data.train:
        problems.append("data.train names no corpus; give at least one {path: CORPUS}")
    return problems
