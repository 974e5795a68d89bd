"""Float8 layers in every layout, against one process."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from ingot.launcher.training.build import build_pretraining_engine
from ingot.model.attention.attention import OPERATORS
from ingot.model.initialization import initialize
from ingot.model.tensor_plan import tensor_plan
from ingot.model.transformer import LanguageModel
from ingot.parallel import mesh as meshes
from ingot.parallel.engines.activation_checkpointing import checkpoint_activations
from ingot.parallel.engines.bf16 import Bf16Compute
from ingot.parallel.engines.engine import Engine
from ingot.parallel.float8.layers import apply_float8, describe_float8
from ingot.parallel.mesh import Mesh
from ingot.parallel.tensor_parallel.layers import Plan, parallelize_module
from tests.layouts import MODELS, Layout, batch_of, config_of, difference, rows_of, shape_of, train_on
from tests.ranks import run_ranks

SIZES = {"hidden_size": 64, "intermediate_size": 64}  # heads of 16, so that a part of a layer has a multiple of 16
STEPS = 3
LAYERS = {"attention": ["query", "key", "value", "output"], "mlp": ["gate", "up", "down"]}


def engine_of(name: str, layout: Layout, world: Mesh, **parallel: object) -> Engine:
    mesh = shape_of(world, layout)
    config = config_of(name, layout, mesh.num_data, **parallel)
    config = replace(config, model=replace(config.model, **SIZES))
    return build_pretraining_engine(config, mesh)


def losses(name: str, layout: Layout, world: Mesh, **parallel: object) -> list[tuple[float, float]]:
    return train_on(engine_of(name, layout, world, **parallel), name, layout, 0, STEPS)


class Branch(nn.Module):
    """An MLP and a projection to two heads, between which activations are split along the sequence, as in a block."""

    def __init__(self):
        super().__init__()
        self.up, self.down, self.key = nn.Linear(64, 128), nn.Linear(128, 64), nn.Linear(64, 32)
        self.start, self.end = nn.Identity(), nn.Identity()

    def forward(self, x_BTD):
        hidden = self.down(nn.functional.silu(self.up(self.start(x_BTD))))
        return self.key(self.end(hidden))


PLAN: Plan = [
    ("start", ("gather", 0)),
    ("up", ("column", 128)),
    ("down", ("row", 128)),
    ("end", ("gather", 0)),
    ("key", ("column", 2)),  # on four ranks two hold the same head
]


def branch_on(mesh: Mesh, recipe: str) -> dict[str, torch.Tensor]:
    """This rank's part of the output and of all gradients, in the whole tensors' shape, with NaN for the rest."""
    torch.manual_seed(0)
    values = Branch().state_dict()
    values["up.weight"] *= torch.logspace(-2, 1, 128)[:, None]  # the ranks' parts have different maxima
    values["down.weight"] *= torch.logspace(1, -2, 128)
    values["key.weight"] *= torch.logspace(-1, 1, 32)[:, None]
    x, grad = torch.randn(2, 16, 64), torch.randn(2, 16, 32) * torch.logspace(0, -3, 32)
    with torch.device("meta"):
        module = Branch()
    local = parallelize_module(module, PLAN, mesh, sum_each_use=True)
    apply_float8(module, PLAN, recipe, mesh, local.slices)
    module.to_empty(device="cpu")
    part = {name: (slice(s.start, s.start + s.size), s.dim) for name, s in local.slices.items()}

    def cut(name, whole):
        where, dim = part.get(name, (slice(None), 0))
        return whole[(slice(None),) * dim + (where,)]

    for name, parameter in module.named_parameters():
        parameter.data.copy_(cut(name, values[name]))
    n = mesh.tensor
    parts = (n, x.shape[0], x.shape[1] // n, x.shape[2])  # of all tokens, one behind the other
    x_part = x.view(parts)[mesh.tensor_rank].clone().requires_grad_()
    out = module(x_part)
    key = part.get("key.weight", (slice(None), 0))[0]
    out.backward(grad[..., key] / max(1, n // 2))  # ranks that hold the same head have parts of its gradient
    found = {"out": grad.new_full(grad.shape, torch.nan), "x": torch.full_like(x, torch.nan)}
    found["out"][..., key] = out.detach()
    found["x"].view(parts)[mesh.tensor_rank].copy_(x_part.grad)
    for name, parameter in module.named_parameters():
        found[name] = torch.full_like(values[name], torch.nan)
        cut(name, found[name]).copy_(parameter.grad)
    return found


def largest_differences(world: Mesh) -> dict[tuple, float]:
    """In each rank: how far it is, as one of two and of four, from what it finds alone, relative to the largest."""
    found = {}
    for recipe in ("tensorwise", "rowwise"):
        alone = branch_on(meshes.reshape(world, 1), recipe)
        for tensor in (2, world.world_size):
            for name, part in branch_on(meshes.reshape(world, tensor), recipe).items():
                here = ~part.isnan()
                largest = (part[here] - alone[name][here]).abs().max() / alone[name].abs().max()
                found[recipe, tensor, name] = largest.item()
    return found


COVER = [  # with further settings of the section parallel
    ("gpt2", Layout("zero-1", 2, 2), {"float8": "tensorwise", "activation_checkpointing": "selective"}),
    ("gpt2", Layout("zero-0", 1, 1, "bf16"), {"float8": "tensorwise"}),
    ("llama", Layout("fsdp2", 4, 1), {"float8": "rowwise", "activation_checkpointing": "selective"}),
    ("llama", Layout("zero-3", 2, 1), {"float8": "rowwise", "activation_checkpointing": "full"}),
    ("llama", Layout("hsdp", 1, 2, "bf16"), {"float8": "rowwise"}),
    ("bert", Layout("zero-2", 2, 2), {"float8": "tensorwise"}),
]


def alone() -> dict:
    """Losses and norms of one process, for each case, in its recipe and without float8."""
    world, found = meshes.start("cpu"), {}
    for case in {(name, layout.precision, each) for name, layout, more in COVER for each in (more["float8"], "none")}:
        name, precision, recipe = case
        found[case] = losses(name, Layout("replicate", 1, 1, precision), world, float8=recipe)
    meshes.stop()
    return found


def on_ranks() -> tuple[dict, dict]:
    world, found = meshes.start("cpu"), {}
    differences = largest_differences(world)
    for index, (name, layout, parallel) in enumerate(COVER):
        if layout.tensor <= world.world_size:
            found[index] = losses(name, layout, world, **parallel)
    meshes.stop()
    return differences, found


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.slow)], ids=["2 ranks", "4 ranks"])
def results(request):
    """What each of the ranks found."""
    return run_ranks(on_ranks, request.param)


@pytest.fixture(scope="module")
def expected():
    return run_ranks(alone, 1)[0]


@pytest.mark.distributed
def test_tensor_ranks_have_the_same_float8_numbers_as_one_rank(results):
    for differences, _ in results:
        assert differences == dict.fromkeys(differences, pytest.approx(0, abs=1e-6))


@pytest.mark.distributed
def test_a_layout_trains_as_one_process_does(results, expected):
    fitting = [index for index, (_, layout, _) in enumerate(COVER) if layout.tensor <= len(results)]
    for index in fitting:
        name, layout, parallel = COVER[index]
        with_float8, without = (expected[name, layout.precision, each] for each in (parallel["float8"], "none"))
        limit = 1e-6 if layout.precision == "fp32" else 1e-2
        if name == "llama" and layout.tensor == 4:  # two ranks hold the same head and round parts of its gradient
            limit = 5e-3
        for _, found in results:
            assert difference(found[index], with_float8) < limit, COVER[index]
        assert 1e-5 < difference(with_float8, without) < 1e-2, COVER[index]


def whole_model(sizes: dict, recipe: str = "rowwise") -> LanguageModel:
    config = replace(MODELS["llama"], **SIZES | sizes)
    with torch.device("meta"):
        model = LanguageModel(config)
    apply_float8(model, tensor_plan(config), recipe, Mesh(0, 1, 0, torch.device("cpu")))
    return model


def test_the_plan_chooses_the_layers():
    model = whole_model({})
    chosen = {name for name, module in model.named_modules() if type(module).__name__.startswith("Float8")}
    layers = {f"{part}.{each}" for part, names in LAYERS.items() for each in names}
    assert chosen == {f"blocks.{n}.{layer}" for n in (0, 1) for layer in layers}
    assert describe_float8(model, tensor_plan(model.config)).startswith("float8: 14 of 14 linear layers; evaluations")


def test_a_size_that_no_kernel_takes_stays_as_it_is_and_is_named():
    model = whole_model({"intermediate_size": 72})
    text = describe_float8(model, tensor_plan(model.config))
    assert "8 of 14 linear layers; the sizes of blocks.*.mlp.down, blocks.*.mlp.gate, blocks.*.mlp.up are no" in text
    assert type(model.blocks[0].mlp.up) is nn.Linear


def test_none_changes_nothing():
    assert "Float8" not in str(whole_model({}, "none"))


def test_a_part_that_no_kernel_takes_is_refused():
    """Otherwise the ranks together would not compute what one rank computes."""
    mesh = meshes.fake_mesh(8, tensor=8)
    try:
        config = replace(MODELS["gpt2"], **SIZES | {"num_attention_heads": 8})
        with torch.device("meta"):
            model = LanguageModel(config)
        local = parallelize_module(model, tensor_plan(config), mesh)
        with pytest.raises(ValueError, match=r"parallel.tensor 8 .*: blocks.0.attention.query has \[8, 64\] of"):
            apply_float8(model, tensor_plan(config), "tensorwise", mesh, local.slices)
    finally:
        meshes.stop()


def test_an_evaluation_is_not_in_float8():
    model = whole_model({}).to_empty(device="cpu")
    initialize(model, 0)
    plain = LanguageModel(model.config)
    plain.load_state_dict(model.state_dict())
    ids = torch.arange(32).view(2, 16)
    in_training = model(ids)
    assert torch.equal(model.eval()(ids), plain.eval()(ids))
    assert not torch.equal(in_training, plain(ids))


@pytest.mark.parametrize(
    ("name", "recipe", "how"),
    [pytest.param("gpt2", "tensorwise", "none", marks=pytest.mark.slow), ("llama", "rowwise", "selective")],
)
def test_a_compiled_block_is_one_graph_with_the_same_gradients(name, recipe, how):
    config = replace(MODELS[name], **SIZES)
    batch, _, _ = batch_of(name, 0)
    found = []
    for is_compiled in (False, True):
        model = LanguageModel(config)
        initialize(model, 0)
        apply_float8(model, tensor_plan(config), recipe, Mesh(0, 1, 0, torch.device("cpu")))
        checkpoint_activations(list(model.blocks), how, kept=OPERATORS)
        if is_compiled:
            for block in model.blocks:
                block.compile(fullgraph=True, backend="aot_eager")
        Bf16Compute(model)(**rows_of(batch, name, 0, 4)).backward()
        found.append([parameter.grad for parameter in model.parameters()])
    for eager, compiled in zip(*found, strict=True):
        assert torch.equal(eager, compiled)
