"""YAML without surprises, and with file and line in every message."""

import time

import pytest

from ingot.launcher.config.parser import parse
from ingot.launcher.config.pretrain import TrainConfig
from ingot.launcher.runtime.exit_codes import BadInput


def read(tmp_path, text: str | bytes) -> TrainConfig:
    path = tmp_path / "file.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return parse(TrainConfig, ["--config", str(path)], "")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("run:\n  steps: 3\n  name: a\n  steps: 4\n", r"file.yaml, line 4: run.steps is given twice; leave one out"),
        ("run: {steps: 3}\nrun: {name: a}\n", r"line 2: run is given twice"),
        (
            "run:\n  steps: 1:30\n",
            r"run.steps is 1:30; it must be a whole number from 1 to 10\^9 or null \(.*file.yaml, line 2\)",
        ),
        ("run:\n  steps: 0x\n", r"run.steps is 0x"),
        ("run:\n  steps: 2020-01-01\n", r"run.steps is 2020-01-01"),
        ("run: {steps: 3\nmodel: {}\n", r"file.yaml, line \d: .*expected"),
        ("run:\n\tsteps: 3\n", r"file.yaml, line 2: .*cannot start any token"),
        ("run: {name: *nothing}\n", r"line 1: alias \*nothing has no anchor before it"),
        ("run: !!python/object/apply:os.system [ls]\n", r"line 1: the tag .*os.system is not read"),
        ("- run\n- model\n", r"file.yaml holds no mapping of options"),
        ("run: 3\n", r"run is 3; it must be a mapping of options: name, dir, seed"),
        ("run: {}\n---\nrun: {}\n", r"line 2: a second document begins here"),
        ("run: {? [1] : 2}\n", r"line 1: a key must be the name of an option"),
        (b"run:\n  name: \xff\n", r"file.yaml, line 2: the file is not UTF-8 text"),
        (b"run:\n  name: \x00\n", r"file.yaml, line 1: "),
        ("a: " + "[" * 10_000, r"line 1: (more than 50 levels|.* exceeded maximum nesting depth)"),
        ("[" * 60, r"more than 50 levels"),
        ("#" * 1_000_001, r"file.yaml is larger than 1,000,000 bytes"),
    ],
)
def test_what_is_no_configuration_is_refused_with_its_place(text, message, tmp_path):
    with pytest.raises(BadInput, match=message):
        read(tmp_path, text)


def test_a_bomb_of_aliases_is_refused_at_once(tmp_path):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    start = time.perf_counter()
    with pytest.raises(BadInput, match=r"line 3: more than 16 aliases"):
        read(tmp_path, "\n".join(lines))
    assert time.perf_counter() - start < 1


@pytest.mark.parametrize(
    "text", ["", "# only a comment\n", "---\n", "null\n", "run:\nmodel:\nparallel: ~\n", "run: {}\n", "\ufeffrun:\n"]
)
def test_what_is_empty_leaves_everything_as_it_is(text, tmp_path):
    assert read(tmp_path, text) == TrainConfig()


def test_values_mean_what_their_options_say(tmp_path):
    config = read(
        tmp_path,
        """
run: {name: 2024, steps: 1e3, save_every: 1_000, dry_run: yes, resume: "never", init_from: null}
run.seed: 5
data:
  train: corpora/mine
  validation: [corpora/a, {path: corpora/b, weight: 2}]
optimizer: {learning_rate: 1e-3, betas: [0, .9], lr_decay_steps: None}
parallel: {zero_stage: 2, deepspeed: {a: 1, b: [true, x, 1e5], c: "1"}}
model: &model {hidden_size: 64}
""",
    )
    assert (config.run.name, config.run.steps, config.run.save_every, config.run.dry_run) == ("2024", 1000, 1000, True)
    assert (config.run.seed, config.run.resume, config.run.init_from) == (5, "never", None)
    assert type(config.run.steps) is int
    assert [source.path for source in config.data.train] == ["corpora/mine"]
    assert [(s.path, s.weight) for s in config.data.validation] == [("corpora/a", 1.0), ("corpora/b", 2.0)]
    assert config.optimizer.learning_rate == 1e-3
    assert config.optimizer.betas == (0.0, 0.9)
    assert config.optimizer.lr_decay_steps is None
    assert config.parallel.zero_stage == 2
    assert config.parallel.deepspeed == {"a": 1, "b": [True, "x", 1e5], "c": "1"}
    assert config.model.hidden_size == 64


def test_anchors_and_merges_are_read(tmp_path):
    config = read(tmp_path, "data:\n  train: [&a {path: x, weight: 2}]\n  validation: [{<<: *a, weight: 3}, *a]\n")
    assert [(s.path, s.weight) for s in config.data.validation] == [("x", 3.0), ("x", 2.0)]
