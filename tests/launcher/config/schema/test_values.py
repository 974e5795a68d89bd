"""Each option's values: what is taken, what is refused and in which words, and all mistakes at once."""

import re
from dataclasses import MISSING

import pytest

from ingot.launcher.config import aliases
from ingot.launcher.config.classify import ClassifyOptions
from ingot.launcher.config.finetune import FinetuneConfig
from ingot.launcher.config.generate import GenerateOptions
from ingot.launcher.config.optimizer import Optimizer
from ingot.launcher.config.parser import parse, to_yaml
from ingot.launcher.config.predict import PredictOptions
from ingot.launcher.config.prepare import PrepareOptions
from ingot.launcher.config.pretrain import TrainConfig
from ingot.launcher.config.reference import COMMANDS
from ingot.launcher.config.schema.options import kinds, options
from ingot.launcher.config.schema.types import Range
from ingot.launcher.runtime.exit_codes import BadInput


def refusal(cls: type, *argv: str) -> str:
    with pytest.raises(BadInput) as caught:
        parse(cls, list(argv), "")
    return str(caught.value)


def test_all_mistakes_of_a_file_and_the_command_line_are_said_at_once(tmp_path):
    (tmp_path / "file.yaml").write_text("run: {stps: 3, save_every: -1}\nmodle: {width: 3}\ndata: {objective: rtd}\n")
    text = refusal(
        TrainConfig, "--config", str(tmp_path / "file.yaml"), "--optimizer.betas", "[2, x]", "loose", "--run.dir"
    )
    place = f"({tmp_path}/file.yaml, line "
    assert text.split("; ") == [
        "loose does not belong to an option",
        "options are written as --NAME VALUE",
        "run.dir is given without a value",
        "write --run.dir VALUE",
        f"unknown option modle {place}2)",
        f"unknown option run.stps {place}1)",
        "did you mean run.steps?",
        "run.save_every is -1",
        f"it must be a whole number from 0 to 10^9 {place}1)",
        "data.objective is rtd",
        f"it must be one of clm, mlm {place}3)",
        "optimizer.betas[0] is 2",
        "it must be a number of at least 0 and below 1",
        "optimizer.betas[1] is x",
        "it must be a number of at least 0 and below 1",
    ]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--run.steps", "2.5"], "run.steps is 2.5; it must be a whole number from 1 to 10^9"),
        (["--run.steps", "true"], "run.steps is true; it must be a whole number"),
        (["--run.log_every", "null"], "run.log_every is null; it must be a whole number"),
        (["--run.steps", "nan"], "run.steps is nan; it must be a whole number"),
        (["--run.seed", "1000000000000"], "run.seed is 1000000000000; it must be a whole number from 0 to 2^28 - 1"),
        (["--run.dry_run_ranks", "0"], "it must be a whole number from 1 to 10^6 or null"),
        (
            ["--optimizer.learning_rate", "inf"],
            "optimizer.learning_rate is inf; it must be a number above 0 and at most 10^15",
        ),
        (["--optimizer.momentum", "1"], "optimizer.momentum is 1; it must be a number of at least 0 and below 1"),
        (["--data.mlm_probability", "0"], "data.mlm_probability is 0; it must be a number above 0 and below 1"),
        (["--model.dropout", "1"], "model.dropout is 1; it must be a number of at least 0 and below 1"),
        (["--model.num_hidden_layers", "1000000000000"], "it must be a whole number from 1 to 1000"),
        (["--parallel.compile", "maybe"], "parallel.compile is maybe; it must be one of auto, true, false"),
        (["--parallel.zero_stage", "4"], "parallel.zero_stage is 4; it must be one of 0, 1, 2, 3"),
        (["--parallel.deepspeed", "3"], "parallel.deepspeed is 3; it must be a mapping"),
        (["--optimizer.betas", "[0.9]"], "optimizer.betas is [0.9]; it must be a list of 2"),
        (["--data.train", "[{weight: 1}]"], "data.train[0].path is not given"),
        (["--data.train", "[{path: a, wait: 1}]"], "unknown option data.train[0].wait"),
        (["--data.train", "[{path: a"], "data.train "),
        (["--model", "3"], "model is 3; it must be a mapping of options: vocab_size"),
        (["--model.rope_scaling", "{kind: magic}"], "model.rope_scaling.rope_type is magic; it must be one of linear"),
        (["--lr", "1"], "unknown option lr; did you mean optimizer.learning_rate?"),
        (["--model.d_model", "1"], "unknown option model.d_model; did you mean model.hidden_size?"),
        (["--run.num_epochs", "1"], "unknown option run.num_epochs; did you mean run.epochs?"),
        (["--optimizer.wd", "1"], "unknown option optimizer.wd; did you mean optimizer.weight_decay?"),
        (["--model.n_layer", "1"], "unknown option model.n_layer; did you mean model.num_hidden_layers?"),
        (["--model.max_seq_len", "1"], "did you mean model.max_position_embeddings?"),
        (["--data.max_seq_len", "1"], "did you mean data.sequence_length?"),
        (["--parallel.tp", "1"], "did you mean parallel.tensor?"),
        (["--num_epochs", "1"], "did you mean run."),
        (["--run.dry_run="], "run.dry_run is null; it must be true or false"),
        (["--run.name", "a\udcff"], "run.name is a\\udcff; it must be a text in UTF-8, without zero bytes"),
        (["--data.train", "[true]"], "data.train[0] is true; it must be a mapping of options: path, weight, split"),
        (["--data.train", "{path: a}", "[b]"], "data.train[1] is ['b']; it must be a mapping of options"),
        (["--optimizer.betas", "0.9", "0.95", "0.99"], "0.99 does not belong to an option"),
        (["--model.widht", "1"], "unknown option model.widht; did you mean model.hidden_size?"),
        (["--parallel.tensr", "1"], "unknown option parallel.tensr; did you mean parallel.tensor?"),
        (["--config", "no.yaml"], "cannot read the configuration no.yaml: No such file or directory"),
        (["--config", "/"], "cannot read the configuration /: Is a directory"),
    ],
)
def test_what_is_refused(argv, message):
    assert message in refusal(TrainConfig, *argv)


def test_what_must_be_given():
    assert "checkpoint is not given" in refusal(GenerateOptions)
    assert "output is not given" in refusal(PrepareOptions)


def test_words_of_the_command_line():
    options = parse(
        GenerateOptions, ["--checkpoint", "c", "--prompt", "{a: [1", "--stop", "Q: A", "b", "--top_k=3"], ""
    )
    assert (options.prompt, options.stop, options.top_k) == ("{a: [1", ["Q: A", "b"], 3)
    assert parse(GenerateOptions, ["--checkpoint", "c", "--stop", '["\\n", "[END]"]'], "").stop == ["\n", "[END]"]
    assert parse(GenerateOptions, ["--checkpoint", "c", "--prompt", "null"], "").prompt == "null"
    assert parse(GenerateOptions, ["--checkpoint", "c", "--prompt=--x"], "").prompt == "--x"
    assert parse(GenerateOptions, ["--checkpoint", "c", "--temperature", "-0"], "").temperature == 0
    options = parse(PrepareOptions, ["--input", "a", "b", "--output", "o", "--overwrite"], "")
    assert (options.input, options.overwrite) == (["a", "b"], True)
    options = parse(
        ClassifyOptions, ["--checkpoint", "c", "--input", "i", "--template", "t", "--labels", "a=x: y", "b"], ""
    )
    assert options.words() == {"a": "x: y", "b": "b"}
    assert parse(PredictOptions, ["--checkpoint", "c", "--text", "a text: of words"], "").text == ["a text: of words"]


def test_lists_grow_and_sections_are_given_whole():
    lists = ["--data.train", "[{path: a}, b]", "--data.train+", "c", "--data.train+={path: d, weight: 3}"]
    sections = ["--model", "{hidden_size: 64, bias: false}", "--model.bias", "true", "--run.dry_run"]
    config = parse(TrainConfig, lists + sections, "")
    assert [(source.path, source.weight) for source in config.data.train] == [("a", 1), ("b", 1), ("c", 1), ("d", 3)]
    assert (config.model.hidden_size, config.model.bias, config.run.dry_run) == (64, True, True)
    assert parse(TrainConfig, ["--run.steps", "3", "--run", "null"], "").run.steps == 3
    settings = parse(TrainConfig, ["--parallel.deepspeed", "{a: b, c: [d, 1]}"], "")
    assert parse(TrainConfig, ["--parallel", to_yaml(settings.parallel)], "") == settings


def test_a_preset_sets_what_is_not_given(tmp_path, capsys, monkeypatch):
    """Wherever it stands, and whatever comes after it. A printed configuration has its values and not its name."""
    monkeypatch.setattr(aliases, "_SAID", set())
    (tmp_path / "a.yaml").write_text("model: {preset: bert, hidden_size: 64, activation: relu}\n")
    config = parse(TrainConfig, ["--config", str(tmp_path / "a.yaml"), "--model.norm_eps", "1e-3"], "").model
    assert (config.causal, config.norm_placement, config.type_vocab_size) == (False, "post", 2)
    assert (config.hidden_size, config.activation, config.norm_eps) == (64, "relu", 1e-3)
    later = parse(TrainConfig, ["--config", str(tmp_path / "a.yaml"), "--model.preset", "modernbert"], "").model
    assert (later.norm_placement, later.activation, later.sliding_window) == ("pre", "relu", 64)
    (tmp_path / "b.yaml").write_text(to_yaml(TrainConfig(model=later)))
    assert parse(TrainConfig, ["--config", str(tmp_path / "b.yaml")], "").model == later
    assert parse(TrainConfig, ["--model", "{preset: llama, bias: true}"], "").model.norm == "rmsnorm"
    capsys.readouterr()
    parse(TrainConfig, ["--model", "{preset: gpt2, norm: rmsnorm, bias: true}"], "")
    assert capsys.readouterr().err == "note: model.preset gpt2: norm given besides it counts instead\n"
    assert parse(TrainConfig, ["--model.preset", "null"], "") == TrainConfig()
    families = "gpt2, llama, qwen2, qwen3, bert, roberta, modernbert"
    assert (
        refusal(TrainConfig, "--model.preset", "lama") == f"model.preset is lama; it must be one of {families} or null"
    )


@pytest.mark.parametrize(
    ("words", "paths"),
    [
        (["corpora/mine"], ["corpora/mine"]),
        (["a", "{path: b}", "s3://c/d: e"], ["a", "b", "s3://c/d: e"]),
        (["[a, {path: 'b: c'}]"], ["a", "b: c"]),
        (["2024"], ["2024"]),
        (["[]"], []),
        (["null"], []),
        (["None"], []),
    ],
)
def test_paths_stand_for_records(words, paths):
    assert [source.path for source in parse(TrainConfig, ["--data.train", *words], "").data.train] == paths


@pytest.mark.parametrize("words", [["0.8", "0.9"], ["0.8,0.9"], ["(0.8, 0.9)"], ["[0.8, 0.9]"]])
def test_two_numbers(words):
    config = parse(TrainConfig, ["--optimizer.betas", *words, "--run.steps", "3"], "")
    assert (config.optimizer.betas, config.run.steps) == ((0.8, 0.9), 3)


def test_labels_may_look_like_numbers():
    config = parse(FinetuneConfig, ["--task.labels", "[0, 1]", "--task.text_columns", "a", "b"], "")
    assert (config.task.labels, config.task.text_columns) == (["0", "1"], ["a", "b"])
    assert parse(FinetuneConfig, ["--task.labels", "None"], "").task.labels is None


def test_a_section_keeps_the_defaults_of_its_command():
    config = parse(FinetuneConfig, ["--optimizer.weight_decay", "0.5", "--run.name", "x"], "")
    assert (config.optimizer.learning_rate, config.optimizer.weight_decay, config.run.steps) == (5e-5, 0.5, 0)


def test_configurations_cannot_be_changed():
    for cls in COMMANDS.values():
        for option in options(cls):
            kind = option.kind.items[0] if option.kind.items else option.kind
            if kind.is_record and not kind.type.__module__.startswith("ingot.model."):
                assert kind.type.__dataclass_params__.frozen, option.name
        assert cls.__dataclass_params__.frozen


WRONG = [
    "",
    "null",
    "-1",
    "0",
    "1e30",
    "nan",
    ".inf",
    "x",
    "{",
    "[",
    "[1, [2]]",
    "{a: b}",
    "9" * 300,
    "\x00",
    "1:30",
    "*a",
]


@pytest.mark.parametrize("command", COMMANDS)
def test_any_value_is_read_or_refused(command):
    """Every option of every command: BadInput at worst, and every number outside of the range is refused."""
    cls = COMMANDS[command]
    required = [f"--{o.name}=x" for o in options(cls) if o.default is MISSING]
    for option in options(cls):
        for value in WRONG:
            try:
                parse(cls, [*required, f"--{option.name}={value}"], "")
            except BadInput:
                continue
            kind = option.kind
            if kind.type in (int, float) and not (kind.optional and value in ("", "null")):
                assert value in ("0", "-1"), (option.name, value)
                assert float(value) in (kind.range or Range()), (option.name, value)


def test_every_number_has_a_range():
    """Of each command, and of the records in its lists."""
    for command, cls in COMMANDS.items():
        for option in options(cls):
            for kind in (option.kind, *option.kind.items):
                parts = kinds(kind.type).values() if kind.is_record else [kind]
                numbers = [each for part in parts for each in (part, *part.items) if each.type in (int, float)]
                assert all(number.range is not None for number in numbers), f"{command}: {option.name}"


@pytest.mark.parametrize(
    ("options", "steps", "said"),
    [
        ({}, 101, None),
        (
            {},
            100,
            "(optimizer.warmup_steps 100) is not over before the end of the run (100 steps): .* 0.000594 in",
        ),
        ({"warmup_steps": 1}, 1, "the highest learning rate is 0 instead of 0.0006, and nothing is learned; lower"),
        ({"lr_decay_steps": 100}, 200, "the schedule ends at step 100 .*, before the warm-up of 100 steps"),
        ({"lr_decay_steps": 100, "schedule": "constant"}, 200, None),
        ({"warmup_steps": 0}, 1, None),
    ],
)
def test_a_warmup_that_a_run_does_not_get_past_is_said(options, steps, said):
    notes = Optimizer(**options).warmup_notes(steps)
    assert len(notes) == (said is not None)
    assert said is None or re.search(re.sub(r"[()]", r"\\\g<0>", said), notes[0]), notes
