"""That a step makes the host wait for no device.

The device here is `meta`, which has no numbers: whatever would read one raises an error. So does a search (`nonzero`),
whose result has a size that depends on numbers. Attention is that of other devices than the CPU.
"""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ingot.data.corpus.quarantine import Quarantine
from ingot.data.loader.reader import StepBatch
from ingot.launcher.config.optimizer import Optimizer
from ingot.launcher.config.parallel import Parallel
from ingot.launcher.config.pretrain import Run, TrainConfig
from ingot.launcher.training.bad_data import BadDataWatch, Found
from ingot.launcher.training.batch_sizes import BatchSizes
from ingot.launcher.training.build import build_engine
from ingot.launcher.training.callbacks.callback import Callbacks
from ingot.launcher.training.inputs import InputCopier
from ingot.launcher.training.job import no_inputs
from ingot.launcher.training.progress import Progress
from ingot.launcher.training.step_ahead import AgreedStep
from ingot.launcher.training.train_step import TrainStep
from ingot.model.config import ModelConfig
from ingot.model.tensor_plan import tensor_plan
from ingot.model.transformer import LanguageModel
from ingot.parallel import mesh as meshes

BATCH, LENGTH = 2, 64
COMMON = {"vocab_size": 128, "num_hidden_layers": 3, "num_attention_heads": 2, "hidden_size": 32}
MODELS = {
    "gpt": ModelConfig(**COMMON, max_position_embeddings=LENGTH),
    "llama": ModelConfig(
        **COMMON, max_position_embeddings=LENGTH, positions="rotary", norm="rmsnorm", gated_mlp=True, activation="silu",
        num_key_value_heads=1, bias=False,
    ),
    "bert": ModelConfig(**COMMON, max_position_embeddings=LENGTH, causal=False, norm_placement="post", dropout=0.1),
    "modernbert": ModelConfig(
        **COMMON, max_position_embeddings=LENGTH, causal=False, positions="rotary", layer_pattern="GLL",
        sliding_window=16,
    ),
}  # fmt: skip


def micro_batch(causal: bool) -> dict[str, np.ndarray]:
    ids = np.arange(BATCH * LENGTH, dtype=np.int64).reshape(BATCH, LENGTH) % 128
    labels = np.where(ids % 7 == 0, ids, -100) if not causal else ids
    ends = np.array([0, 10, LENGTH, LENGTH + 30, 2 * LENGTH], dtype=np.int32)
    positions = np.concatenate([np.arange(n) for n in np.diff(ends)]).reshape(BATCH, LENGTH)
    return {"input_ids": ids, "labels": labels, "positions": positions, "cu_seqlens": ends}


@pytest.mark.parametrize("name", MODELS)
def test_a_step_with_accumulation_reads_nothing_from_the_device(name):
    model = MODELS[name]
    mesh = replace(meshes.start("cpu"), device=torch.device("meta"))
    try:
        config = TrainConfig(run=Run(steps=2), model=model, parallel=Parallel(engine="fsdp", precision="bf16"))
        with mesh.device:
            module = LanguageModel(model)
        engine = build_engine(module, Optimizer(), config.parallel, mesh, plan=tensor_plan(model))
        job = SimpleNamespace(  # what a step uses of it
            config=config, engine=engine, batch_sizes=BatchSizes(2 * BATCH), loss_inputs=no_inputs
        )
        watch = BadDataWatch(Quarantine(), Callbacks(), None, max_bad_fraction=1.0)
        micro_batches = [micro_batch(model.causal)] * 2
        num_targets = 2 * int(np.count_nonzero(micro_batches[0]["labels"] >= 0))
        batch = StepBatch(micro_batches, num_targets, 1, 2 * BATCH * LENGTH, 2 * BATCH)
        step = AgreedStep(
            batch, InputCopier(mesh.device).copy(micro_batches), Found([], None), 0.0, num_targets, 1, 1, 0, (0, 0), ()
        )
        engine.module.train()
        progress = Progress()
        record = TrainStep(job, progress, watch).update(step)
        assert progress.step == 1
        with pytest.raises(RuntimeError, match="meta"):  # this would wait
            record.read()
    finally:
        meshes.stop()
