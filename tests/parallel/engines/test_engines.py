"""Each engine trains the same model: against a plain loop in one process, on one and on two ranks, in fp32 and bf16."""

import pytest
import torch

from ingot.parallel import mesh as meshes
from ingot.parallel.engines.zero import check_settings
from tests.parallel.toy import ENGINES, GLOBAL, Toy, build, train
from tests.ranks import run_ranks

STEPS = 6


def plain_loop() -> list[tuple[float, float]]:
    """Forward, backward, clip and AdamW as a textbook writes them: the whole batch at once, in fp32."""
    torch.manual_seed(0)
    module = Toy()
    decay = [p for p in module.parameters() if p.ndim == 2]
    rest = [p for p in module.parameters() if p.ndim < 2]
    groups = [{"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95), eps=1e-8)
    results = []
    for step in range(STEPS):
        generator = torch.Generator().manual_seed(step)
        inputs = torch.randint(0, 97, (GLOBAL, 16), generator=generator)
        labels = (inputs * 7 + 3) % 97
        labels[torch.rand(labels.shape, generator=generator) < torch.linspace(0, 0.9, GLOBAL)[:, None]] = -100
        loss = module(inputs, labels) / (labels != -100).sum()
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        results.append((float(loss), float(norm)))
    return results


def train_all() -> dict:
    """Runs in each rank: every engine in both precisions, then again from a copy of its own state."""
    mesh = meshes.start("cpu")
    results = {}
    for precision in ("fp32", "bf16"):
        for kind in ENGINES:
            engine = build(kind, mesh, precision)
            first = train(engine, 0, STEPS)
            state = {shard.key: shard.tensor.clone() for shard in engine.shards()}
            second = train(engine, STEPS, STEPS + 2)
            for shard in engine.shards():
                shard.tensor.copy_(state[shard.key])
            engine.sync_from_shards(STEPS)
            results[kind, precision] = (first, second, train(engine, STEPS, STEPS + 2))
    meshes.stop()
    return results


@pytest.fixture(scope="module", params=[1, 2], ids=["1 rank", "2 ranks"])
def results(request):
    return run_ranks(train_all, request.param)[0]


@pytest.mark.distributed
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), ("bf16", 2e-2)])
@pytest.mark.parametrize("kind", ENGINES)
def test_an_engine_trains_as_the_plain_loop_does(results, kind, precision, tolerance):
    for found, expected in zip(results[kind, precision][0], plain_loop(), strict=True):
        assert found == pytest.approx(expected, rel=tolerance)


@pytest.mark.distributed
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_all_engines_agree_far_closer_than_bf16_does_with_fp32(results, precision):
    reference = results["torch", precision][0]
    for kind in ENGINES:
        for found, expected in zip(results[kind, precision][0], reference, strict=True):
            assert found == pytest.approx(expected, rel=2e-5), kind


@pytest.mark.distributed
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", ENGINES)
def test_a_state_that_is_written_back_goes_on_to_the_last_bit(results, kind, precision):
    _, went_on, again = results[kind, precision]
    assert went_on == again


def test_deepspeed_settings_that_contradict_our_own_are_refused_by_name():
    check_settings({"zero_optimization": {"overlap_comm": True}, "wall_clock_breakdown": True})
    with pytest.raises(
        ValueError, match=r"train_batch_size \(set batch.global_size.*zero_optimization.stage \(set parallel"
    ):
        check_settings({"train_batch_size": 8, "zero_optimization": {"stage": 2}})
