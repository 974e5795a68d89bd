"""Checkpoints that DeepSpeed itself has written, with their optimizer."""

from pathlib import Path

import pytest
import torch

from ingot.launcher import checkpoint
from ingot.launcher.config.parser import to_yaml
from ingot.launcher.config.pretrain import CorpusSource, Data, TrainConfig
from ingot.model.config import ModelConfig
from ingot.model.initialization import initialize
from ingot.model.transformer import LanguageModel
from ingot.parallel import mesh as meshes
from ingot.parallel.checkpoint import read_manifest, read_tensor
from tests.ranks import run_ranks

MODEL = {
    "vocab_size": 101,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "hidden_size": 32,
    "max_position_embeddings": 16,
}


def save_with_deepspeed(folder: Path, stage: int) -> dict[str, torch.Tensor]:
    """Trains two steps as one would without Ingot, saves, and returns the state, gathered by DeepSpeed's own means."""
    import deepspeed
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    meshes.start("cpu")
    module = LanguageModel(ModelConfig(**MODEL))
    initialize(module, 0)
    settings = {
        "train_micro_batch_size_per_gpu": 2,
        "bf16": {"enabled": True},
        "zero_optimization": {"stage": stage, "reduce_bucket_size": 100_000},
        "zero_allow_untested_optimizer": True,
    }
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3)
    engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=settings, dist_init_required=False)
    for step in range(2):
        ids = torch.randint(0, 101, (2, 16), generator=torch.Generator().manual_seed(step))
        engine.backward(engine(input_ids_BT=ids, labels_BT=ids) / ids.numel())
        engine.step()
    engine.save_checkpoint(str(folder), tag="two")
    state = {}
    for name, parameter in module.named_parameters():
        state[f"model/{name}"] = safe_get_full_fp32_param(parameter).clone()
        for moment in ("exp_avg", "exp_avg_sq"):
            state[f"optimizer/{moment}/{name}"] = safe_get_full_optimizer_state(parameter, moment).clone()
    meshes.stop()
    return {name: tensor.numpy() for name, tensor in state.items()}


@pytest.mark.distributed
@pytest.mark.slow  # test_foreign_models.py has one of these for every day
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_weights_and_moments_are_deepspeeds_to_the_last_bit(tmp_path, stage):
    expected = run_ranks(save_with_deepspeed, 2, tmp_path / "theirs", stage)[0]
    config = TrainConfig(model=ModelConfig(**MODEL), data=Data(train=[CorpusSource("corpus")]))
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    line = ["import", tmp_path / "theirs/two", "--config", tmp_path / "config.yaml", "--output", tmp_path / "ours"]
    assert checkpoint.main([*map(str, line), "--step", "2"]) == 0
    path = tmp_path / "ours/checkpoints/step-00000002"
    manifest = read_manifest(path)
    assert manifest["tensors"].keys() == expected.keys()
    for name, values in expected.items():
        assert torch.equal(read_tensor(path, manifest, name), torch.from_numpy(values)), name
    assert [path.name for path in (tmp_path / "theirs").iterdir() if path.name.startswith("tmp")] == []
