"""What a manifest says of a model is read with types and ranges, by every command that opens a checkpoint."""

import copy
import json
import shutil
from pathlib import Path

import pytest

from ingot.launcher import export, generate, pretrain
from ingot.launcher.config.finetune import FinetuneConfig
from ingot.launcher.config.pretrain import TrainConfig
from ingot.launcher.loading.checkpoint_config import read_config
from ingot.launcher.runtime.exit_codes import BadInput
from ingot.parallel.checkpoint import CheckpointError, read_manifest
from ingot.parallel.checkpoint.manifest import write_manifest
from tests.launcher.runs import write_config

STEP = "checkpoints/step-00000002"


@pytest.fixture(scope="module")
def run(corpus, tmp_path_factory) -> Path:
    config = write_config(tmp_path_factory.mktemp("crafted"), corpus)
    options = ["--run.steps", "2", "--run.save_every", "1", "--parallel.engine", "fsdp"]
    assert pretrain.main(["--config", str(config), *options]) == 0
    return config.parent / "runs/tiny"


def test_a_saved_configuration_is_read_again():
    for cls in (TrainConfig, FinetuneConfig):
        config = cls()
        assert read_config(cls, json.loads(json.dumps(config.to_dict())), Path("x")) == config
    with pytest.raises(CheckpointError, match=r"x was made by another version of Ingot: run.speed is no option"):
        read_config(TrainConfig, {"run": {"speed": 3}}, Path("x"))


MODEL = "config.model"
CRAFTED = [
    ("config", {}),
    ("config", "GONE"),
    (MODEL, None),
    (MODEL, "GONE"),
    (MODEL, [1]),
    (f"{MODEL}.num_hidden_layers", 10**9),
    (f"{MODEL}.num_hidden_layers", -1),
    (f"{MODEL}.hidden_size", "wide"),
    (f"{MODEL}.hidden_size", 10**12),
    (f"{MODEL}.hidden_size", 33),
    (f"{MODEL}.vocab_size", 10**18),
    (f"{MODEL}.norm", "x"),
    (f"{MODEL}.activation", None),
    (f"{MODEL}.rope_theta", [1]),
    (f"{MODEL}.rope_scaling", 7),
    (f"{MODEL}.width_of_nothing", 1),
    ("model", {}),
    ("labels", ["a"]),
    ("data", {}),
    ("data.seed", None),
    ("cursor", 10**15),
]


@pytest.mark.parametrize(("name", "value"), CRAFTED)
def test_no_command_ends_in_a_traceback(run, tmp_path, name, value):
    shutil.copytree(run, tmp_path / "runs/tiny")
    path = tmp_path / "runs/tiny" / STEP
    manifest = copy.deepcopy(read_manifest(path))
    *sections, last = name.split(".")
    section = manifest
    for key in sections:
        section = section[key]
    if value == "GONE":
        del section[last]
    else:
        section[last] = value
    write_manifest(path, manifest)
    config = str(run / "config.yaml")
    commands = [
        (generate, ["--checkpoint", path, "--prompt", "a", "--max_tokens", "2"]),
        (export, ["--checkpoint", path, "--output", tmp_path / "out"]),
        (pretrain, ["--config", config, "--run.dir", tmp_path / "runs", "--run.steps", "3"]),
    ]
    ended = []
    for command, arguments in commands:
        try:
            command.main([str(argument) for argument in arguments])
            ended.append("done")
        except BadInput as error:
            ended.append(str(error))
    if name.startswith("config"):
        assert all("step-00000002" in text for text in ended[:2]), ended
        assert not (tmp_path / "out").exists()
        assert ended[2] == "done"  # a run has its own configuration
