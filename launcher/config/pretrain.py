"""The typed tree of a training run's configuration: read from one YAML file, overridden on the command line, strict."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from ingot.data.loader.batch_sharding import check_sharing
from ingot.launcher.config.distillation import Distillation
from ingot.model.config import ModelConfig
from ingot.model.tensor_plan import tensor_problems
from ingot.parallel.mesh_sizes import sizes


@dataclass
class Run:
    """The run: where it writes, how long it goes, how often it reports."""

    name: str = "run"
    """Name of the run; its folder is run.dir/run.name."""
    dir: str = "runs"
    """Folder that holds the folders of runs."""
    seed: int = 1234
    """Initial weights, data order, masks and dropout all follow from it."""
    steps: int = 1000
    """Optimizer steps in all, those before a resume included."""
    log_every: int = 10
    """Steps between two train lines in metrics.jsonl."""
    eval_every: int = 100
    """Steps between two evaluations on data.validation; 0 evaluates at the end only."""
    eval_samples: int = 0
    """Sequences of the validation split that an evaluation reads; 0 reads them all."""
    save_every: int = 500
    """Steps between two checkpoints; 0 saves at the end only."""
    keep_checkpoints: int = 3
    """How many checkpoints stay on disk; 0 keeps all."""
    resume: str = "auto"
    """auto: go on from the newest sound checkpoint of this run, if there is one; never: start anew, in a folder without
    checkpoints; or the PATH of a run or checkpoint to go on from."""
    init_from: str | None = None
    """A run, checkpoint or Hugging Face folder whose weights a run that has none of its own starts with, anew in all
    else."""
    device: Literal["auto", "cuda", "cpu"] = "auto"
    """Where to compute; auto takes CUDA where there is one."""
    dry_run: bool = False
    """Only say what this configuration takes of memory and communication, from one process without a device."""
    dry_run_ranks: int | None = None
    """Processes that a dry run speaks of; by default those that were started."""
    device_memory_gb: float | None = None
    """Memory of a device, in 10^9 bytes, into which the dry run fits the job; by default that of the device here."""


@dataclass
class CorpusSource:
    """One corpus folder, as launcher/prepare.py writes it."""

    path: str
    """The corpus folder: a local path, or a URL (s3://, gs://, https://, ...)."""
    weight: float = 1.0
    """Its share of the sequences, relative to the other corpora's weights."""
    split: str | None = None
    """Which split of it; by default train for data.train and validation for data.validation."""


@dataclass
class MixtureChange:
    """New weights of the corpora of data.train, from a step on."""

    step: int
    """The first optimizer step with these weights."""
    weights: list[float]
    """One for each corpus of data.train, in its order; 0 leaves one out."""


@dataclass
class Data:
    """Corpora, and how sequences are made of them."""

    train: list[CorpusSource] = field(default_factory=list)
    """Corpora to train on: a list of {path, weight, split}."""
    validation: list[CorpusSource] = field(default_factory=list)
    """Corpora to evaluate on; may be empty."""
    mixture_schedule: list[MixtureChange] = field(default_factory=list)
    """Weights that change on the way, for a curriculum or for annealing: a list of {step, weights}."""
    sequence_length: int = 1024
    """Tokens of a sequence. Documents are packed into it; attention and positions stop at their ends."""
    packing: Literal["concatenate", "best_fit"] = "concatenate"
    """concatenate: documents end to end, cut at the sequence length. best_fit: whole documents where they fit, and
    padding; for short documents."""
    shuffle: Literal["full", "window"] = "full"
    """full: each epoch in a new order of all sequences. window: only a few shards are under way at a time, for shards
    that lie far away."""
    window_shards: int = 64
    """Shards of a window."""
    partitions: int = 1
    """With window: parts of each epoch with shards of their own. With as many as data ranks, a rank reads only its part
    of the shards. A number of the run, not of the cluster: it must stay when the ranks change."""
    objective: Literal["clm", "mlm"] = "clm"
    """clm: the next token (GPT). mlm: masked tokens (BERT)."""
    mlm_probability: float = 0.15
    """Share of the tokens that mlm selects; of those 80 % become the mask, 10 % a random token, 10 % stay."""
    mask_unit: Literal["token", "word", "span"] = "token"
    """What mlm masks at once: tokens, whole words, or spans of 1 to 10 words."""
    sentence_pairs: Literal["none", "nsp", "sop"] = "none"
    """Sentence pairs, with mlm and model.pair_head: nsp, does B follow A; sop, are A and B in order."""
    fim_rate: float = 0.0
    """Share of the documents that clm sees rearranged for fill-in-the-middle; the tokenizer must have its tokens."""
    threads: int = 2
    """Threads per rank that read ahead; they have no influence on the order."""
    prefetch: int = 4
    """Optimizer steps that are read ahead."""
    cache_dir: str | None = None
    """Folder on this machine's disk for copies of remote shards; without one they are read over the network each time,
    range by range. Several runs may share it."""
    cache_bytes: int = 100_000_000_000
    """Most bytes that cache_dir may take; what was not used for the longest time goes first."""
    strict: bool = False
    """Stop at the first damaged piece of data. Otherwise it is left out, and other sequences of the same corpus take
    the places of those that lie in it; RUN/quarantine.jsonl lists what is damaged."""
    max_bad_fraction: float = 1e-3
    """Share of the last 10,000 sequences that may be replaced because of damage; above it the run stops."""
    allow_changed: bool = False
    """Resume although the corpora or the way sequences are made of them are not what the checkpoint was trained on, and
    read again what was found damaged before."""


@dataclass
class RampPhase:
    """So many optimizer steps of a size."""

    steps: int
    """Optimizer steps that it lasts."""
    global_size: int
    """Sequences of each of them, over all ranks."""


@dataclass
class Batch:
    """Batch sizes in sequences. Gradient accumulation follows: global_size / (micro_size x data ranks)."""

    global_size: int = 32
    """Sequences of one optimizer step, over all ranks."""
    micro_size: int = 8
    """Sequences that one rank computes at a time."""
    ramp: list[RampPhase] = field(default_factory=list)
    """Other sizes at the start, one after the other, before global_size: a list of {steps, global_size}."""


@dataclass
class Optimizer:
    """The optimizer and its learning-rate schedule."""

    kind: Literal["adamw", "muon"] = "adamw"
    """muon: Muon for muon_matrices and AdamW for the rest, with one learning rate. It needs whole matrices: engine
    fsdp, or ZeRO-0, and parallel.tensor 1."""
    muon_matrices: list[str] = field(default_factory=lambda: ["blocks.*.attention.*.weight", "blocks.*.mlp.*.weight"])
    """Names of the matrices that Muon takes; * stands for one part of a name."""
    momentum: float = 0.95
    """Momentum of Muon, between 0 and 1."""
    learning_rate: float = 6e-4
    """Peak learning rate."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay rates of Adam's two moments."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    weight_decay: float = 0.1
    """Decoupled weight decay of matrices and embedding tables; norms and biases have none."""
    max_grad_norm: float = 1.0
    """Global gradient norm above which gradients are scaled down; 0 never does."""
    schedule: Literal["constant", "cosine", "linear", "wsd", "inverse_sqrt"] = "cosine"
    """Shape after the warm-up; wsd stays at the peak and decays as 1 - sqrt at the end; inverse_sqrt never ends."""
    warmup_steps: int = 100
    """Steps of linear warm-up."""
    lr_decay_steps: int | None = None
    """Step at which the schedule ends and the rate stays at its floor; by default run.steps."""
    min_lr_ratio: float = 0.1
    """Floor of the schedule, as a fraction of the peak."""
    lr_decay_ratio: float = 0.2
    """Share of the schedule in which wsd decays."""


@dataclass
class Loss:
    """What is added to the training loss; an evaluation's loss is without it."""

    z_loss: float = 0.0
    """Weight of the square of the logits' log-sum-exp (PaLM has 1e-4); 0 adds nothing."""
    label_smoothing: float = 0.0
    """Share of each target's probability that is spread over all tokens or classes."""


@dataclass
class Parallel:
    """How the work is spread over devices; it changes speed and memory, never the result."""

    engine: Literal["zero", "fsdp"] = "zero"
    """zero: DeepSpeed. fsdp: torch-native."""
    zero_stage: Literal[0, 1, 2, 3] = 1
    """What engine zero cuts over the data ranks: 0 nothing, 1 optimizer, 2 and gradients, 3 and parameters."""
    data_shard: int | None = None
    """Data ranks over which engine fsdp cuts parameters, gradients and optimizer. Null is all of them (FSDP2), 1 none
    (plain data parallel), a number between replicates the shards (HSDP)."""
    tensor: int = 1
    """Ranks that share each layer by heads and features, and the activations between by the sequence. Data ranks are
    processes / tensor. It pays within one machine."""
    activation_checkpointing: Literal["none", "selective", "full"] = "none"
    """What of each block is computed again in the backward pass, to save memory. selective: all but matrix products and
    attention. full: all."""
    compile: bool = False
    """Compile each block with torch.compile: a minute at the start, faster steps on a GPU."""
    offload: Literal["none", "optimizer", "all"] = "none"
    """What rests in the host's memory instead of the device's: the optimizer (ZeRO-1 to 3), or parameters too (all:
    ZeRO-3 and fsdp)."""
    offload_dir: str | None = None
    """Folder on an NVMe disk in which it rests instead (ZeRO-3)."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Of the computation; master weights, gradient accumulation and reduction are fp32 in any case. auto: bf16 where
    every rank's device has instructions for it, and fp32 elsewhere; a plan counts bf16."""
    deepspeed: dict[str, Any] = field(default_factory=dict)
    """Further DeepSpeed settings under its own names; those that follow from Ingot's are refused."""
    timeout_seconds: int = 1800
    """How long a collective may take before the run fails."""
    rendezvous_seconds: int = 300
    """How long the processes of all machines may take to find each other at the start."""

    def problems(self) -> list[str]:
        """Combinations that an engine cannot do, each with the nearest one that works."""
        problems, stage = [], self.zero_stage
        if self.rendezvous_seconds <= 0:
            problems.append(f"parallel.rendezvous_seconds is {self.rendezvous_seconds}; it must be positive")
        if self.engine == "fsdp":
            if self.offload == "optimizer":
                problems.append("parallel.offload optimizer needs engine zero; engine fsdp has parallel.offload all")
            if self.offload_dir is not None:
                problems.append("parallel.offload_dir needs parallel.engine zero with parallel.zero_stage 3")
            return problems
        if self.data_shard is not None:
            problems.append(
                f"parallel.data_shard is {self.data_shard}, and engine zero cuts over all data ranks; leave it out, or "
                f"set parallel.engine fsdp"
            )
        if stage == 3 and self.activation_checkpointing == "selective":
            problems.append(
                "parallel.activation_checkpointing selective needs the same operators in forward and backward, and ZeRO-3 gathers "
                "differently there; set it to full, or parallel.engine to fsdp"
            )
        if stage == 3 and self.compile:
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


@dataclass
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
        """Looks for what does not fit together on so many processes, before anything is started.

        Raises:
            ValueError: all problems at once, each with its numbers and what would do.
        """
        problems = []
        try:
            self.model.validate()
        except ValueError as error:
            problems.append(str(error))
        else:
            if self.parallel.tensor > 1:
                problems += tensor_problems(self.model, self.parallel.tensor, self.data.sequence_length)
        try:
            sizes(world_size, self.parallel.tensor, self.parallel.data_shard)
            for size in [self.batch.global_size, *(phase.global_size for phase in self.batch.ramp)]:
                check_sharing(size, self.batch.micro_size, world_size // self.parallel.tensor)
        except ValueError as error:
            problems.append(str(error))
        problems += self.parallel.problems() + self.distillation.problems(self.parallel.tensor)
        if self.optimizer.kind == "muon":
            if self.parallel.tensor > 1:
                problems.append("optimizer.kind muon needs whole matrices; set parallel.tensor to 1")
            if self.parallel.engine == "zero" and self.parallel.zero_stage > 0:
                problems.append(
                    f"optimizer.kind muon needs whole matrices, and ZeRO-{self.parallel.zero_stage} cuts them "
                    f"anywhere; set parallel.engine to fsdp"
                )
        positive = {
            **{f"batch.ramp[{n}].steps": phase.steps for n, phase in enumerate(self.batch.ramp)},
            "run.steps": self.run.steps,
            "run.log_every": self.run.log_every,
            "data.sequence_length": self.data.sequence_length,
            "data.threads": self.data.threads,
            "data.window_shards": self.data.window_shards,
            "data.partitions": self.data.partitions,
            "data.prefetch": self.data.prefetch,
            "data.cache_bytes": self.data.cache_bytes,
            "optimizer.learning_rate": self.optimizer.learning_rate,
            "parallel.timeout_seconds": self.parallel.timeout_seconds,
        }
        problems += [f"{name} is {value}; it must be positive" for name, value in positive.items() if value <= 0]
        if self.data.sequence_length > self.model.max_position_embeddings:
            problems.append(
                f"data.sequence_length {self.data.sequence_length} is beyond the model's "
                f"{self.model.max_position_embeddings} positions; shorten it or raise model.max_position_embeddings"
            )
        if (self.data.objective == "clm") != self.model.causal:
            wanted = "true" if self.data.objective == "clm" else "false"
            problems.append(f"data.objective {self.data.objective} needs model.causal {wanted}")
        if (self.data.sentence_pairs != "none") != self.model.pair_head:
            wanted = str(self.data.sentence_pairs != "none").lower()
            problems.append(f"data.sentence_pairs {self.data.sentence_pairs} needs model.pair_head {wanted}")
        if self.data.sentence_pairs != "none" and not self.model.type_vocab_size:
            problems.append(f"data.sentence_pairs {self.data.sentence_pairs} needs model.type_vocab_size 2")
        for change in self.data.mixture_schedule:
            if change.step < 2 or len(change.weights) != len(self.data.train):
                problems.append(
                    f"data.mixture_schedule at step {change.step} with {len(change.weights)} weights: the step must be "
                    f"2 or later, and there must be one weight for each of the {len(self.data.train)} corpora"
                )
        if not 0 < self.data.mlm_probability < 1:
            problems.append(f"data.mlm_probability is {self.data.mlm_probability}; it must lie between 0 and 1")
        if not 0 <= self.data.max_bad_fraction <= 1:
            problems.append(f"data.max_bad_fraction is {self.data.max_bad_fraction}; it must lie between 0 and 1")
        if not self.loss.z_loss >= 0:
            problems.append(f"loss.z_loss is {self.loss.z_loss}; it must be 0 or positive")
        if not 0 <= self.loss.label_smoothing < 1:
            problems.append(f"loss.label_smoothing is {self.loss.label_smoothing}; it must be at least 0 and below 1")
        if not self.data.train:
            problems.append("data.train names no corpus; give at least one {path: CORPUS}")
        problems += [
            f"the weight of {source.path} is {source.weight}; it must be positive"
            for source in self.data.train
            if not source.weight > 0
        ]
        if problems:
            raise ValueError("; ".join(problems))
