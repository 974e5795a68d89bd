"""`import ingot`: the documented functions, equal to the commands that do the same."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import ingot
from ingot.launcher import pretrain
from ingot.launcher.runtime.exit_codes import BadInput
from tests.launcher.runs import records, write_config

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def config(corpus, tmp_path_factory):
    return write_config(tmp_path_factory.mktemp("api"), corpus)


@pytest.fixture(scope="module")
def run(config):
    """A run of four steps by the command, in this process."""
    options = ["--run.steps", "4", "--run.log_every", "1", "--parallel.engine", "fsdp", "--run.name", "command"]
    assert pretrain.main(["--config", str(config), *options]) == 0
    return config.parent / "runs/command"


def test_importing_it_is_quick_and_imports_no_torch():
    code = "import sys, ingot; sys.exit('torch' in sys.modules or not hasattr(ingot, '__all__'))"
    start = time.perf_counter()
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
    assert time.perf_counter() - start < 2
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = ingot.nothing


def test_steps_in_a_notebook_are_those_of_the_command(config, run):
    options = {"run.steps": 4, "parallel.engine": "fsdp", "run.name": "notebook"}
    with ingot.Training(config, **options) as training:
        taken = [training.step() for _ in range(2)]
        saved = training.save()
        scores = training.evaluate()
        taken += [training.step(), training.step()]
        with pytest.raises(StopIteration):
            training.step()
    wanted = records(run, "train")
    for name in ("step", "loss", "grad_norm", "batch_fingerprint", "learning_rate"):
        assert [record[name] for record in taken] == [record[name] for record in wanted]
    assert scores["perplexity"] > 1
    assert saved.name == "step-00000002"
    with ingot.Training(config, **options) as training:
        assert training.progress.step == 2
        assert training.step()["loss"] == wanted[2]["loss"]


def test_what_is_wrong_is_said_in_one_message(config):
    with pytest.raises(BadInput, match=r"run\.stps"):
        ingot.Training(config, **{"run.stps": 3})


def test_a_model_goes_out_and_comes_back(run, tmp_path):
    model, tokenizer = ingot.load(run)
    ingot.save(model, tokenizer, tmp_path / "folder")
    again, same = ingot.load(tmp_path / "folder")
    ids = torch.tensor([tokenizer.encode("import os\n")])
    assert torch.equal(model(ids), again(ids))
    assert same.encode("import os\n") == tokenizer.encode("import os\n")


def test_several_prompts_give_the_text_of_each(run):
    model, tokenizer = ingot.load(run)
    prompts = ["import os", "def f(", ""]
    together = ingot.generate(model, tokenizer, prompts, max_tokens=8, temperature=0)
    assert together == [ingot.generate(model, tokenizer, text, max_tokens=8, temperature=0) for text in prompts]


def test_a_corpus_is_read_as_a_run_reads_it(corpus, run):
    seed = 7  # of the tiny configuration, as are the sizes
    reader = ingot.read_corpus(corpus, sequence_length=32, batch_size=8, seed=seed)
    found = [f"{next(steps).fingerprint:016x}" for steps in [reader.steps()] for _ in range(4)]
    reader.close()
    assert found == [record["batch_fingerprint"] for record in records(run, "train")]
