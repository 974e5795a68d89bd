"""What engines send in a step: counted on real ranks, and equal to what the planner says."""

from dataclasses import replace

import pytest

from ingot.launcher.planning.footprint import footprint_of, layout_of
from ingot.parallel import mesh as meshes
from ingot.parallel.memory_plan import traffic
from tests.layouts import MODELS, Layout, config_of, difference, engine_in, shape_of, train_on, train_plainly
from tests.ranks import run_ranks
from tests.traffic import Traffic

IN_PIECES = {"deepspeed": {"zero_optimization": {"overlap_comm": True, "reduce_bucket_size": 3000}}}
"""Buckets smaller than the table of the vocabulary, and filled while the one before is reduced."""
CASES: list[tuple[str, Layout, dict]] = [
    *(("llama", Layout(f"zero-{stage}", 1, 2, "bf16"), {}) for stage in range(4)),
    ("llama", Layout("zero-1"), {}),
    ("gpt2", Layout("zero-1", 1, 2, "bf16"), IN_PIECES),
    ("gpt2", Layout("zero-2"), IN_PIECES),
    ("llama", Layout("zero-1", 1, 2, "bf16"), {"reduce_dtype": "bf16"}),
    ("llama", Layout("zero-1", 1, 2, "bf16"), {"offload": "optimizer"}),
    ("llama", Layout("zero-3"), {"reduce_dtype": "bf16"}),
    ("llama", Layout("replicate", 1, 2, "bf16"), {}),
    ("llama", Layout("replicate"), {"reduce_dtype": "bf16"}),
    ("llama", Layout("fsdp2", 1, 2, "bf16"), {}),
    ("gpt2", Layout("fsdp2", 1, 2), {}),
    ("bert", Layout("fsdp2", 1, 1, "bf16"), {}),
    ("llama", Layout("fsdp2", 1, 2, "bf16"), {"reshard_after_forward": False}),
    ("llama", Layout("fsdp2", 1, 2), {"sync_each_micro_batch": False}),
    ("llama", Layout("fsdp2", 1, 2, "bf16"), {"reduce_dtype": "bf16"}),
]
TENSOR: list[tuple[str, Layout, dict]] = [
    ("llama", Layout("replicate", 2, 2), {}),
    ("gpt2", Layout("replicate", 2, 2, "bf16"), {}),
    ("bert", Layout("zero-0", 2, 2), {}),
    ("gpt2", Layout("zero-1", 2, 2), {}),
]
HYBRID = [
    ("llama", Layout("hsdp", 1, 2, "bf16"), {}),
    ("llama", Layout("hsdp", 1, 2, "fp32"), {"sync_each_micro_batch": False, "reshard_after_forward": False}),
    ("gpt2", Layout("zero-1", 1, 2, "bf16"), {}),
]
SMALL = 128
"""Bytes. Norms of gradients and the like are below, and no plan counts them."""


def count_in(cases: list[tuple[str, Layout, dict]]) -> list[dict]:
    """In each rank: bytes that were counted and planned, collectives by kind, and how far a training is from a plain
    loop's. The first steps are not counted: engines arrange themselves there."""
    world, found = meshes.start("cpu"), []
    for model, layout, parallel in cases:
        engine = engine_in(model, layout, world, **parallel)
        results = train_on(engine, model, layout, 0, 2)
        with Traffic(at_least=SMALL) as counted:
            results += train_on(engine, model, layout, 2, 3)
        config = config_of(model, layout, world.world_size // layout.tensor, **parallel)
        if layout.engine in ("replicate", "hsdp"):
            shard = shape_of(world, layout).data_shard
            config = replace(config, parallel=replace(config.parallel, data_shard=shard))
        plan = traffic(footprint_of(config), layout_of(config, world.world_size))
        kinds = {kind: counted.number(kind) for kind in ("all_reduce", "all_gather", "reduce_scatter", "reduce")}
        groups = sorted(name for name, part in engine.module.named_modules() if "FSDP" in type(part).__name__)
        found.append(
            {
                "counted": counted.total(),
                "planned": plan.data + plan.tensor,
                "kinds": kinds,
                "results": results,
                "groups": groups,
            }
        )
    meshes.stop()
    return found


@pytest.fixture(scope="module")
def found():
    """By name of the case, from rank 0."""
    results = run_ranks(count_in, 2, CASES + TENSOR)[0] + run_ranks(count_in, 4, HYBRID)[0]
    return {name(case): result for case, result in zip(CASES + TENSOR + HYBRID, results, strict=True)}


def name(case: tuple[str, Layout, dict]) -> str:
    model, layout, parallel = case
    return f"{model} {layout} {parallel}"


@pytest.fixture(scope="module")
def expected():
    return {model: train_plainly(model, 3) for model in MODELS}


@pytest.mark.distributed
@pytest.mark.parametrize("case", CASES + TENSOR + HYBRID, ids=name)
def test_an_engine_sends_what_the_plan_says(found, case):
    result = found[name(case)]
    # Tensor ranks also exchange three numbers a token for the loss, which is much where D is 32.
    assert result["counted"] == pytest.approx(result["planned"], rel=0.05 if case in TENSOR else 0.015)


@pytest.mark.distributed
@pytest.mark.parametrize("case", CASES + TENSOR + HYBRID, ids=name)
def test_what_is_sent_in_another_way_trains_as_one_process_does(found, expected, case):
    model, layout, parallel = case
    limit = 5e-3 if layout.precision == "bf16" or "reduce_dtype" in parallel else 1e-6
    assert difference(found[name(case)]["results"], expected[model]) < limit


@pytest.mark.distributed
def test_fsdp_gathers_and_reduces_by_groups(found):
    """Where embedding and head share a table, the root has it; otherwise each is a group. The last block stays gathered
    for the backward pass, and a table is not gathered for it."""
    blocks = ["blocks.0", "blocks.1"]
    apart = found["llama fsdp2 x tensor 1 x accumulation 2, bf16 {}"]
    assert apart["groups"] == ["", *blocks, "embedding.token", "final_norm", "head"]
    assert (apart["kinds"]["all_gather"], apart["kinds"]["reduce_scatter"]) == (2 * (1 + 2 + 1 + 1), 2 * 4)
    tied = found["gpt2 fsdp2 x tensor 1 x accumulation 2, fp32 {}"]
    assert tied["groups"] == ["", *blocks]
    assert (tied["kinds"]["all_gather"], tied["kinds"]["reduce_scatter"]) == (2 * (1 + 2 + 1), 2 * 3)
    kept = found["llama fsdp2 x tensor 1 x accumulation 2, bf16 {'reshard_after_forward': False}"]
    assert (kept["kinds"]["all_gather"], kept["kinds"]["reduce_scatter"]) == (2 * 4, 2 * 4)
    once = found["llama fsdp2 x tensor 1 x accumulation 2, fp32 {'sync_each_micro_batch': False}"]
    assert (once["kinds"]["all_gather"], once["kinds"]["reduce_scatter"]) == (2 * 5, 4)


@pytest.mark.distributed
def test_zero_1_in_bf16_reduces_to_the_owners_once(found):
    kinds = found["llama zero-1 x tensor 1 x accumulation 2, bf16 {}"]["kinds"]
    assert kinds["all_reduce"] == 0
    assert kinds["reduce"] == 2  # one bucket, two owners


@pytest.mark.distributed
def test_partial_gradients_of_tensor_ranks_are_summed_once_a_step(found):
    """GPT-2 has 4 norms and biases in each of 2 layers, a last norm, and 2 micro-batches."""
    once = found[name(TENSOR[1])]["kinds"]["all_reduce"]
    each_use = found[name(TENSOR[3])]["kinds"]["all_reduce"]  # DeepSpeed divides gradients as they come
    partial = 2 * (2 * 2 + 2) + 2
    assert each_use - once == 2 * partial - 1
    for kind in ("all_gather", "reduce_scatter"):  # 4 a layer, and embedding and head
        assert found[name(TENSOR[1])]["kinds"][kind] == {"all_gather": 2 * (2 * 4 + 2), "reduce_scatter": 2 * 9}[kind]
