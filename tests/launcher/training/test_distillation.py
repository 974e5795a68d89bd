"""Pretraining with a teacher."""

from pathlib import Path

import pytest

from ingot.launcher import pretrain
from ingot.launcher.runtime.exit_codes import BadInput
from tests.launcher.runs import launch, records, write_config

OPTIONS = ["--run.device", "cpu", "--parallel.precision", "fp32", "--distillation.weight", "0.9"]


@pytest.fixture(scope="module")
def teacher(corpus, tmp_path_factory) -> Path:
    """A trained teacher, twice as wide as the student."""
    folder = tmp_path_factory.mktemp("teacher")
    config = write_config(folder, corpus)
    options = [
        "--parallel.engine",
        "fsdp",
        "--model.hidden_size",
        64,
        "--run.steps",
        60,
        "--optimizer.lr_decay_steps",
        60,
    ]
    launch("python", "--config", config, *OPTIONS[:4], *options)
    return folder / "runs/tiny"


@pytest.mark.distributed
def test_every_layout_learns_the_same_from_a_teacher(teacher, corpus, tmp_path):
    found = {}
    for launcher, layout in (("python", ["fsdp"]), ("deepspeed 2", ["zero", "--parallel.zero_stage", 3])):
        folder = tmp_path / layout[0]
        config = write_config(folder, corpus)
        options = [*OPTIONS, "--distillation.teacher", teacher, "--parallel.engine", *layout]
        launch(launcher, "--config", config, *options)
        found[layout[0]] = [record["loss"] for record in records(folder / "runs/tiny")]
        (scores,) = records(folder / "runs/tiny", "eval")
        assert scores["loss"] < scores["unigram_entropy"] + 0.5  # scores of the text
    assert found["zero"] == pytest.approx(found["fsdp"], rel=1e-5)
    assert found["fsdp"][-1] < found["fsdp"][0] / 2  # mostly a divergence, whose minimum is 0


def test_teachers_that_do_not_fit_are_refused(teacher, bert, corpus, tmp_path):
    config = str(write_config(tmp_path, corpus))
    for given, message in (
        (["--distillation.teacher", str(tmp_path)], "no checkpoint"),
        (["--distillation.teacher", str(bert)], "holds a model with a features head, which is not a language model"),
        (
            ["--distillation.teacher", str(teacher), "--model.vocab_size", "600"],
            "a causal language model with vocab_size 512",
        ),
        (
            ["--distillation.teacher", str(teacher), "--data.objective", "mlm", "--model.causal", "false"],
            "is a masked language model",
        ),
        (
            ["--distillation.teacher", str(teacher), "--distillation.hidden_weight", "1"],
            "hidden_size of the teacher is 64",
        ),
        (["--distillation.weight", "2"], "distillation.weight is 2; it must be a number from 0 to 1"),
    ):
        with pytest.raises(BadInput, match=message):
            pretrain.main(["--config", config, "--run.device", "cpu", *given])
    assert not (tmp_path / "runs").exists()
