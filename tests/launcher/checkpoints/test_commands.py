"""launcher/checkpoint.py on real runs."""

import contextlib
import re
import shutil
import subprocess
import sys

import pytest
import torch

from ingot.launcher import checkpoint, pretrain
from ingot.launcher.loading.language_model import load_for_inference
from ingot.launcher.runtime import exit_codes
from ingot.parallel.checkpoint import read_manifest, read_tensor
from tests.launcher.runs import ROOT, records, write_config

LAST = "checkpoints/step-00000004"


@pytest.fixture(scope="module")
def run(corpus, tmp_path_factory):
    """Four steps with two checkpoints, in this process with the torch engine."""
    folder = tmp_path_factory.mktemp("run")
    config = write_config(folder, corpus)
    steps = ["--run.steps", "4", "--run.save_every", "2"]
    assert pretrain.main(["--config", str(config), "--parallel.engine", "fsdp", *steps]) == 0
    return folder / "runs/tiny"


def say(capsys, *arguments: object, code: int = 0) -> str:
    assert checkpoint.main([str(argument) for argument in arguments]) == code
    return capsys.readouterr().out


def refusal(*arguments: object) -> str:
    with pytest.raises(exit_codes.BadInput) as caught:
        checkpoint.main([str(argument) for argument in arguments])
    return str(caught.value)


def damaged_copy(run, tmp_path):
    shutil.copytree(run, tmp_path / "copy")
    file = tmp_path / "copy" / LAST / "rank-00000.safetensors"
    content = bytearray(file.read_bytes())
    content[-5] ^= 16
    file.write_bytes(content)
    return tmp_path / "copy"


def test_list_names_intact_and_damaged_checkpoints_and_leftovers(capsys, run, tmp_path):
    shutil.copytree(run, tmp_path / "copy")
    (tmp_path / "copy" / LAST / "rank-00000.safetensors").unlink()
    (tmp_path / "copy/checkpoints/.step-00000006.12ab.partial").mkdir()
    text = say(capsys, "list", tmp_path / "copy")
    lines = text.splitlines()
    assert "rank-00000.safetensors is missing" in lines[1]
    assert lines[2].split()[:2] == ["2", "512"]
    assert "data_replicate 1" in lines[2]
    assert ".step-00000006.12ab.partial: left by an interrupted save" in lines[3]
    assert "holds no checkpoint" in refusal("list", tmp_path)


def test_show_says_which_file_has_which_part(capsys, run):
    text = say(capsys, "show", run, "--tensor", "model/*", "--digests")
    digest = read_manifest(run / LAST)["tensors"]["model/final_norm.weight"]["digest"]
    assert f"model/final_norm.weight  float32 [32]  {digest}  0[:]" in text
    assert "step 4, 1,024 tokens" in text
    assert re.search(r"\d+ tensors, [\d,]+ parameters", text)
    assert "no tensor of" in refusal("show", run, "--tensor", "nothing*")


def test_verify_reads_every_byte(capsys, run, tmp_path):
    assert "intact" in say(capsys, "verify", run, run / "checkpoints/step-00000002")
    text = say(capsys, "verify", damaged_copy(run, tmp_path), code=2)
    assert re.search(r"(model|optimizer)/\S+: its digest is [0-9a-f]{16}, and was [0-9a-f]{16}", text)
    assert re.search(r"rank-00000.safetensors: its sha256 is [0-9a-f]{64}, and was [0-9a-f]{64}", text)
    assert "2 problems" in text


def test_verify_of_a_run_looks_at_all_its_checkpoints(capsys, run, tmp_path):
    assert say(capsys, "verify", run).count("intact") == 2
    shutil.copytree(run, tmp_path / "cut")
    file = tmp_path / "cut" / LAST / "rank-00000.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    text = say(capsys, "verify", tmp_path / "cut", code=2)
    assert re.search(r"step-00000004 is damaged: rank-00000.safetensors has \d+ bytes instead of", text)
    assert "step-00000002: intact" in text


def test_a_command_that_takes_an_older_checkpoint_says_so(capsys, run, tmp_path):
    shutil.copytree(run, tmp_path / "cut")
    (tmp_path / "cut" / LAST / "rank-00000.safetensors").unlink()
    assert checkpoint.main(["show", str(tmp_path / "cut")]) == 0
    said = capsys.readouterr()
    assert "step 2" in said.out
    assert "rank-00000.safetensors is missing; using step-00000002" in said.err


def test_a_stranger_verifies_files_and_manifest_with_sha256sum(run):
    """The lines of docs/checkpoint-format.md."""
    page = (ROOT / "docs/checkpoint-format.md").read_text()
    [lines] = re.findall(r"```bash\n(.*?)```", page, re.DOTALL)
    done = subprocess.run(["bash", "-euo", "pipefail", "-c", lines], cwd=run / LAST, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:2] == ["manifest.json: OK", "rank-00000.safetensors: OK"]


def test_diff(capsys, run):
    assert "tensors are equal" in say(capsys, "diff", run, run / LAST)
    text = say(capsys, "diff", run / "checkpoints/step-00000002", run, "--weights", code=1)
    assert re.search(r"model/final_norm.weight: largest difference \S+, relative norm \S+", text)
    assert "optimizer/" not in text
    one, two = (
        read_tensor(path, read_manifest(path), "model/final_norm.weight")
        for path in (run / "checkpoints/step-00000002", run / LAST)
    )
    (line,) = [line for line in text.splitlines() if line.startswith("model/final_norm.weight")]
    largest, relative = (float(word) for word in re.findall(r"(?:difference|norm) ([\d.e-]+)", line))
    assert largest == pytest.approx((one - two).abs().max().item(), rel=0.01)
    assert relative == pytest.approx(((one - two).norm() / one.norm()).item(), rel=0.01)


def test_average_is_a_run_that_other_commands_open(capsys, run, tmp_path):
    sources = [run / "checkpoints/step-00000002", run / LAST]
    say(capsys, "average", *sources, "--output", tmp_path / "mean", "--coefficients", 0.25, 0.75)
    assert "intact" in say(capsys, "verify", tmp_path / "mean")
    model, _ = load_for_inference(str(tmp_path / "mean"), None, torch.device("cpu"))
    for name, parameter in model.named_parameters():
        one, two = (read_tensor(path, read_manifest(path), f"model/{name}") for path in sources)
        assert torch.allclose(parameter, 0.25 * one + 0.75 * two, atol=1e-7), name
    assert "exists" in refusal("average", *sources, "--output", tmp_path / "mean")
    assert "1 coefficients for 2 checkpoints" in refusal(
        "average", *sources, "--output", tmp_path / "x", "--coefficients", 1
    )


def test_a_dcp_folder_goes_out_and_comes_back_with_its_optimizer(capsys, run, tmp_path):
    say(capsys, "export", run, "--format", "dcp", "--output", tmp_path / "dcp")
    config = ["--config", run / "config.yaml"]
    say(capsys, "import", tmp_path / "dcp", *config, "--output", tmp_path / "back", "--step", 4)
    assert "tensors are equal" in say(capsys, "diff", run, tmp_path / "back")
    going_on = ["--run.resume", tmp_path / "back", "--data.allow_changed", "true", "--run.steps", 6, "--run.name", "on"]
    assert pretrain.main([str(each) for each in (*config, "--run.dir", tmp_path, *going_on)]) == 0
    assert records(tmp_path / "on")[0]["step"] == 5
    assert "is no checkpoint of DeepSpeed" in refusal("import", run, *config, "--output", tmp_path / "none")


def test_plan_says_what_loads_where(capsys, run, tmp_path):
    config = (run / "config.yaml").read_text()
    (tmp_path / "same.yaml").write_text(config.replace("tensor: 1", "tensor: 2"))
    text = say(capsys, "plan", run, "--config", tmp_path / "same.yaml", "--ranks", 4)
    assert "loads: all names and shapes fit" in text
    assert "tensor 2 on 4 ranks" in text
    (tmp_path / "wide.yaml").write_text(config.replace("hidden_size: 32", "hidden_size: 64"))
    text = say(capsys, "plan", run, "--config", tmp_path / "wide.yaml", "--ranks", 4, code=2)
    assert "does NOT load" in text
    assert "[32] there and [64] here" in text


def test_a_wrong_command_is_answered_without_torch():
    code = "import sys\nfrom ingot.launcher.checkpoint import main\n"
    code += "from ingot.launcher.runtime.exit_codes import BadInput\n"
    code += "try: main(['shew'])\nexcept BadInput as e: print(e); sys.exit('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0
    assert "'shew'" in result.stdout


WRONG = ["", "x", "-1", "0", "nan", "inf", "-inf", "1e400", "10" * 20, "[1]", "{", "null", "\ud800"]


@pytest.mark.parametrize(
    ("option", "arguments"),
    [
        ("--ranks", ["plan", "RUN", "--config", "CONFIG"]),
        ("--step", ["import", "RUN", "--config", "CONFIG", "--output", "OUTPUT"]),
        ("--coefficients", ["average", "RUN", "--output", "OUTPUT"]),
        ("--tensor", ["show", "RUN"]),
        ("--format", ["export", "RUN", "--output", "OUTPUT"]),
        ("--family", ["import", "RUN", "--config", "CONFIG", "--output", "OUTPUT"]),
    ],
)
def test_any_value_of_an_option_is_used_or_refused(capsys, run, tmp_path, option, arguments):
    names = {"RUN": str(run), "CONFIG": str(run / "config.yaml"), "OUTPUT": str(tmp_path / "new")}
    for value in WRONG:
        given = [names.get(argument, argument) for argument in arguments]
        with contextlib.suppress(exit_codes.BadInput):
            assert checkpoint.main([*given, f"{option}={value}"]) in (0, 2), value
        shutil.rmtree(tmp_path / "new", ignore_errors=True)
    capsys.readouterr()
