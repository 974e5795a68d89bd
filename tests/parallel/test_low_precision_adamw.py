"""AdamW with moments in bf16: its rounding, its updates, and its state in every engine and checkpoint."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ingot.launcher.training.build import build_pretraining_engine
from ingot.parallel import checkpoint, low_precision_adamw
from ingot.parallel import mesh as meshes
from ingot.parallel.engines.engine import Engine
from ingot.parallel.low_precision_adamw import round_to_bf16
from ingot.parallel.mesh import Mesh
from ingot.parallel.optimizer import adamw, create_state
from tests.layouts import Layout, config_of, difference, shape_of, train_on
from tests.ranks import run_ranks

SETTINGS = {"learning_rate": 1e-2, "betas": (0.9, 0.999), "eps": 1e-8}


def rounded(x: torch.Tensor, step: int) -> torch.Tensor:
    out = torch.empty_like(x, dtype=torch.bfloat16)
    round_to_bf16(x, torch.tensor(float(step)), 0, out=out)
    return out.float()


def test_a_number_becomes_one_of_its_two_neighbours_and_itself_on_average():
    torch.manual_seed(0)
    x = torch.randn(1000) * torch.logspace(-30, 30, 1000)
    below = (x.view(torch.int32) >> 16 << 16).view(torch.float32)  # towards zero
    above = ((x.view(torch.int32) >> 16) + 1 << 16).view(torch.float32)
    found = torch.stack([rounded(x, step) for step in range(256)])
    assert ((found == below) | (found == above)).all()
    errors = (found.double().mean(0) - x.double()) / (above - below).double().abs()
    assert errors.abs().max() < 0.01  # of a bf16 digit
    assert torch.equal(rounded(x.bfloat16().float(), 77), x.bfloat16().float())
    assert torch.equal(rounded(torch.tensor([0.0, torch.inf, -torch.inf]), 9), torch.tensor([0, torch.inf, -torch.inf]))


def test_a_long_run_is_right_on_average_too():
    """2^16 steps reach each threshold once; a later part of the sequence is as even as the first."""
    x = torch.full((1,), 1.0 + 0.3 * 2**-7)
    for first in (0, 65_000, 1_000_000):
        mean = torch.stack([rounded(x, first + step) for step in range(1000)]).mean().item()
        assert mean == pytest.approx(x.item(), abs=0.01 * 2**-7)


def parameters() -> list[torch.nn.Parameter]:
    torch.manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape)) for shape in ((37, 16), (5,), (1,))]


def optimizer_of(group: list[torch.nn.Parameter], state_dtype: str) -> torch.optim.Optimizer:
    optimizer = adamw([{"params": group, "weight_decay": 0.1}], state_dtype=state_dtype, **SETTINGS)
    create_state(optimizer, group)
    return optimizer


def train(state_dtype: str, steps: int) -> list[torch.Tensor]:
    group = parameters()
    optimizer = optimizer_of(group, state_dtype)
    for step in range(steps):
        for number, parameter in enumerate(group):
            generator = torch.Generator().manual_seed(100 * step + number)
            parameter.grad = torch.randn(parameter.shape, generator=generator) + parameter.detach()
        optimizer.step()
    return [parameter.detach() for parameter in group]


def test_the_first_update_is_that_of_torch_and_later_ones_stay_near():
    for one, other in zip(train("fp32", 1), train("bf16", 1), strict=True):
        assert torch.equal(one, other)
    moved = train("fp32", 50)
    for one, other, start in zip(moved, train("bf16", 50), parameters(), strict=True):
        assert 0 < (one - other).norm() < 5e-3 * (one - start).norm()


def test_pieces_change_nothing(monkeypatch):
    whole = train("bf16", 3)
    monkeypatch.setattr(low_precision_adamw, "PIECE", 64)  # as many as the kernel takes at once, or several times
    for one, other in zip(whole, train("bf16", 3), strict=True):
        assert torch.equal(one, other)


def test_a_moment_that_changes_little_in_a_step_changes_after_all():
    """The mean of squared gradients falls by 0.1 % a step without gradients. To the nearest it would stay for ever."""
    group = parameters()[:1]
    optimizer = optimizer_of(group, "bf16")
    moment = optimizer.state[group[0]]["exp_avg_sq"]
    moment.copy_(torch.rand(moment.shape) + 0.5)
    start = moment.float()
    assert torch.equal((start * 0.999).bfloat16(), moment)
    group[0].grad = torch.zeros_like(group[0])
    for _ in range(1000):
        optimizer.step()
    assert moment.dtype == torch.bfloat16
    fell = moment.float() / start / 0.999**1000
    assert (fell - 1).abs().max() < 0.04
    assert fell.mean().item() == pytest.approx(1, abs=0.01)


STEPS = 4
LAYOUTS: list[tuple[Layout, dict]] = [  # with further settings of the section parallel
    (Layout("zero-0", 2), {}),
    (Layout("zero-1", 1, 2, "bf16"), {}),
    (Layout("zero-2"), {"offload": "optimizer"}),
    (Layout("zero-3", 1, 2), {}),
    (Layout("fsdp2"), {"offload": "all"}),
    (Layout("replicate", 1, 1, "bf16"), {}),
]


def engine_of(layout: Layout, world: Mesh, state_dtype: str = "bf16", **parallel: object) -> Engine:
    mesh = shape_of(world, layout)
    config = config_of("llama", layout, mesh.num_data, **parallel)
    return build_pretraining_engine(
        replace(config, optimizer=replace(config.optimizer, state_dtype=state_dtype, betas=(0.9, 0.999))), mesh
    )


def types_of(engine: Engine) -> set:
    return {(shard.name.split("/")[0], shard.tensor.dtype) for shard in engine.shards()}


def copies(engine: Engine) -> dict:
    return {shard.key: shard.tensor.clone() for shard in engine.shards()}


def in_each_layout(world: Mesh) -> list:
    found = []
    for layout, parallel in LAYOUTS:
        engine = engine_of(layout, world, **parallel)
        assert types_of(engine) == {("model", torch.float32), ("optimizer", torch.bfloat16)}, layout
        found.append(train_on(engine, "llama", layout, 0, STEPS))
    return found


def save_and_load(world: Mesh, folder: Path) -> dict:
    """Saves in one engine and loads in others, which keep the moments in bf16 and in fp32."""
    found: dict = {}
    first, other = Layout("zero-1", 2), Layout("fsdp2")
    engine = engine_of(first, world)
    train_on(engine, "llama", first, 0, 3)
    checkpoint.save(folder / "bf16", engine.shards(), step=3, metadata={}, keep=0)
    found["straight"] = train_on(engine, "llama", first, 3, STEPS)
    path = folder / "bf16/step-00000003"
    for state_dtype in ("bf16", "fp32"):
        engine = engine_of(other, world, state_dtype)
        checkpoint.load(path, engine.shards())  # checks every digest
        engine.sync_from_shards(3)
        if state_dtype == "fp32":
            checkpoint.save(folder / "fp32", engine.shards(), step=3, metadata={}, keep=0)
        else:
            before = copies(engine)
        found[state_dtype] = train_on(engine, "llama", other, 3, STEPS)
    engine = engine_of(other, world)  # and back again
    checkpoint.load(folder / "fp32/step-00000003", engine.shards())
    found["back"] = all(torch.equal(tensor, before[key]) for key, tensor in copies(engine).items())
    return found


def everything(folder: Path) -> tuple:
    world = meshes.start("cpu")
    found = in_each_layout(world), save_and_load(world, folder)
    meshes.stop()
    return found


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    (alone,) = run_ranks(one_process, 1)
    return alone, run_ranks(everything, 2, folder), folder


def one_process() -> dict:
    world, found = meshes.start("cpu"), {}
    for precision, state_dtype in (("fp32", "bf16"), ("bf16", "bf16"), ("fp32", "fp32")):
        layout = Layout("replicate", 1, 1, precision)
        found[precision, state_dtype] = train_on(engine_of(layout, world, state_dtype), "llama", layout, 0, STEPS)
    meshes.stop()
    return found


@pytest.mark.distributed
def test_every_layout_trains_as_one_process_does(results):
    alone, ranks, _ = results
    for found, _ in ranks:
        for (layout, _), losses in zip(LAYOUTS, found, strict=True):
            limit = {"fp32": 1e-5, "bf16": 5e-3}[layout.precision]
            assert difference(losses, alone[layout.precision, "bf16"]) < limit, layout
    assert 0 < difference(alone["fp32", "bf16"], alone["fp32", "fp32"]) < 1e-3


@pytest.mark.distributed
def test_a_checkpoint_goes_on_in_another_engine_and_in_another_type(results):
    _, ranks, folder = results
    for _, found in ranks:
        assert difference(found["bf16"], found["straight"]) < 1e-5
        assert 0 < difference(found["fp32"], found["straight"]) < 1e-3
        assert found["back"]
    for name, dtype in (("bf16", "bfloat16"), ("fp32", "float32")):
        tensors = checkpoint.read_manifest(folder / name / "step-00000003")["tensors"]
        types = {tensor.split("/")[0]: entry["dtype"] for tensor, entry in tensors.items()}
        assert types == {"model": "float32", "optimizer": dtype}
