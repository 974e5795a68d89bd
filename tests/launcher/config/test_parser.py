import re
import subprocess
import sys
from dataclasses import fields, is_dataclass

import pytest

from ingot.launcher.config.finetune import FinetuneConfig
from ingot.launcher.config.parser import parse, to_yaml, without_launcher_flags
from ingot.launcher.config.pretrain import TrainConfig
from tests.launcher.runs import ROOT

SCRIPTS = [
    "pretrain",
    "finetune",
    "predict",
    "classify",
    "prepare",
    "generate",
    "evaluate",
    "export",
    "images",
    "plan",
    "torchrun",
]


def options(cls: type, prefix: str = "") -> list[str]:
    """Dotted names of all options that a dataclass stands for."""
    names = []
    for field in fields(cls):
        if is_dataclass(field.type):
            names += options(field.type, f"{prefix}{field.name}.")
        else:
            names.append(prefix + field.name)
    return names


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_answers_without_importing_torch(script):
    code = (
        f"import sys; sys.argv = ['{script}.py', '--help']\n"
        f"from launcher.{script} import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as end: sys.exit(3 if 'torch' in sys.modules else end.code)"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("usage:")


@pytest.mark.parametrize(("script", "config"), [("pretrain", TrainConfig), ("finetune", FinetuneConfig)])
def test_help_names_every_option_with_meaning_and_default(script, config):
    result = subprocess.run([sys.executable, ROOT / f"launcher/{script}.py", "--help"], capture_output=True, text=True)
    text = " ".join(result.stdout.split("options:")[1].split())
    for name in options(config):
        entry = re.split(r" --(?!print)", re.split(rf"--{re.escape(name)} ", text)[-1], maxsplit=1)[0]
        meaning, _, rest = entry.partition("(type: ")
        assert len(meaning.split()) >= 4, f"{name} is not explained: {entry}"
        assert "default: " in rest, name


def test_a_printed_configuration_is_read_back_the_same(tmp_path):
    first = parse(
        TrainConfig, ["--run.steps", "5", "--optimizer.betas", "[0.8, 0.9]", "--model.num_key_value_heads", "2"], ""
    )
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(first))
    assert parse(TrainConfig, ["--config", str(path)], "") == first


def test_overrides_win_over_the_file_and_later_files_over_earlier(tmp_path):
    for name, steps in (("a", 3), ("b", 4)):
        (tmp_path / f"{name}.yaml").write_text(f"run: {{steps: {steps}, name: {name}}}")
    a, b = (["--config", str(tmp_path / f"{name}.yaml")] for name in "ab")
    config = parse(TrainConfig, [*a, *b, "--run.steps", "9"], "")
    assert (config.run.steps, config.run.name) == (9, "b")


def test_flags_of_launchers_are_ignored_wherever_they_stand():
    argv = ["--local_rank=1", "--config", "x", "--local-rank", "0", "--run.steps", "3", "--local_rank", "2"]
    assert without_launcher_flags(argv) == ["--config", "x", "--run.steps", "3"]


def test_a_script_does_not_let_launcher_files_hide_libraries():
    """`launcher/` must not lead the import path: a file there may be named like a library."""
    for script in SCRIPTS:
        code = f"import runpy, sys; sys.argv = ['x', '--help']; sys.path[0] = '{ROOT}/launcher'\n"
        code += f"try: runpy.run_path('{ROOT}/launcher/{script}.py', run_name='__main__')\n"
        code += "except SystemExit: sys.exit(any(path.endswith('launcher') for path in sys.path))"
        assert subprocess.run([sys.executable, "-c", code], cwd="/", capture_output=True).returncode == 0, script
