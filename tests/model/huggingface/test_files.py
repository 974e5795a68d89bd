"""Files as they are found: shards, torch's old form, old names, all types of numbers; and how much memory they take."""

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ingot.model.config import ModelConfig
from ingot.model.huggingface.load import load
from ingot.model.huggingface.save import save
from ingot.model.initialization import initialize
from ingot.model.transformer import LanguageModel
from tests.model.huggingface_models import OURS, TOLERANCE, agree, auto_of, imported, made, opened, theirs

ROOT = Path(__file__).resolve().parents[3]


def rewritten(folder: Path, change) -> None:
    """Passes the tensors of a folder's file through a function."""
    save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors", metadata={"format": "pt"})


def equal(one, other) -> bool:
    mine, others = one.state_dict(), other.state_dict()
    return mine.keys() == others.keys() and all(torch.equal(mine[name], others[name]) for name in mine)


@pytest.mark.parametrize("family", ["gpt2", "qwen3", "modernbert"])
def test_shards_both_ways(family, tmp_path):
    other = theirs(family)
    mine = imported(other, tmp_path / "whole")
    other.save_pretrained(tmp_path / "theirs", max_shard_size="20KB")
    assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 3
    assert equal(load(tmp_path / "theirs"), mine)

    save(mine, tmp_path / "ours", max_shard_bytes=20_000)
    files = sorted((tmp_path / "ours").glob("*.safetensors"))
    assert len(files) > 3
    index = json.loads((tmp_path / "ours/model.safetensors.index.json").read_text())
    assert {file.name for file in files} == set(index["weight_map"].values())
    held = {file: {name: file_.get_tensor(name) for name in file_.keys()} for file, file_ in map(open_, files)}  # noqa: SIM118
    for file, tensors in held.items():
        sizes = [tensor.nbytes for tensor in tensors.values()]
        assert sum(sizes) <= 20_000 or len(sizes) == 1, file
    assert index["metadata"]["total_size"] == sum(t.nbytes for ts in held.values() for t in ts.values())
    assert equal(load(tmp_path / "ours"), mine)
    assert agree(mine, opened(tmp_path / "ours", auto_of(family)), family, "plain") <= TOLERANCE


def open_(file: Path):
    opened_ = safe_open(file, framework="pt")
    assert opened_.metadata() == {"format": "pt"}
    return file, opened_


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "before torch 1.6"])
def test_files_of_torch_save(legacy, tmp_path):
    other = theirs("gpt2")
    mine = imported(other, tmp_path)
    (tmp_path / "model.safetensors").unlink()
    whole = other.state_dict()
    torch.save(whole, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=not legacy)
    assert equal(load(tmp_path), mine)
    (tmp_path / "pytorch_model.bin").unlink()
    names = list(whole)
    parts = {"a.bin": names[::2], "b.bin": names[1::2]}
    for file, part in parts.items():
        torch.save({name: whole[name] for name in part}, tmp_path / file)
    places = {name: file for file, part in parts.items() for name in part}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
    assert equal(load(tmp_path), mine)


def test_old_names_and_buffers(tmp_path):
    mine = imported(theirs("gpt2"), tmp_path / "gpt2")

    def as_of_old(tensors):
        tensors = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
        tensors["h.0.attn.bias"] = torch.ones(1, 1, 72, 72).tril()
        tensors["h.3.attn.masked_bias"] = torch.tensor(-1e4)
        return tensors

    rewritten(tmp_path / "gpt2", as_of_old)
    assert equal(load(tmp_path / "gpt2"), mine)

    mine = imported(theirs("bert"), tmp_path / "bert")

    def of_tensorflow(tensors):
        old = lambda n: n.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")  # noqa: E731
        tensors = {old(name): tensor for name, tensor in tensors.items()}
        tensors["bert.embeddings.position_ids"] = torch.arange(72.0)[None]
        tensors["cls.predictions.decoder.bias"] = tensors.pop("cls.predictions.bias")
        return tensors

    rewritten(tmp_path / "bert", of_tensorflow)
    assert any(name.endswith("LayerNorm.gamma") for name in load_file(tmp_path / "bert/model.safetensors"))
    assert equal(load(tmp_path / "bert"), mine)


def test_a_buffers_name_elsewhere_is_unexpected(tmp_path):
    theirs("gpt2").save_pretrained(tmp_path)
    rewritten(tmp_path, lambda tensors: {**tensors, "transformer.h.0.mlp.masked_bias": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"unexpected: transformer\.h\.0\.mlp\.masked_bias"):
        load(tmp_path)


def test_a_tied_head_is_never_written_and_read_only_where_it_is_the_embedding(tmp_path):
    for family in ("gpt2", "bert", "modernbert"):
        save(made(OURS[family]), tmp_path / family)
        names = load_file(tmp_path / family / "model.safetensors")
        assert not {"lm_head.weight", "decoder.weight", "cls.predictions.decoder.weight"} & names.keys()
    mine = load(tmp_path / "gpt2")
    rewritten(tmp_path / "gpt2", lambda t: {**t, "lm_head.weight": t["transformer.wte.weight"].clone()})
    assert equal(load(tmp_path / "gpt2"), mine)
    rewritten(tmp_path / "gpt2", lambda t: {**t, "lm_head.weight": 2 * t["transformer.wte.weight"]})
    with pytest.raises(
        ValueError, match=r"lm_head\.weight differs from the embedding, but tie_word_embeddings is true"
    ):
        load(tmp_path / "gpt2")
    config = json.loads((tmp_path / "gpt2/config.json").read_text())
    (tmp_path / "gpt2/config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    untied = load(tmp_path / "gpt2")
    assert torch.equal(untied.head.weight, 2 * mine.head.weight)
    assert mine.head.weight is mine.embedding.token.weight


def test_two_spellings_of_one_bias_must_agree(tmp_path):
    theirs("roberta").save_pretrained(tmp_path)
    rewritten(tmp_path, lambda tensors: {**tensors, "lm_head.decoder.bias": tensors["lm_head.bias"].clone()})
    load(tmp_path)
    rewritten(tmp_path, lambda tensors: {**tensors, "lm_head.decoder.bias": tensors["lm_head.bias"] + 1})
    with pytest.raises(ValueError, match=r"lm_head\.bias and lm_head\.decoder\.bias are one parameter, but differ"):
        load(tmp_path)


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16, torch.float32])
def test_the_type_is_the_users_choice_and_fp32_otherwise(stored, tmp_path):
    mine = made(OURS["llama"])
    save(mine, tmp_path / "out", stored)
    other = opened(tmp_path / "out", "AutoModelForCausalLM")
    assert {parameter.dtype for parameter in other.parameters()} == {stored}
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["dtype"] == config["torch_dtype"] == str(stored).removeprefix("torch.")
    plain = load(tmp_path / "out")
    assert {parameter.dtype for parameter in plain.parameters()} == {torch.float32}
    rounded = {name: value.to(stored) for name, value in mine.state_dict().items()}
    assert all(torch.equal(plain.state_dict()[name].to(stored), value) for name, value in rounded.items())
    half = load(tmp_path / "out", dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    save(half, tmp_path / "half")
    assert json.loads((tmp_path / "half/config.json").read_text())["dtype"] == "bfloat16"


def test_token_ids_are_written_where_transformers_looks_for_them(tmp_path):
    ids = {"bos": 3, "eos": [4, 5], "pad": 0}
    save(made(OURS["llama"]), tmp_path / "out", token_ids=ids)
    settings = opened(tmp_path / "out", "AutoModelForCausalLM").generation_config
    assert (settings.bos_token_id, settings.eos_token_id, settings.pad_token_id) == (3, [4, 5], 0)
    save(made(OURS["bert"]), tmp_path / "bert", token_ids={"pad": 0, "cls": 1, "sep": 2})
    assert not (tmp_path / "bert/generation_config.json").exists()
    with pytest.raises(ValueError, match=r"the padding token is 0, .* with position_offset 2 it must be 1"):
        save(made(OURS["roberta"]), tmp_path / "roberta", token_ids={"pad": 0})


BIG = ModelConfig(
    vocab_size=8192,
    num_hidden_layers=24,
    num_attention_heads=8,
    hidden_size=512,
    intermediate_size=1024,
    positions="rotary",
    norm="rmsnorm",
    activation="silu",
    gated_mlp=True,
    bias=False,
    tie_word_embeddings=False,
)
MEASURE = """
import json, os, re, sys, torch
from ingot.model.config import ModelConfig
from ingot.model.huggingface.load import load
from ingot.model.huggingface.save import save
def used():  # ru_maxrss would begin with that of the process which started this one
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024
def measure(what, folder, dtype, big, small):
    if what == "load":
        load(small)  # a small one first: what a first call imports and allocates is no part of a model
        before = used()
        model = load(folder, dtype=getattr(torch, dtype))
    else:
        save(load(small), folder + "-small")
        model = load(big)
        before = used()
        save(model, folder, getattr(torch, dtype))
    print(json.dumps([used() - before, sum(p.numel() * p.element_size() for p in model.parameters())]), flush=True)
for case in json.loads(sys.argv[1]):  # each in a process of its own, whose peak begins with what it has at the fork
    child = os.fork()
    if not child:
        measure(*case)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
"""


@pytest.fixture(scope="module")
def big(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("big")
    save(made(OURS["gpt2"]), folder / "small")
    model = LanguageModel(BIG)
    initialize(model, seed=0)
    save(model, folder / "big")
    save(model, folder / "shards", max_shard_bytes=40_000_000)
    return folder


@pytest.fixture(scope="module")
def measured(big: Path) -> dict[tuple[str, str, str], tuple[int, int]]:
    """For each case how much the peak of a process rose, and the size of the model, in bytes."""
    cases = [("load", files, dtype) for files in ("big", "shards") for dtype in ("float32", "bfloat16")]
    cases += [("save", f"saved-{dtype}", dtype) for dtype in ("float32", "bfloat16")]
    given = [(what, str(big / name), dtype, str(big / "big"), str(big / "small")) for what, name, dtype in cases]
    command = [sys.executable, "-c", MEASURE, json.dumps(given)]
    lines = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return {case: tuple(json.loads(line)) for case, line in zip(cases, lines, strict=True)}


@pytest.mark.parametrize("files", ["big", "shards"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_loading_takes_little_more_memory_than_the_model(files, dtype, measured):
    rise, size = measured["load", files, dtype]
    assert size > 200e6 / (1 if dtype == "float32" else 2)
    assert 0.9 * size < rise <= 1.3 * size, f"{rise / size:.2f} times the model"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_saving_takes_little_more_memory_than_the_model(dtype, big, measured):
    rise, size = measured["save", f"saved-{dtype}", dtype]
    assert rise <= 0.3 * size, f"{rise / size:.2f} times the model on top of it"
    assert asdict(load(big / f"saved-{dtype}").config) == asdict(load(big / "big").config)
