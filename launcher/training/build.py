"""Builds the parts of a run from the configuration: corpora and readers, model, engine."""

import copy
from collections.abc import Callable
from dataclasses import replace

import torch

from ingot.data.corpus.cache import Cache
from ingot.data.corpus.quarantine import Quarantine
from ingot.data.corpus.shards import Corpus
from ingot.data.loader.batch_sharding import check_corpora
from ingot.data.loader.reader import Reader, ReaderOptions
from ingot.data.tokenizers.load import load_tokenizer
from ingot.data.tokenizers.tokenizer import Tokenizer
from ingot.launcher.config.optimizer import Optimizer
from ingot.launcher.config.parallel import Parallel
from ingot.launcher.config.pretrain import Batch, CorpusSource, TrainConfig
from ingot.launcher.loading.teacher import learn_from
from ingot.launcher.training.batch_sizes import BatchSizes
from ingot.model.attention.attention import OPERATORS, AttentionLayout
from ingot.model.attention_implementation import use_implementation
from ingot.model.initialization import InitialValues
from ingot.model.tensor_plan import tensor_plan
from ingot.model.transformer import LanguageModel, Transformer
from ingot.parallel.engines.activation_checkpointing import checkpoint_activations
from ingot.parallel.engines.activation_offload import offload_inputs
from ingot.parallel.engines.compilation import Compilation, compile_blocks
from ingot.parallel.engines.engine import Engine
from ingot.parallel.engines.fsdp import Groups, Sharding, TorchEngine
from ingot.parallel.engines.zero import ZeroEngine
from ingot.parallel.float8.layers import apply_float8, describe_float8
from ingot.parallel.mesh import Mesh
from ingot.parallel.muon import MuonWithAdamW, names_matching
from ingot.parallel.optimizer import adamw, matrices, parameter_groups
from ingot.parallel.tensor_parallel.layers import Plan, overlap_exchanges, parallelize_module


def open_cache(config: TrainConfig) -> Cache | None:
    return Cache(config.data.cache_dir, config.data.cache_bytes) if config.data.cache_dir else None


def open_corpora(
    sources: list[CorpusSource], default_split: str, config: TrainConfig, cache: Cache | None, quarantine: Quarantine
) -> list[Corpus]:
    """Opens the corpora.

    Args:
        default_split: the split of a source that names none.

    Raises:
        ValueError, OSError: a corpus or its split is missing. With data.strict, also if a shard is missing or too
            short; without data.strict such a shard counts as damaged when it is read.
    """
    corpora = []
    for source in sources:
        split = source.split or default_split
        try:
            corpora.append(
                Corpus.open(source.path, split, check=config.data.strict, cache=cache, quarantine=quarantine)
            )
        except ValueError as error:
            raise ValueError(f"data.{default_split}: {error}") from error
    return corpora


def open_tokenizer(config: TrainConfig, corpora: list[Corpus]) -> Tokenizer:
    """Opens the tokenizer that the corpora were made with.

    Raises:
        ValueError: the corpora were made with different tokenizers, a corpus is shorter than a sequence, or the
            tokenizer has more ids than the model's vocabulary.
    """
    tokenizer = load_tokenizer(corpora[0].tokenizer_folder)
    check_corpora(corpora, tokenizer, config.data.sequence_length)
    if tokenizer.vocab_size > config.model.vocab_size:
        raise ValueError(
            f"the tokenizer of {corpora[0].folder} has {tokenizer.vocab_size} ids, and model.vocab_size is "
            f"{config.model.vocab_size}; set model.vocab_size to {tokenizer.vocab_size} or more"
        )
    return tokenizer


def training_reader(config: TrainConfig, corpora: list[Corpus], tokenizer: Tokenizer, mesh: Mesh) -> Reader:
    """The reader of this rank's training data."""
    return Reader(corpora, tokenizer, reader_options(config), rank=mesh.data_rank, num_ranks=mesh.num_data)


def batch_sizes(batch: Batch) -> BatchSizes:
    """The batch sizes that the section `batch` describes."""
    return BatchSizes(batch.global_size, tuple((phase.steps, phase.global_size) for phase in batch.ramp))


def weight_segments(config: TrainConfig) -> list[tuple[int, list[float]]]:
    """(first slot, weights of the corpora) for each part of the run with constant weights."""
    changes = sorted(config.data.mixture_schedule, key=lambda change: change.step)
    sizes = batch_sizes(config.batch)
    first = (0, [source.weight for source in config.data.train])
    return [first, *((sizes.slots_before(change.step), change.weights) for change in changes)]


def validation_readers(config: TrainConfig, corpora: list[Corpus], tokenizer: Tokenizer, mesh: Mesh) -> list[Reader]:
    """A reader for each validation corpus, without shuffling: each evaluation reads the same sequences."""
    options = replace(
        reader_options(config),
        weights=None,
        mixture_schedule=None,
        shuffle=False,
        num_partitions=1,
        threads=1,
        prefetch=2,
    )
    return [Reader([corpus], tokenizer, options, rank=mesh.data_rank, num_ranks=mesh.num_data) for corpus in corpora]


def reader_options(config: TrainConfig) -> ReaderOptions:
    """The options of the training reader; the same on all ranks."""
    data = config.data
    return ReaderOptions(
        sequence_length=data.sequence_length,
        objective=data.objective,
        packing=data.packing,
        mlm_probability=data.mlm_probability,
        mask_unit=data.mask_unit,
        sentence_pairs=data.sentence_pairs,
        fim_rate=data.fim_rate,
        intra_document_masking=data.intra_document_masking,
        global_batch=config.batch.global_size,
        micro_batch=config.batch.micro_size,
        seed=config.run.seed,
        shuffle=data.shuffle,
        mixture_schedule=weight_segments(config),
        window_shards=data.window_shards,
        num_partitions=data.partitions,
        threads=data.threads,
        prefetch=data.prefetch,
        strict=data.strict,
        errors="yield",
    )


def build_pretraining_engine(config: TrainConfig, mesh: Mesh, tokenizer: Tokenizer | None = None) -> Engine:
    """Builds the model of the configuration and its engine. The initial weights are the same in every layout.

    Args:
        tokenizer: of the data; the configured teacher must have the same. None: the model has no teacher.

    Raises:
        ValueError: there is no such teacher, or it does not fit.
    """
    with torch.device("meta"):
        model = LanguageModel(copy.copy(config.model))
    values = InitialValues(model, config.run.seed)
    if tokenizer is not None:
        learn_from(
            config.distillation,
            model,
            tokenizer=tokenizer,
            length=config.data.sequence_length,
            precision=config.parallel.precision,
            device=mesh.device,
        )
    engine = build_engine(
        model,
        config.optimizer,
        config.parallel,
        mesh,
        plan=tensor_plan(config.model),
        micro_batch=config.batch.micro_size,
        num_micro_batches=batch_sizes(config.batch).largest // mesh.num_data // config.batch.micro_size,
    )
    engine.initialize(values.part)
    return engine


def build_engine(
    model: Transformer,
    settings: Optimizer,
    parallel: Parallel,
    mesh: Mesh,
    *,
    plan: Plan,
    micro_batch: int = 1,
    num_micro_batches: int = 1,
    scale_and_start: Callable[[str], tuple[float, int]] = lambda name: (1.0, 1),
) -> Engine:
    """Builds the engine that the configuration names. The parameters have no values yet; see `Engine.initialize`.

    Args:
        model: on the meta device. It is changed in place: parallelized over the tensor ranks, in float8, with
            activation checkpointing, and compiled, as the configuration says.
        plan: how the layers are split over the tensor ranks.
        micro_batch, num_micro_batches: sequences of a micro-batch, and micro-batches of a step; only DeepSpeed needs
            them.
        scale_and_start: see `parameter_groups`.

    Raises:
        ValueError: optimizer.muon_matrices has a pattern that matches no matrix, parallel.float8 does not fit
            parallel.tensor, or parallel.attn_implementation does not support the device or the model.
    """
    assert parallel.precision != "auto"  # start_mesh chooses one, and whether to compile
    decaying = matrices(model)
    rate, (beta1, beta2), eps = settings.learning_rate, settings.betas, settings.eps

    def make_optimizer(module: torch.nn.Module) -> torch.optim.Optimizer:
        if settings.kind == "adamw":
            groups = parameter_groups(module, settings.weight_decay, decaying, scale_and_start)
            return adamw(groups, learning_rate=rate, betas=(beta1, beta2), eps=eps, state_dtype=settings.state_dtype)
        return MuonWithAdamW(
            module,
            names_matching(decaying, settings.muon_matrices),
            decaying,
            learning_rate=rate,
            betas=(beta1, beta2),
            eps=eps,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
        )

    dtype = torch.bfloat16 if parallel.precision == "bf16" else torch.float32
    use_implementation(model, parallel.attn_implementation, mesh.device, dtype)
    # DeepSpeed divides gradients among the ranks while it computes them, so they must be whole then.
    divides = parallel.engine == "zero" and parallel.zero_stage > 0
    local_parameters = parallelize_module(model, plan, mesh, sum_each_use=divides)
    apply_float8(model, plan, parallel.float8, mesh, local_parameters.slices)
    if parallel.async_tensor_parallel:
        overlap_exchanges(mesh)
    compilation = prepare_blocks(list(model.blocks), parallel)
    engine: Engine
    if parallel.engine == "fsdp":
        engine = TorchEngine(
            model,
            make_optimizer,
            mesh=mesh,
            local_parameters=local_parameters,
            groups=gathered_together(model),
            sharding=sharding_of(parallel),
            precision=parallel.precision,
            max_grad_norm=settings.max_grad_norm,
            offload=parallel.offload == "all",
        )
    else:
        engine = ZeroEngine(
            model,
            make_optimizer,
            mesh=mesh,
            local_parameters=local_parameters,
            stage=parallel.zero_stage,
            precision=parallel.precision,
            max_grad_norm=settings.max_grad_norm,
            micro_batch=micro_batch,
            num_micro_batches=num_micro_batches,
            offload=parallel.offload,
            offload_folder=parallel.offload_dir,
            reduce_dtype=parallel.reduce_dtype,
            settings=parallel.deepspeed,
        )
    engine.compilation = compilation
    return engine


def prepare_blocks(blocks: list[torch.nn.Module], parallel: Parallel) -> Compilation | None:
    """Sets what each block keeps for the backward pass, and compiles it."""
    how, every = parallel.activation_checkpointing, parallel.activation_checkpointing_every
    checkpoint_activations(blocks, how, kept=OPERATORS, every=every)
    compilation = None
    if parallel.compile is True:
        budget = parallel.activation_memory_budget if how == "memory_budget" else 1.0
        compilation = compile_blocks(blocks, varying, budget=budget)
    if parallel.activation_offload:
        offload_inputs(blocks[every - 1 :: every])
    return compilation


def varying(x: torch.Tensor, layout: AttentionLayout, *rest: object) -> list[tuple[torch.Tensor, int]]:
    """Of a block's inputs, the tensors and dims whose sizes differ from batch to batch."""
    return layout.varying()


def float8_messages(parallel: Parallel, model: torch.nn.Module, plan: Plan) -> list[str]:
    """For the log: which layers of the built model compute in float8; nothing without it."""
    return [describe_float8(model, plan)] if parallel.float8 != "none" else []


def gathered_together(model: Transformer) -> Groups:
    """The modules whose parameters FSDP2 gathers together.

    A task's head is small, and soft prompts are used outside of the embedding that makes them: they stay in the root.
    """
    embedding, blocks = model.embedding, list(model.blocks)
    if not isinstance(model, LanguageModel) or not isinstance(embedding.token, torch.nn.Embedding):
        return Groups(blocks)
    tables = [embedding.token, embedding.position, embedding.token_type]
    first, last = ([part for part in end if part is not None] for end in (tables, [model.final_norm, model.head]))
    return Groups(blocks, first, last)


def sharding_of(parallel: Parallel) -> Sharding:
    return Sharding(
        parallel.reshard_after_forward,
        parallel.reduce_dtype,
        parallel.sync_each_micro_batch,
        parallel.symmetric_memory,
    )
