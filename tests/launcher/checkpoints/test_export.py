"""The export command on a run's checkpoint: a folder that transformers opens whole, and what it refuses."""

import json
import sysconfig
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from ingot.data.tokenizers.load import load_tokenizer
from ingot.data.tokenizers.tokenizer import Tokenizer
from ingot.data.tokenizers.training import train_sentencepiece
from ingot.launcher import export
from ingot.launcher.loading.language_model import load_for_inference
from ingot.launcher.runtime import exit_codes
from ingot.model.config import ModelConfig
from ingot.parallel import checkpoint
from ingot.parallel import mesh as meshes
from ingot.parallel.tensor_shards import Rectangle, TensorShard
from tests.launcher.runs import launch
from tests.model.huggingface_models import LENGTH, OURS, TOLERANCE, auto_of, difference, made, opened, transformers

IDS = 400
LLAMA = replace(OURS["llama"], vocab_size=416)  # rounded up, as people do for speed
ROBERTA = replace(OURS["roberta"], vocab_size=416, position_offset=1)  # our padding has the id 0
MODELS = {"llama": LLAMA, "gpt2": replace(OURS["gpt2"], vocab_size=IDS), "roberta": ROBERTA}
MODELS |= {
    "bert": replace(OURS["bert"], vocab_size=IDS),
    "pairs": replace(OURS["bert"], vocab_size=IDS, pair_head=True),
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Tokenizer:
    source = Path(sysconfig.get_paths()["stdlib"]) / "json"
    texts = [file.read_text() for file in sorted(source.glob("*.py"))]
    return train_sentencepiece(texts, tmp_path_factory.mktemp("tokenizer"), IDS)


def run_of(config: ModelConfig, tokenizer: Tokenizer, folder: Path) -> tuple[Path, torch.nn.Module]:
    """A run's folder with one checkpoint, as training leaves it, and the model in it."""
    model = made(config)
    values = {f"model/{name}": parameter.detach() for name, parameter in model.named_parameters()}
    values["optimizer/exp_avg/final_norm.weight"] = torch.zeros(32)
    shards = [
        TensorShard(name, tuple(v.shape), Rectangle((0,) * v.ndim, tuple(v.shape)), v) for name, v in values.items()
    ]
    metadata = {"config": {"model": asdict(config)}, "tokenizer_sha256": tokenizer.sha256}
    meshes.start("cpu")
    checkpoint.save(folder / "checkpoints", shards, step=3, metadata=metadata, keep=0)
    meshes.stop()
    tokenizer.save(folder / "tokenizer")
    return folder, model


def run_export(*arguments: object) -> None:
    assert export.main([str(argument) for argument in arguments]) == exit_codes.DONE


def refusal(*arguments: object) -> str:
    with pytest.raises(exit_codes.BadInput) as caught:
        export.main([str(argument) for argument in arguments])
    return str(caught.value)


@pytest.mark.parametrize("name", MODELS)
def test_logits_and_ids_are_the_same_in_transformers(name, tokenizer, tmp_path):
    run, model = run_of(MODELS[name], tokenizer, tmp_path / "run")
    run_export("--checkpoint", run, "--output", tmp_path / "out")
    other = opened(tmp_path / "out", "AutoModelForPreTraining" if name == "pairs" else auto_of(name))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    text = "def f(x):\n    return  12 * x  # 日本 😀\n"
    ids = tokenizer.encode(text)
    assert theirs(text, add_special_tokens=False)["input_ids"] == ids
    ids_BT = torch.tensor([(ids * 9)[:LENGTH]])
    with torch.no_grad():
        assert difference(model(ids_BT), other(ids_BT)[0]) <= TOLERANCE
    settings = json.loads((tmp_path / "out/config.json").read_text())
    assert (settings["bos_token_id"], settings["eos_token_id"], settings["pad_token_id"]) == (2, 3, 0)
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id, theirs.mask_token_id) == (2, 3, 0, 4)
    assert ("token_type_ids" in theirs("a", "b")) == (model.config.type_vocab_size > 1)
    if model.config.causal:
        generation = transformers.GenerationConfig.from_pretrained(tmp_path / "out")
        assert (generation.bos_token_id, generation.eos_token_id, generation.pad_token_id) == (2, 3, 0)
        assert theirs("x")["input_ids"] == [2, *tokenizer.encode("x")]
    else:
        assert theirs("x")["input_ids"] == [2, *tokenizer.encode("x"), 3]
        assert not (tmp_path / "out/generation_config.json").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"run", "out"}


def test_the_command_takes_a_checkpoint_a_type_a_size_and_a_family(tokenizer, tmp_path):
    run, model = run_of(LLAMA, tokenizer, tmp_path / "run")
    result = launch(
        "python",
        *("--checkpoint", run / "checkpoints/step-00000003", "--output", tmp_path / "out"),
        *("--dtype", "bfloat16", "--max_shard_bytes", 30_000, "--family", "llama"),
        script="export",
    )
    assert "Traceback" not in result.stderr
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 2
    other = opened(tmp_path / "out", "AutoModelForCausalLM")
    assert {parameter.dtype for parameter in other.parameters()} == {torch.bfloat16}
    assert torch.equal(other.lm_head.weight, model.head.weight.bfloat16())


def test_what_was_exported_opens_like_a_run(tokenizer, tmp_path):
    run, model = run_of(LLAMA, tokenizer, tmp_path / "run")
    run_export("--checkpoint", run, "--output", tmp_path / "out")
    again, found = load_for_inference(str(tmp_path / "out"), None, torch.device("cpu"))
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
    assert found.encode("def f(x):") == tokenizer.encode("def f(x):")
    ours, _ = load_for_inference(str(run), None, torch.device("cpu"))
    assert all(torch.equal(value, ours.state_dict()[name]) for name, value in model.state_dict().items())


def test_a_transformers_tokenizer_goes_along(tokenizer, tmp_path):
    run, _ = run_of(LLAMA, tokenizer, tmp_path / "run")
    run_export("--checkpoint", run, "--output", tmp_path / "first")
    theirs = load_tokenizer(tmp_path / "first")
    again, _ = run_of(LLAMA, theirs, tmp_path / "again")
    run_export("--checkpoint", again, "--output", tmp_path / "second")
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json", "model.safetensors"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


def test_bad_input_is_one_message_and_leaves_nothing(tokenizer, tmp_path):
    run, _ = run_of(LLAMA, tokenizer, tmp_path / "run")
    odd, _ = run_of(replace(LLAMA, final_logit_softcapping=9.0), tokenizer, tmp_path / "odd")
    padded, _ = run_of(replace(ROBERTA, position_offset=2), tokenizer, tmp_path / "padded")
    full, out = tmp_path / "full", tmp_path / "out"
    full.mkdir()
    (full / "notes").write_text("mine")
    train_sentencepiece(["other text"] * 9, tmp_path / "other", 275)

    assert "holds no checkpoint" in refusal("--checkpoint", tmp_path / "nowhere", "--output", out)
    assert "is not an empty folder; nothing was written" in refusal("--checkpoint", run, "--output", full)
    assert "final_logit_softcapping is 9.0 and would be None" in refusal("--checkpoint", odd, "--output", out)
    assert "family gpt2 cannot express this model" in refusal("--checkpoint", run, "--output", out, "--family", "gpt2")
    assert "family is 'opt'; supported are" in refusal("--checkpoint", run, "--output", out, "--family", "opt")
    assert "the padding token is 0" in refusal("--checkpoint", padded, "--output", out)
    assert "max_shard_bytes is 0" in refusal("--checkpoint", run, "--output", out, "--max_shard_bytes", 0)
    assert "int8" in refusal("--checkpoint", run, "--output", out, "--dtype", "int8")
    message = refusal("--checkpoint", run, "--output", out, "--tokenizer", tmp_path / "other")
    assert "is not the one that" in message
    file = next((run / "checkpoints/step-00000003").glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-8])
    assert "is damaged" in refusal("--checkpoint", run, "--output", out)
    assert {path.name for path in tmp_path.iterdir()} == {"run", "odd", "padded", "full", "other"}
    assert [path.name for path in full.iterdir()] == ["notes"]

    result = launch("python", "--checkpoint", odd, "--output", out, script="export", code=exit_codes.BAD_INPUT)
    assert result.stderr.count("error:") == 1
    assert "Traceback" not in result.stderr


def test_a_folder_of_another_kind_is_no_language_model(tokenizer, tmp_path):
    config = transformers.BertConfig(**{"vocab_size": 91, "hidden_size": 32, "num_hidden_layers": 1})
    config.num_attention_heads, config.intermediate_size = 4, 64
    transformers.BertForTokenClassification(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="not a language model"):
        load_for_inference(str(tmp_path), None, torch.device("cpu"))
