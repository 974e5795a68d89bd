"""The typed tree of a training run's configuration: read from one YAML file, overridden on the command line, strict."""

from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal

from ingot.data.loader.batch_sharding import check_batch_sizes
from ingot.launcher.config.distillation import Distillation
from ingot.launcher.config.types import (
    ClosedUnitInterval,
    NonNegativeCount,
    NonNegativeFloat,
    OpenUnitInterval,
    PositiveCount,
    PositiveFloat,
    PositiveInt,
    Range,
    Ranks,
    Seconds,
    Seed,
    Size,
    Threads,
    UnitIntervalBelowOne,
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
class Optimizer:
    """The optimizer and its learning-rate schedule."""

    kind: Literal["adamw", "muon"] = "adamw"
    """muon uses Muon for muon_matrices and AdamW for the rest, with one learning rate. It needs whole matrices: engine
    fsdp, or ZeRO-0, and parallel.tensor 1."""
    muon_matrices: list[str] = field(default_factory=lambda: ["blocks.*.attention.*.weight", "blocks.*.mlp.*.weight"])
    """Names of the matrices that Muon trains; * stands for one part of a name."""
    momentum: UnitIntervalBelowOne = 0.95
    """Momentum of Muon; AdamW does not use it."""
    learning_rate: PositiveFloat = 6e-4
    """Learning rate at its peak, after the warm-up."""
    betas: tuple[UnitIntervalBelowOne, UnitIntervalBelowOne] = (0.9, 0.95)
    """Decay rates of Adam's two moments."""
    eps: PositiveFloat = 1e-8
    """Added to the square root of the second moment."""
    state_dtype: Literal["fp32", "bf16"] = "fp32"
    """Type in which AdamW keeps its two moments. bf16 saves 4 bytes a parameter. Weights stay fp32, and an update is
    computed in fp32. A run may change it at a resume: the moments of the checkpoint are converted."""
    weight_decay: NonNegativeFloat = 0.1
    """Decoupled weight decay of matrices and embedding tables; norms and biases have none."""
    max_grad_norm: NonNegativeFloat = 1.0
    """Gradients are scaled down if their global norm is above this; 0 turns clipping off."""
    schedule: Literal["constant", "cosine", "linear", "wsd", "inverse_sqrt"] = "cosine"
    """Shape of the schedule after the warm-up. wsd stays at the peak, then decays as 1 - sqrt. inverse_sqrt never
    ends."""
    warmup_steps: NonNegativeCount = 100
    """Steps of linear warm-up from 0. The first step of a warm-up has the rate 0, as in transformers."""
    lr_decay_steps: PositiveCount | None = None
    """Step at which the schedule ends; after it the rate stays at its minimum. By default run.steps."""
    min_lr_ratio: ClosedUnitInterval = 0.1
    """Minimum of the schedule, as a fraction of the peak."""
    lr_decay_ratio: ClosedUnitInterval = 0.2
    """Share of the schedule in which wsd decays."""

    def problems(self, parallel: "Parallel") -> list[str]:
        """Where moments in bf16 do not go."""
        if self.state_dtype == "fp32":
            return []
        problems = []
        if self.kind != "adamw":
            problems.append(f"optimizer.state_dtype {self.state_dtype} is for optimizer.kind adamw; set it to fp32")
        if parallel.offload_dir is not None:
            problems.append(
                f"optimizer.state_dtype {self.state_dtype} does not go with parallel.offload_dir, to which DeepSpeed "
                f"swaps fp32 states; set it to fp32, or leave parallel.offload_dir out"
            )
        return problems

    def warmup_notes(self, steps: int) -> list[str]:
        """What a user should know of a warm-up that a run of `steps` steps, or its schedule, does not get past."""
        warmup, end = self.warmup_steps, self.lr_decay_steps or steps
        if warmup >= steps:
            highest = self.learning_rate * (steps - 1) / warmup
            return [
                f"the warm-up (optimizer.warmup_steps {warmup}) is not over before the end of the run ({steps} steps): "
                f"the highest learning rate is {highest:.3g} instead of {self.learning_rate:.3g}"
                + ("" if highest else ", and nothing is learned")
                + "; lower optimizer.warmup_steps"
            ]
        if warmup >= end and self.schedule not in ("constant", "inverse_sqrt"):
            return [
                f"the schedule ends at step {end} (optimizer.lr_decay_steps), before the warm-up of {warmup} steps "
                f"(optimizer.warmup_steps) is over: after it the learning rate falls to its minimum at once"
            ]
        return []


@dataclass(frozen=True)
class Loss:
    """Terms that are added to the training loss. The loss of an evaluation does not contain them."""

    z_loss: NonNegativeFloat = 0.0
    """Weight of the square of the logits' log-sum-exp (PaLM uses 1e-4); 0 adds nothing."""
    label_smoothing: UnitIntervalBelowOne = 0.0
    """Share of each target's probability that is spread over all tokens or classes."""


@dataclass(frozen=True)
class Parallel:
    """How the work is distributed over devices. It changes speed and memory, and of the result only what rounding
    changes."""

    engine: Literal["zero", "fsdp"] = "zero"
    """zero: DeepSpeed ZeRO. fsdp: torch's own."""
    zero_stage: Literal[0, 1, 2, 3] = 1
    """What engine zero shards over the data ranks. 0: nothing. 1: the optimizer. 2: gradients too. 3: parameters
    too."""
    data_shard: Ranks | None = None
    """Number of data ranks over which engine fsdp shards parameters, gradients and optimizer. null: all of them
    (FSDP2). 1: none (plain data parallel). A number between: the shards are replicated (HSDP)."""
    tensor: Ranks = 1
    """Number of ranks that split each layer by heads and features, and the activations between layers by the sequence.
    The number of data ranks is processes / tensor. It is fast only within one machine."""
    async_tensor_parallel: bool = False
    """With tensor and compile, on GPUs that read each other's memory (NVLink): exchanges among tensor ranks run beside
    the products before or behind them."""
    activation_checkpointing: Literal["none", "selective", "full", "memory_budget"] = "none"
    """Which activations of each block are computed again in the backward pass, to save memory. selective: all except
    matrix products and attention. full: all. memory_budget: what torch.compile chooses so that a share of the memory is
    enough (parallel.activation_memory_budget)."""
    activation_checkpointing_every: Size = 1
    """With selective and full: every so many blocks one is checkpointed, and the others keep everything."""
    activation_memory_budget: ClosedUnitInterval = 0.5
    """Share of the memory of a compiled block's activations that memory_budget may use: 1 is what torch.compile keeps
    by default, 0 is as full."""
    activation_offload: bool = False
    """With full: keep the inputs of the blocks in the host's memory until the backward pass."""
    compile: Literal["auto", True, False] = "auto"
    """Compile each block with torch.compile. This takes a minute at the start and makes steps faster on a GPU. auto: a
    pretraining run of at least 500 steps on GPUs with Triton, outside ZeRO-3."""
    compile_cache: str | None = None
    """Folder for compiled code, where a run that starts again finds it; by default one in /tmp. It should be on a disk
    of the machine, and only you should be able to write to it: what is in it is executed."""
    attn_implementation: Literal[
        "auto", "sdpa", "flex_attention", "flash_attention_2", "flash_attention_3", "flash_attention_4"
    ] = "auto"
    """How attention is computed. auto: the fastest that supports the device, the precision and the model; on a Hopper
    GPU FlashAttention 3 and on Blackwell 4 if their packages are installed. The other values are for comparisons: sdpa
    runs everywhere, with a dense mask where sequences are packed. The values agree but for rounding."""
    offload: Literal["none", "optimizer", "all"] = "none"
    """What is kept in the host's memory instead of the device's. optimizer: the optimizer's states (ZeRO-1 to 3). all:
    parameters too (ZeRO-3 and fsdp)."""
    offload_dir: str | None = None
    """Folder on an NVMe disk that is used instead of the host's memory (ZeRO-3)."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Precision of the computation. Master weights and gradient accumulation are fp32 in any case. auto:
    bf16 if every rank's device has instructions for it, otherwise fp32; a dry run assumes bf16."""
    float8: Literal["none", "tensorwise", "rowwise"] = "none"
    """Matrix products of the blocks' linear layers in float8, while training, on GPUs from compute capability 8.9 on
    (Ada, Hopper, Blackwell); best with parallel.compile. tensorwise: one scale for a matrix. rowwise: a scale for each
    row, which is more work and closer to bf16. Weights, optimizer and checkpoints are those of parallel.precision, and
    a resume may change it."""
    reduce_dtype: Literal["fp32", "bf16"] = "fp32"
    """Type in which gradients are summed over data ranks. bf16 sends half as much and rounds each sum; gradients of
    micro-batches are still added up in fp32."""
    reshard_after_forward: bool = True
    """With engine fsdp: free the gathered parameters of a block after its forward pass, and gather them again in the
    backward pass. false gathers once, and keeps the whole model in the precision of the computation."""
    sync_each_micro_batch: bool = True
    """With engine fsdp: reduce gradients to their shards after each micro-batch. false reduces once per step, and each
    rank holds the gradients of the whole model in fp32."""
    symmetric_memory: bool = False
    """With engine fsdp on CUDA, torch 2.13: gather parameters from memory that the devices of a machine share."""
    deepspeed: dict[str, Any] = field(default_factory=dict)
    """More DeepSpeed settings under DeepSpeed's names. Settings that follow from Ingot's options are refused."""
    timeout_seconds: Seconds = 600
    """Time limit of a collective after the first step: a rank that hangs so long ends the run. It holds in all process
    groups."""
    init_timeout_seconds: Seconds = 3600
    """Time limit of a collective until the first step is done (building, loading, compiling), and after a step with an
    evaluation or a save, where all may wait for one rank. Never less than timeout_seconds."""
    flight_recorder: NonNegativeCount = 2000
    """Number of NCCL's last collectives that each rank remembers, and writes into RUN/flight-recorder if one takes
    longer than parallel.timeout_seconds; 0 turns it off (docs/profiling.md)."""
    rendezvous_seconds: Seconds = 300
    """Time limit for the processes of all machines to find each other at the start."""
    check_devices: bool = True
    """At the start, time a matrix product on each rank and a sum over all, and name a rank or machine that is much
    slower than the others. It takes less than 2 seconds; one process alone is not checked."""

    def problems(self) -> list[str]:
        """Combinations that an engine does not support, each with the nearest one that works."""
        problems, stage = self._checkpointing_problems(), self.zero_stage
        if self.async_tensor_parallel and (self.tensor == 1 or not self.compile):
            problems.append(
                f"parallel.async_tensor_parallel needs parallel.tensor above 1 and parallel.compile true, and they are "
                f"{self.tensor} and {str(self.compile).lower()}"
            )
        if self.engine == "fsdp":
            if self.offload == "optimizer":
                problems.append("parallel.offload optimizer needs engine zero; engine fsdp has parallel.offload all")
            if self.offload_dir is not None:
                problems.append("parallel.offload_dir needs parallel.engine zero with parallel.zero_stage 3")
            return problems + self._sharding_problems()
        for name in ("reshard_after_forward", "sync_each_micro_batch", "symmetric_memory"):
            if getattr(self, name) != type(self).__dataclass_fields__[name].default:
                problems.append(f"parallel.{name} needs parallel.engine fsdp; leave it out with engine zero")
        if self.data_shard is not None:
            problems.append(
                f"parallel.data_shard is {self.data_shard}, and engine zero cuts over all data ranks; leave it out, or "
                f"set parallel.engine fsdp"
            )
        if stage == 3 and self.activation_checkpointing == "selective":
            problems.append(
                "parallel.activation_checkpointing selective needs the same operators in forward and backward, and "
                "ZeRO-3 gathers differently there; set it to full, or parallel.engine to fsdp"
            )
        if stage == 3 and self.compile is True:
            problems.append(
                "parallel.compile does not go with ZeRO-3, whose hooks it would compile; set parallel.zero_stage to 2, "
                "or parallel.engine to fsdp"
            )
        if (self.offload != "none" and stage == 0) or (self.offload == "all" and stage < 3):
            needed = 3 if self.offload == "all" else 1
            problems.append(f"parallel.offload {self.offload} needs parallel.zero_stage {needed}, which is {stage}")
        if self.offload_dir is not None and (self.offload == "none" or stage < 3):
            problems.append("parallel.offload_dir needs parallel.offload optimizer or all, and parallel.zero_stage 3")
        return problems

    def _sharding_problems(self) -> list[str]:
        problems = []
        if not self.sync_each_micro_batch and self.reduce_dtype == "bf16":
            problems.append(
                "parallel.sync_each_micro_batch false with parallel.reduce_dtype bf16 would add micro-batches up in "
                "bf16; set one of them to its default"
            )
        if not self.sync_each_micro_batch and self.offload == "all":
            problems.append(
                "parallel.sync_each_micro_batch false keeps whole gradients on the device, and parallel.offload all "
                "is for devices without that memory; set one of them to its default"
            )
        return problems

    def _checkpointing_problems(self) -> list[str]:
        how, problems = self.activation_checkpointing, []
        zero_3 = self.engine == "zero" and self.zero_stage == 3
        if how == "memory_budget" and (self.compile is False or zero_3):
            remedy = "set parallel.engine to fsdp" if zero_3 else "set parallel.compile to true"
            problems.append(
                f"parallel.activation_checkpointing memory_budget is a choice of torch.compile; {remedy}, or "
                f"parallel.activation_checkpointing to full"
            )
        if self.activation_checkpointing_every > 1 and how not in ("selective", "full"):
            problems.append(
                f"parallel.activation_checkpointing_every is {self.activation_checkpointing_every}, and "
                f"parallel.activation_checkpointing {how}; set that to selective or full"
            )
        if self.activation_offload and how != "full":
            problems.append(
                f"parallel.activation_offload moves the inputs of checkpointed blocks, and "
                f"parallel.activation_checkpointing is {how}; set that to full"
            )
        return problems


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
