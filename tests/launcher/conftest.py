import sysconfig
from pathlib import Path

import pytest

from ingot.launcher import export
from ingot.launcher.config.prepare import PrepareOptions, TokenizerOptions
from ingot.launcher.preparation.prepare import prepare
from tests.launcher.finetune_runs import run
from tests.launcher.tiny_models import released_bert, released_gpt2, write_task


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Path:
    """A corpus of 512 token ids, made from a few files of the standard library."""
    source = Path(sysconfig.get_paths()["stdlib"])
    output = tmp_path_factory.mktemp("corpora") / "tiny"
    options = PrepareOptions(
        input=[str(source / name) for name in ("json", "email", "logging", "asyncio")],
        output=str(output),
        include=["*.py"],
        tokenizer=TokenizerOptions(vocab_size=512),
        validation_fraction=0.05,
        workers=1,
    )
    prepare(options)
    return output


@pytest.fixture(scope="session")
def bert(tmp_path_factory) -> Path:
    return released_bert(tmp_path_factory.mktemp("released") / "bert")


@pytest.fixture(scope="session")
def gpt2(tmp_path_factory) -> Path:
    return released_gpt2(tmp_path_factory.mktemp("released") / "gpt2")


@pytest.fixture(scope="session")
def knowing(bert, tmp_path_factory) -> Path:
    """A classifier that has learned the toy task, in Hugging Face's form."""
    folder = tmp_path_factory.mktemp("knowing")
    run(bert, folder, write_task("classification", folder, 240), "--task.epochs", 8)
    export.main(["--checkpoint", str(folder / "runs/run"), "--output", str(folder / "out")])
    return folder / "out"
