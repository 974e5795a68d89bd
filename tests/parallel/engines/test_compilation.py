"""Compiled blocks: how many graphs each family needs, that none runs eager in silence, and that results are equal."""

from dataclasses import replace
from functools import partial
from itertools import product

import pytest
import torch
from torch import nn

from ingot.launcher.training import build
from ingot.launcher.training.build import varying
from ingot.model.attention.attention import OPERATORS
from ingot.model.config import ModelConfig
from ingot.model.huggingface.families.presets import PRESETS
from ingot.model.initialization import initialize
from ingot.model.transformer import LanguageModel
from ingot.parallel import mesh as meshes
from ingot.parallel.engines import compilation
from ingot.parallel.engines.activation_checkpointing import checkpoint_activations
from ingot.parallel.engines.bf16 import Bf16Compute
from ingot.parallel.engines.compilation import compile_blocks
from tests.layouts import Layout, difference, engine_in, train, train_on
from tests.ranks import run_ranks

LENGTH, VOCABULARY = 16, 97
DOCUMENTS = ((5,), (3, 9), (2, 4, 7, 11), ())  # where documents end within each row
GRAPHS = {"gpt2": 4, "llama": 4, "qwen3": 4, "bert": 4, "roberta": 4, "modernbert": 12}
"""Training and evaluation, with and without documents within rows; ModernBERT has three kinds of blocks."""


@pytest.fixture(autouse=True)
def no_graphs_of_other_tests():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def model_of(family: str, how: str, precision: str) -> tuple[LanguageModel, nn.Module]:
    """A model, and what computes it in this precision."""
    shape = {"vocab_size": VOCABULARY, "num_hidden_layers": 4, "num_attention_heads": 2, "hidden_size": 16}
    preset = {**PRESETS[family], "max_position_embeddings": 64}
    config = ModelConfig(**{**preset, **shape})
    model = LanguageModel(replace(config, sliding_window=2) if config.sliding_window else config)
    initialize(model, 0)
    checkpoint_activations(list(model.blocks), how, kept=OPERATORS)
    return model, Bf16Compute(model) if precision == "bf16" else model


def results_of(module: nn.Module, batch: int, ends: tuple[int, ...], training: bool) -> list[torch.Tensor]:
    """The loss, and in training the gradients."""
    generator = torch.Generator().manual_seed(len(ends))
    ids = torch.randint(0, VOCABULARY, (batch, LENGTH), generator=generator)
    bounds = [0, *(row * LENGTH + end for row in range(batch) for end in (*ends, LENGTH))]
    inputs = {"input_ids_BT": ids, "labels_BT": ids, "cu_seqlens": torch.tensor(bounds, dtype=torch.int32)}
    module.train(training)
    module.zero_grad()
    if not training:
        with torch.no_grad():
            return [module(**inputs)]
    loss = module(**inputs)
    loss.backward()
    return [loss.detach(), *(p.grad for p in module.parameters())]


def check(family: str, how: str, precision: str, backend: str) -> None:
    _, expected = model_of(family, how, precision)
    model, found = model_of(family, how, precision)
    compiled = compile_blocks(list(model.blocks), varying, backend)
    graphs = []
    for _ in range(2):
        for training, ends in product((True, False), DOCUMENTS):
            pairs = [results_of(each, 4, ends, training) for each in (found, expected)]
            for mine, other in zip(*pairs, strict=True):
                if backend == "eager":
                    assert torch.equal(mine, other)
                else:
                    torch.testing.assert_close(mine, other, atol=1e-4, rtol=1e-4)
        graphs.append(compiled.graphs)
    assert compiled.notes == []
    assert graphs == [GRAPHS[family]] * 2  # and the second round made none


@pytest.mark.parametrize("family", GRAPHS)
def test_each_family_has_few_graphs_and_none_runs_eager(family):
    check(family, "none", "fp32", "eager")


@pytest.mark.parametrize(
    ("family", "how"), [("gpt2", "selective"), pytest.param("modernbert", "full", marks=pytest.mark.slow)]
)
def test_so_it_is_with_activation_checkpointing_and_in_bf16(family, how):
    check(family, how, "bf16", "eager")


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_gradients_agree(backend):
    check("qwen3", "none", "fp32", backend)


def test_sizes_of_batches_that_change_become_dynamic():
    model, module = model_of("gpt2", "none", "fp32")
    compiled = compile_blocks(list(model.blocks), varying, "eager")
    for batch in (2, 3, 4, 5, 6):
        results_of(module, batch, (5,), True)
    assert (compiled.graphs, compiled.notes) == (2, [])


COVER = {
    2: [
        ("gpt2", Layout("replicate", 2, 2, "bf16"), {}),
        ("llama", Layout("fsdp2", 1, 2), {"activation_checkpointing": "selective"}),
        ("bert", Layout("zero-1", 1, 1, "bf16"), {"activation_checkpointing": "full", "activation_offload": True}),
        ("gpt2", Layout("replicate", 1, 1, "bf16"), {"activation_checkpointing": "memory_budget"}),
    ],
    4: [
        ("gpt2", Layout("zero-2", 2, 2, "bf16"), {"activation_checkpointing": "selective"}),
        ("llama", Layout("fsdp2", 2, 2), {"activation_checkpointing": "memory_budget"}),
        (
            "bert",
            Layout("hsdp", 1, 2, "bf16"),
            {"activation_checkpointing": "full", "activation_checkpointing_every": 2},
        ),
        ("bert", Layout("zero-0", 1, 1), {}),
        ("llama", Layout("fsdp2", 2, 1, "bf16"), {"activation_checkpointing": "full", "activation_offload": True}),
    ],
}
"""By number of ranks."""


def train_in() -> list:
    """Runs in each rank: the difference from the same layout without compilation, the graphs, and the notes."""
    build.compile_blocks = partial(compile_blocks, backend="aot_eager_decomp_partition")
    world, results = meshes.start("cpu"), []
    for name, layout, options in COVER[world.world_size]:
        torch._dynamo.reset()
        engine = engine_in(name, layout, world, compile=True, **options)
        found = [train_on(engine, name, layout, 0, 2)]
        graphs = engine.compilation.graphs
        found.append(train_on(engine, name, layout, 2, 4))
        plain = {} if options.get("activation_checkpointing") == "memory_budget" else options
        expected = train(name, layout, world, 4, compile=False, **plain)
        results.append((difference(found[0] + found[1], expected), graphs, engine.compilation))
    meshes.stop()
    return [(error, graphs, after.graphs, after.notes) for error, graphs, after in results]


@pytest.mark.distributed
@pytest.mark.parametrize("num_ranks", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_in_each_engine_the_blocks_are_compiled_whole(num_ranks):
    for rank in run_ranks(train_in, num_ranks, timeout=600.0):
        for (name, layout, options), (error, graphs, after, notes) in zip(COVER[num_ranks], rank, strict=True):
            case = f"{name}, {layout}, {options}"
            assert notes == [], case
            # Of every second block, one is a kind of its own. Accumulation changes no shape.
            assert graphs == after == options.get("activation_checkpointing_every", 1), case
            assert error < (5e-3 if layout.precision == "bf16" else 1e-5), case


class Asking(nn.Module):
    """Its training forward asks for a value, which no graph can."""

    def forward(self, x):
        return x + 1 if torch.is_grad_enabled() and float(x.sum()) > 0 else x * 2


def test_blocks_that_cannot_be_compiled_run_eager_and_are_told_of_once():
    blocks = [Asking(), Asking()]
    compiled = compile_blocks(blocks, lambda *inputs: (), "eager")
    x = torch.ones(3)
    for _ in range(2):
        for block in blocks:
            assert torch.equal(block(x), x + 1)
            with torch.no_grad():
                assert torch.equal(block(x), x * 2)
    [note] = compiled.notes
    assert note.startswith("blocks of kind 0 run without compilation in training")
    assert compiled.graphs == 1  # that of the evaluation


class Many(nn.Module):
    def forward(self, x, names):
        return x * len(names)


def test_more_graphs_than_the_limit_are_told_of_and_computed(monkeypatch):
    monkeypatch.setattr(compilation, "MOST_GRAPHS", 10)
    [block] = blocks = [Many()]
    compiled = compile_blocks(blocks, lambda *inputs: (), "eager")
    x = torch.ones(3)
    for names in ["a" * number for number in range(20)] * 2:
        assert torch.equal(block(x, names), x * len(names))
    assert compiled.graphs == 10  # beyond torch's own 8
    [note] = compiled.notes
    assert "recompile" in note


def test_a_compiled_block_inside_a_compiled_function_is_part_of_it():
    [block] = [nn.Linear(4, 4)]
    compiled = compile_blocks([block], lambda *inputs: (), "eager")
    function = torch.compile(lambda x: block(x).sum(), backend="eager", fullgraph=True)
    x = torch.ones(2, 4)
    assert torch.equal(function(x), block(x).sum())
    assert compiled.graphs == 1  # of the direct call
