"""Names of before: in files, on the command line and in manifests."""

import pytest

from ingot.launcher.config import aliases
from ingot.launcher.config.classify import ClassifyOptions
from ingot.launcher.config.finetune import FinetuneConfig
from ingot.launcher.config.parser import parse
from ingot.launcher.config.pretrain import TrainConfig
from ingot.launcher.config.reference import COMMANDS
from ingot.launcher.config.schema.options import options
from ingot.launcher.tasks.registry import TASK_KINDS


@pytest.fixture(autouse=True)
def unsaid(monkeypatch):
    monkeypatch.setattr(aliases, "_SAID", set())


def test_every_old_name_means_an_option_and_is_none_itself():
    names = {option.name for cls in COMMANDS.values() for option in options(cls)}
    assert set(aliases.OPTIONS.values()) <= names
    assert not aliases.OPTIONS.keys() & names
    choices = {option.name: option.kind.choices for option in options(FinetuneConfig)}
    choices["task.kind"] = tuple(TASK_KINDS)
    for name, values in aliases.VALUES.items():
        assert set(values.values()) <= set(choices[name]), name
        assert not values.keys() & set(choices[name]), name
    leaves = {name.rsplit(".", 1)[-1] for name in names}
    assert {name for names in aliases.SYNONYMS.values() for name in names} <= leaves
    assert not aliases.SYNONYMS.keys() - {"batch_size"} & {
        option.name.split(".")[-1] for option in options(TrainConfig)
    }


@pytest.mark.parametrize(("causal", "window"), [("true", 5), ("false", 4)])
def test_a_window_counts_the_token_itself_now(causal, window):
    """Whatever comes first, the window or the direction of the model."""
    for argv in (["--model.window", "4", "--model.causal", causal], ["--model.causal", causal, "--model.window=4"]):
        assert parse(TrainConfig, argv, "").model.sliding_window == window
    assert parse(TrainConfig, ["--model.window", "null"], "").model.sliding_window is None
    config = {"model": {"causal": causal == "true", "window": 4}}
    assert aliases.modernize(config)["model"]["sliding_window"] == window


def test_the_later_of_an_old_and_a_new_name_wins(tmp_path, capsys):
    (tmp_path / "a.yaml").write_text("run: {keep: 7}\noptimizer: {z_loss: 1e-4}\n")
    config = parse(TrainConfig, ["--config", str(tmp_path / "a.yaml"), "--run.keep_checkpoints", "2"], "")
    assert (config.run.keep_checkpoints, config.loss.z_loss) == (2, 1e-4)
    said = capsys.readouterr().err
    assert said == (
        f"note: {tmp_path}/a.yaml has old names, which are still read: run.keep is now run.keep_checkpoints; "
        f"optimizer.z_loss is now loss.z_loss\n"
    )


def test_a_label_column_that_is_a_number_is_that_of_conll_files():
    config = parse(FinetuneConfig, ["--task.label_column", "-2", "--task.label", "gold"], "")
    assert (config.task.conll_label_column, config.task.label_column) == (-2, "gold")
    assert parse(FinetuneConfig, ["--task.label_column", "gold"], "").task.label_column == "gold"


def test_an_old_name_counts_only_where_it_means_an_option():
    options = ["--checkpoint", "c", "--input", "i", "--template", "t", "--labels", "a", "b", "--normalise", "mean"]
    found = parse(ClassifyOptions, [*options, "--label", "gold"], "")
    assert (found.label_column, found.normalize) == ("gold", "mean")


def test_other_ranks_say_nothing(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    assert parse(TrainConfig, ["--run.keep", "2"], "").run.keep_checkpoints == 2
    assert capsys.readouterr().err == ""


def test_a_manifest_keeps_everything_else():
    manifest = {
        "step": 3,
        "config": {"run": {"keep": 1}, "parallel": {"deepspeed": {"a": {"b": 1}}}},
        "model": {"width": 8},
    }
    found = aliases.modernize_manifest(manifest)
    assert found == {
        "step": 3,
        "config": {"run": {"keep_checkpoints": 1}, "parallel": {"deepspeed": {"a": {"b": 1}}}},
        "model": {"hidden_size": 8},
    }
    assert manifest["config"]["run"] == {"keep": 1}
    new = TrainConfig().to_dict()
    assert aliases.modernize(new) == new


def test_a_checkpoint_from_before_chat_templates_keeps_its_form():
    old, new = ({"task": {"kind": "instruction", **more}} for more in ({}, {"chat_template": "always"}))
    forms = [aliases.modernize_manifest({"config": each})["config"]["task"]["chat_template"] for each in (old, new)]
    assert forms == ["never", "always"]
    assert "task" not in aliases.modernize_manifest({"config": {"run": {"steps": 3}}})["config"]
