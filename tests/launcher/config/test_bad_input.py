"""What a user can get wrong ends with exit code 2, one message that names it, and nothing written."""

import json
import shutil

import pytest

from ingot.launcher import generate, pretrain
from ingot.launcher.runtime import exit_codes
from tests.launcher.runs import launch, write_config


@pytest.fixture
def config(corpus, tmp_path):
    return write_config(tmp_path, corpus)


def refusal(capsys, arguments: list, main=pretrain.main) -> str:
    """Runs a command in this process, up to where it would start to train, and returns its one message."""
    with pytest.raises(exit_codes.BadInput) as caught:
        main([str(argument) for argument in arguments])
    assert capsys.readouterr().out == ""
    return str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--run.stps", "3"], r"unknown option run.stps; did you mean run.steps\?"),
        (["--run.steps", "many"], r"run.steps is many; it must be a whole number from 1 to 10\^9"),
        (["--data.objective", "rtd"], r"data.objective is rtd; it must be one of clm, mlm"),
        (
            ["--batch.global_size", "10", "--batch.micro_size", "4"],
            r"micro-batch of 4 .* the 10 sequences of each rank.*use a micro-batch of 2 or 5",
        ),
        (["--data.sequence_length", "65"], r"data.sequence_length 65 is beyond the model's 64 positions"),
        (["--data.objective", "mlm"], r"data.objective mlm needs model.causal false"),
        (["--data.train", "[]"], r"data.train names no corpus"),
        (
            ["--run.steps", "0", "--optimizer.learning_rate", "-1"],
            r"run.steps is 0; it must be .*optimizer.learning_rate is -1",
        ),
        (["--model.num_attention_heads", "3"], r"hidden_size 32 is not a multiple of num_attention_heads 3"),
        (["--model.vocab_size", "500"], r"tokenizer .* has 512 ids, and model.vocab_size is 500"),
        (
            ["--model.hidden_size", "1000000", "--parallel.engine", "fsdp"],
            r"there is not enough memory for the model and its optimizer .* run.dry_run says what they need",
        ),
        (["--run.resume", "nowhere"], r"nowhere holds no checkpoint"),
        (["--data.train", "[{path: /nowhere}]"], r"/nowhere"),
        (["--data.train", "[{path: CORPUS, split: test}]"], r"test.*train.*validation"),
        (
            ["--data.sequence_length", "64", "--data.train", "[{path: CORPUS, weight: -1}]"],
            r"data.train\[0\].weight is -1; it must be a number above 0",
        ),
    ],
)
def test_a_configuration_that_cannot_work(capsys, config, corpus, tmp_path, arguments, message):
    arguments = [argument.replace("CORPUS", str(corpus)) for argument in arguments]
    assert_matches(message, refusal(capsys, ["--config", config, *arguments]))
    assert not (tmp_path / "runs").exists()


def assert_matches(pattern: str, text: str) -> None:
    import re

    assert re.search(pattern, text, re.DOTALL), text


def test_configuration_files(capsys, config):
    assert_matches("nowhere.yaml", refusal(capsys, ["--config", "nowhere.yaml"]))
    config.write_text(config.read_text().replace("steps: 20", "stepps: 20", 1))
    assert_matches(
        r"run.stepps .*config.yaml, line 2.; did you mean run.steps\?", refusal(capsys, ["--config", config])
    )


def test_corpora_that_are_empty_or_unfinished_or_of_another_tokenizer(capsys, config, corpus, tmp_path):
    def with_corpus(path):
        return refusal(capsys, ["--config", config, "--data.train", f"[{{path: {corpus}}}, {{path: {path}}}]"])

    empty = tmp_path / "empty"
    empty.mkdir()
    assert_matches("empty", with_corpus(empty))
    unfinished = tmp_path / "unfinished"
    shutil.copytree(corpus, unfinished)
    (unfinished / "manifest.json").unlink()
    assert_matches("unfinished.*manifest.json", with_corpus(unfinished))
    other = tmp_path / "other"
    shutil.copytree(corpus, other)
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["tokenizer"] |= {"sha256": "0" * 64, "encoding_sha256": "0" * 64}
    (other / "manifest.json").write_text(json.dumps(manifest))
    assert_matches("another tokenizer", with_corpus(other))


def test_the_command_says_it_once_and_exits_with_2(config):
    result = launch("python", "--config", config, "--run.stps", 3, code=2)
    assert result.stderr == "error: unknown option run.stps; did you mean run.steps?\n"
    assert result.stdout == ""


@pytest.mark.distributed
def test_ranks_that_do_not_divide_the_batch_are_refused_under_a_launcher(config):
    for launcher in ("deepspeed 2", "torchrun 2"):
        arguments = ["--config", config, "--batch.global_size", 9, "--batch.micro_size", 1]
        result = launch(launcher, *arguments, code=2 if launcher == "deepspeed 2" else 1)  # torchrun has its own code
        message = "a global batch of 9 sequences cannot be divided among 2 data ranks: use a global batch of 8 or 10"
        assert (result.stdout + result.stderr).count(message) == 1


def test_checkpoints_of_another_model_or_other_data(corpus, config, tmp_path):
    common = ["--config", config, "--parallel.engine", "fsdp", "--run.steps"]
    launch("python", *common, 2)
    before = (tmp_path / "runs/tiny/config.yaml").read_text()
    result = launch("python", *common, 4, "--model.hidden_size", 48, code=2)
    assert_matches(
        r"made by another model: .*\[32, 32\] there and \[48, 48\] here.*hidden_size was 32 and is 48", result.stderr
    )
    result = launch("python", *common, 4, "--data.sequence_length", 16, code=2)
    assert_matches("^loading torch ...\n.*sequence_length was 32 and is 16.*data.allow_changed", result.stderr)
    result = launch("python", *common, 4, "--run.resume", "never", code=2)
    assert_matches("already holds checkpoints up to step-00000002", result.stderr)
    assert (tmp_path / "runs/tiny/config.yaml").read_text() == before
    launch("python", *common, 4, "--data.sequence_length", 16, "--data.allow_changed", "true")


def test_a_damaged_checkpoint_is_passed_over_and_only_damaged_ones_are_an_error(config, tmp_path):
    common = ["--config", config, "--parallel.engine", "fsdp", "--run.save_every", 2, "--run.steps"]
    launch("python", *common, 4)
    folder = tmp_path / "runs/tiny/checkpoints"

    def damage(name):
        file = folder / name / "rank-00000.safetensors"
        content = bytearray(file.read_bytes())
        content[-5] ^= 4
        file.write_bytes(content)

    damage("step-00000004")
    result = launch("python", *common, 4)
    assert_matches("skipped: checkpoint .*step-00000004 is damaged: 1 tensors have another digest", result.stderr)
    assert_matches("resumed from .*step-00000002", result.stderr)
    assert (folder / "step-00000004.damaged-1").is_dir()  # left for inspection, and a sound one stands in its place

    damage("step-00000004")
    damage("step-00000002")
    result = launch("python", *common, 5, code=2)
    assert_matches(
        "step-00000004 is damaged.*step-00000002 is damaged.*None of the checkpoints is intact", result.stderr
    )


def test_generate_refuses_what_is_no_checkpoint(capsys, tmp_path):
    message = refusal(capsys, ["--checkpoint", tmp_path / "none"], generate.main)
    assert_matches("holds no checkpoint", message)
    assert_matches(
        "did you mean temperature", refusal(capsys, ["--checkpoint", "x", "--temprature", "1"], generate.main)
    )
