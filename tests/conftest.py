"""What tests of several rooms start from."""

import sysconfig
from pathlib import Path

import pytest

from ingot.launcher.config.prepare import PrepareOptions, TokenizerOptions
from ingot.launcher.preparation.prepare import prepare


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
