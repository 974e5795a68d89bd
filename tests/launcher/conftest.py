from pathlib import Path

import pytest

from ingot.launcher import export
from tests.launcher.finetune_runs import run
from tests.launcher.tiny_models import released_bert, released_gpt2, write_task


@pytest.fixture(scope="session")
def bert(tmp_path_factory) -> Path:
    return released_bert(tmp_path_factory.mktemp("released") / "bert")


@pytest.fixture(scope="session")
def gpt2(tmp_path_factory) -> Path:
    return released_gpt2(tmp_path_factory.mktemp("released") / "gpt2")


@pytest.fixture(scope="session")
def knowing(bert, tmp_path_factory) -> Path:
    """A classifier, trained on the toy task, in Hugging Face's form."""
    folder = tmp_path_factory.mktemp("knowing")
    run(bert, folder, write_task("classification", folder, 240), "--task.epochs", 8)
    export.main(["--checkpoint", str(folder / "runs/run"), "--output", str(folder / "out")])
    return folder / "out"
