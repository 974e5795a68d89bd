"""What cannot be loaded or written: one message that names it, nothing half-loaded and nothing left on disk."""

import json
import os
import pickle
import zipfile
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

import ingot.model.huggingface.save as saving
from ingot.model.config import RopeScaling
from ingot.model.finetuning.task_model import TaskConfig
from ingot.model.huggingface.families.registry import FAMILIES, choose_family, family_of, kind_of
from ingot.model.huggingface.load import load
from ingot.model.huggingface.save import save
from tests.model.huggingface_models import EXAMPLES, OURS, made, theirs


def refusal(folder, *arguments, **options) -> str:
    with pytest.raises(ValueError) as error:  # noqa: PT011  (the callers look at the message)
        load(folder, *arguments, **options)
    return str(error.value)


@pytest.fixture
def gpt2(tmp_path):
    theirs("gpt2").save_pretrained(tmp_path)
    return tmp_path


def settings_changed(folder, **changes) -> None:
    values = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(values))


def tensors_changed(folder, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_no_checkpoint(tmp_path, gpt2, monkeypatch):
    assert "does not exist" in refusal(tmp_path / "nowhere")
    assert "does not exist" in refusal(str(tmp_path / "nowhere"))
    assert "is a file" in refusal(gpt2 / "config.json")
    (tmp_path / "empty").mkdir()
    assert "is not a checkpoint: it has no config.json" in refusal(tmp_path / "empty")
    (tmp_path / "empty/config.json").write_text("{")
    assert "is not JSON" in refusal(tmp_path / "empty")
    (tmp_path / "empty/config.json").write_text("[]")
    assert "is not a JSON object" in refusal(tmp_path / "empty")
    (gpt2 / "model.safetensors").unlink()
    assert "has no weights: no model.safetensors or pytorch_model.bin" in refusal(gpt2)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: (_ for _ in ()).throw(OSError("no net")))
    assert "nobody/nothing is not a folder, and cannot be downloaded from the hub: no net" in refusal("nobody/nothing")


def test_a_hub_name_is_downloaded(gpt2, monkeypatch):
    calls = []

    def download(name, revision, allow_patterns):
        calls.append((name, revision, allow_patterns))
        return str(gpt2)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert load("someone/model", revision="v1").config.num_hidden_layers == 4
    assert [(name, revision) for name, revision, _ in calls] == [("someone/model", "v1")]
    assert "*.safetensors" in calls[0][2]
    assert "*.bin" not in calls[0][2]


def test_unknown_kinds_of_models(gpt2):
    settings_changed(gpt2, model_type="mamba")
    message = refusal(gpt2)
    assert "model_type is 'mamba'" in message
    assert all(name in message for name in FAMILIES)
    settings_changed(gpt2, model_type="gpt2", architectures=["GPT2DoubleHeadsModel"])
    message = refusal(gpt2)
    assert "'GPT2DoubleHeadsModel'" in message
    assert "GPT2LMHeadModel, GPT2ForSequenceClassification" in message
    assert load(gpt2, "language").config.causal
    assert "no models of kind 'pretraining'; choose one of language, sequence" in refusal(gpt2, "pretraining")
    settings_changed(gpt2, architectures=None)
    assert "architectures is None" in refusal(gpt2)


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is True"),
        ("gpt2", {"scale_attn_weights": False}, "scale_attn_weights is False; supported is True"),
        ("gpt2", {"add_cross_attention": True}, "add_cross_attention is True; supported is False"),
        ("gpt2", {"activation_function": "mish"}, "activation_function is 'mish'; supported is 'gelu_new'"),
        ("gpt2", {"pruned_heads": {"0": [1]}}, "pruned_heads is {'0': [1]}; supported is none"),
        ("llama", {"quantization_config": {"bits": 4}}, "quantization_config is {'bits': 4}"),
        ("llama", {"hidden_act": "xielu"}, "hidden_act is 'xielu'"),
        ("llama", {"num_key_value_heads": 3}, "num_attention_heads 4 is not a multiple of num_key_value_heads 3"),
        ("llama", {"rms_norm_eps": "small"}, "norm_eps is 'small'"),
        ("llama", {"hidden_size": None}, "hidden_size is None"),
        ("qwen2", {"layer_types": ["full_attention", "conv"]}, "layer_types is ['full_attention', 'conv']"),
        ("qwen2", {"use_sliding_window": False}, "use_sliding_window is False; supported is true"),
        ("bert", {"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key'"),
        ("bert", {"is_decoder": True}, "is_decoder is True"),
        ("bert", {"is_encoder_decoder": True}, "is_encoder_decoder is True"),
        ("roberta", {"hidden_act": "relu"}, "hidden_act is 'relu'"),
        ("roberta", {"pad_token_id": -1}, "pad_token_id is -1"),
        ("modernbert", {"classifier_activation": "relu"}, "classifier_activation is 'relu'"),
    ],
)
def test_settings_that_cannot_be_represented(family, changes, message, tmp_path):
    theirs(family).save_pretrained(tmp_path)
    settings_changed(tmp_path, **changes)
    assert message in refusal(tmp_path)


def test_all_settings_are_named_at_once(gpt2):
    settings_changed(gpt2, scale_attn_weights=False, activation_function="mish", add_cross_attention=True)
    message = refusal(gpt2)
    assert all(name in message for name in ("scale_attn_weights", "activation_function", "add_cross_attention"))
    values = json.loads((gpt2 / "config.json").read_text())
    del values["n_embd"], values["n_layer"]
    (gpt2 / "config.json").write_text(json.dumps(values))
    assert "n_embd is missing; n_layer is missing" in refusal(gpt2)


def test_tensors_that_do_not_fit_are_all_named(gpt2):
    def change(tensors):
        del tensors["transformer.h.1.ln_1.bias"]
        tensors["transformer.h.0.attn.q_norm.weight"] = torch.zeros(8)
        tensors["transformer.h.4.ln_1.bias"] = torch.zeros(32)
        tensors["transformer.wpe.weight"] = torch.zeros(70, 32)
        tensors["transformer.h.2.attn.c_attn.weight"] = tensors["transformer.h.2.attn.c_attn.weight"].T.contiguous()

    tensors_changed(gpt2, change)
    message = refusal(gpt2)
    assert "missing: transformer.h.1.ln_1.bias" in message
    assert "unexpected: transformer.h.0.attn.q_norm.weight, transformer.h.4.ln_1.bias" in message
    assert "transformer.wpe.weight is [70, 32] in the file, not [72, 32]" in message
    assert "transformer.h.2.attn.c_attn.weight is [96, 32] in the file, not [32, 96]" in message
    assert "GPT2LMHeadModel" in message


def test_a_missing_head_of_an_untied_model_is_missing(tmp_path):
    theirs("llama").save_pretrained(tmp_path)
    tensors_changed(tmp_path, lambda tensors: tensors.pop("lm_head.weight"))
    assert "missing: lm_head.weight; set new_head" in refusal(tmp_path)


def test_the_same_tensor_twice_and_numbers_that_are_none(gpt2):
    tensors_changed(gpt2, lambda t: t.update({"wte.weight": t["transformer.wte.weight"].clone()}))
    assert "transformer.wte.weight and wte.weight, which are the same parameter" in refusal(gpt2).replace(
        "wte.weight and transformer.wte.weight", "transformer.wte.weight and wte.weight"
    )
    tensors_changed(gpt2, lambda t: t.pop("wte.weight"))
    tensors_changed(gpt2, lambda t: t.update({"transformer.wte.weight": t["transformer.wte.weight"].to(torch.int8)}))
    assert "transformer.wte.weight has dtype I8" in refusal(gpt2)


@pytest.mark.parametrize("bytes_kept", [0, 5, 500, -1])
def test_truncated_safetensors(bytes_kept, gpt2):
    content = (gpt2 / "model.safetensors").read_bytes()
    (gpt2 / "model.safetensors").write_bytes(content[:bytes_kept])
    assert "model.safetensors is damaged or not a safetensors file" in refusal(gpt2)


class Evil:
    """Does something when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("evil-was-here",)


@pytest.mark.parametrize("kind", ["code", "torch with code", "module", "list", "text", "truncated"])
def test_pickles_that_are_not_plain_tensors(kind, gpt2, monkeypatch):
    tensors = load_file(gpt2 / "model.safetensors")
    (gpt2 / "model.safetensors").unlink()
    file = gpt2 / "pytorch_model.bin"
    if kind == "code":
        file.write_bytes(pickle.dumps(Evil()))
    elif kind == "text":
        file.write_text("version https://git-lfs.github.com/spec/v1\n")
    else:
        things = {"torch with code": {**tensors, "x": Evil()}, "module": torch.nn.Linear(2, 2), "list": [1, 2]}
        torch.save(things.get(kind, tensors), file)
        if kind == "truncated":
            file.write_bytes(file.read_bytes()[:-300])
    monkeypatch.chdir(gpt2)
    message = refusal(gpt2)
    assert "pytorch_model.bin" in message
    assert "damaged, or contains more than plain tensors" in message or "contains more than tensors by name" in message
    assert not (gpt2 / "evil-was-here").exists()


def test_shards_that_do_not_fit_their_index(tmp_path):
    theirs("gpt2").save_pretrained(tmp_path, max_shard_size="20KB")
    index_file = tmp_path / "model.safetensors.index.json"
    index = json.loads(index_file.read_text())
    first, second = sorted(set(index["weight_map"].values()))[:2]
    name = next(name for name, file in index["weight_map"].items() if file == first)

    def with_map(**changes):
        index_file.write_text(json.dumps({"weight_map": index["weight_map"] | changes}))

    with_map(**{name: second})
    assert f"lacks {name}" in refusal(tmp_path)
    with_map(**{name: "../elsewhere.safetensors"})
    assert "names files in other folders: ../elsewhere.safetensors" in refusal(tmp_path)
    with_map(**{name: "gone.safetensors"})
    assert "lacks gone.safetensors" in refusal(tmp_path)
    index_file.write_text("{}")
    assert "has no weight_map" in refusal(tmp_path)


def test_nothing_is_written_where_something_is(tmp_path):
    mine = made(OURS["gpt2"])
    (tmp_path / "out").mkdir()
    save(mine, tmp_path / "out")  # an empty folder may be there
    before = {file: file.read_bytes() for file in (tmp_path / "out").iterdir()}
    with pytest.raises(ValueError, match="is not an empty folder; nothing was written"):
        save(mine, tmp_path / "out")
    assert {file: file.read_bytes() for file in (tmp_path / "out").iterdir()} == before
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="is not an empty folder"):
        save(mine, tmp_path / "file")
    assert {path.name for path in tmp_path.iterdir()} == {"out", "file"}


def test_what_fails_half_way_leaves_nothing(tmp_path, monkeypatch):
    written = []

    def full(file, tensor):
        written.append(tensor)
        if len(written) == 5:
            raise OSError("no space left on device")

    monkeypatch.setattr(saving, "_write_tensor", full)
    with pytest.raises(OSError, match="no space left"):
        save(made(OURS["gpt2"]), tmp_path / "out")
    assert len(written) == 5
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("base", "changes", "message"),
    [
        ("gpt2", {"final_logit_softcapping": 30.0}, r"gpt2: final_logit_softcapping is 30\.0 and would be None"),
        ("llama", {"layer_pattern": "GL", "sliding_window": 8}, "qwen2: qkv_bias is False and would be True; qwen3"),
        ("qwen2", {"output_bias": True}, "qwen2: output_bias is True and would be False"),
        (
            "qwen3",
            {"num_attention_heads": 4, "local_rope_theta": 9.0},
            "qwen3: local_rope_theta is 9.0 and would be 500.0",
        ),
        ("bert", {"type_vocab_size": 0}, "bert: .*type_vocab_size is 0"),
        ("bert", {"causal": True}, "bert: causal is True and would be False"),
        ("modernbert", {"num_key_value_heads": 2}, "modernbert: num_key_value_heads is 2 and would be 4"),
        ("gpt2", {"activation": "relu_squared", "gated_mlp": True}, "gpt2: gated_mlp is True"),
    ],
)
def test_a_model_that_no_family_can_hold_is_refused_with_what_differs(base, changes, message, tmp_path):
    config = replace(OURS[base], **changes)
    match = "no supported family can express this model; the differences are: .*" + message
    with pytest.raises(ValueError, match=match):
        save(made(config), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_named_family_must_hold_the_model(tmp_path):
    with pytest.raises(
        ValueError, match="family bert cannot express this model; the differences are: bert: position_offset is 2"
    ):
        save(made(OURS["roberta"]), tmp_path / "out", family="bert")
    with pytest.raises(ValueError, match="family is 'gpt3'; supported are gpt2, llama"):
        save(made(OURS["gpt2"]), tmp_path / "out", family="gpt3")
    with pytest.raises(ValueError, match="max_shard_bytes is 0"):
        save(made(OURS["gpt2"]), tmp_path / "out", max_shard_bytes=0)
    with pytest.raises(ValueError, match=r"dtype is torch\.int8; choose one of"):
        save(made(OURS["gpt2"]), tmp_path / "out", torch.int8)
    task = TaskConfig("sequence", 3, pooling="mean")
    with pytest.raises(ValueError, match=r"task\.pooling is 'mean' and would be 'last'"):
        save(made(OURS["gpt2"], task), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("family", EXAMPLES)
def test_the_family_is_found_from_what_the_model_is(family):
    chosen = choose_family(OURS[family], "language", None, None)
    assert chosen.model_type == family
    same = replace(OURS[family], dropout=0.3, attention_dropout=0.2, initializer_range=0.1, residual_scaled_init=False)
    assert choose_family(same, "language", None, None).model_type == family, "how it is trained is no part of it"
    kinds = {name: known.differences(OURS[family], "language", None) for name, known in FAMILIES.items()}
    assert [name for name, differences in kinds.items() if not differences] == [family]


def test_options_without_effect_do_not_keep_a_model_from_its_family():
    llama = replace(
        OURS["llama"], rope_scaling=RopeScaling("linear", 2.0, original_max_position_embeddings=9, beta_fast=3.0)
    )
    llama = replace(llama, position_offset=3, sliding_window=5)
    assert choose_family(llama, "language", None, None).model_type == "llama"
    assert choose_family(replace(OURS["gpt2"], rope_theta=7.0), "language", None, None).model_type == "gpt2"


@pytest.mark.parametrize("content", ["[" * 200_000, '{"a":' * 200_000, '{"a":[' * 40 + "]}" * 40])
@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
def test_json_of_any_depth(name, content, gpt2):
    (gpt2 / "model.safetensors").unlink()
    (gpt2 / name).write_text(content)
    assert f"{name} has lists and objects inside one another" in refusal(gpt2)


def test_files_of_any_size(gpt2):
    with (gpt2 / "config.json").open("r+b") as file:
        file.truncate(10**12)
    assert "config.json has 1,000,000,000,000 bytes, more than the" in refusal(gpt2)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "model.safetensors.index.json"])
@pytest.mark.parametrize("kind", ["named pipe", "device", "folder"])
def test_what_is_no_file(name, kind, gpt2):
    (gpt2 / "model.safetensors").unlink()
    (gpt2 / name).unlink(missing_ok=True)
    if kind == "named pipe":
        os.mkfifo(gpt2 / name)
    elif kind == "device":
        (gpt2 / name).symlink_to("/dev/zero")
    else:
        (gpt2 / name).mkdir()
    assert f"{name} is a {kind}, not a regular file" in refusal(gpt2)


def test_links_as_in_the_cache_of_the_hub(gpt2, tmp_path):
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    for number, file in enumerate(["config.json", "model.safetensors"]):
        (gpt2 / file).rename(tmp_path / f"blobs/{number}")
        (tmp_path / "snapshot" / file).symlink_to(f"../blobs/{number}")
    (tmp_path / "main").symlink_to("snapshot")
    load(tmp_path / "main")


@pytest.mark.parametrize("number", [900, 5_000, 10**18, 10**400], ids=["900", "5000", "10^18", "10^400"])
@pytest.mark.parametrize("family", ["gpt2", "qwen2", "modernbert"])
def test_more_layers_than_there_are_tensors(family, number, tmp_path):
    theirs(family).save_pretrained(tmp_path)
    settings_changed(tmp_path, **{"n_layer" if family == "gpt2" else "num_hidden_layers": number}, layer_types=None)
    message = refusal(tmp_path)
    assert ("says 900 layers, and the files have only" if number == 900 else "num_hidden_layers is") in message


ANYTHING = ([], {}, "x", True, -1, 10**18, float("nan"), [[]], {"a": []}, [None])


@pytest.mark.parametrize("family", EXAMPLES)
def test_settings_of_any_type(family, tmp_path):
    """Each setting with values that nobody expects: it is used, or refused by a ValueError that names it."""
    theirs(family).save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    rope = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 8, "mscale": 1, "mscale_all_dim": 1}
    long = {"rope_type": "longrope", "factor": 2.0, "short_factor": [1.0] * 8, "long_factor": [1.0] * 8}
    names = {*values, *(key.theirs for key in FAMILIES[family].keys), "id2label", "num_labels", "problem_type"}
    names |= {"classifier_dropout", "rope_theta", "partial_rotary_factor", "layer_types", "pruned_heads"}
    changed = [({**values, name: value}, name) for name in sorted(names) for value in ANYTHING]
    for scaling in (rope, long):
        for name in [*scaling, "attention_factor", "rope_theta"]:
            for value in ANYTHING:
                parts = {kind: {**scaling, name: value} for kind in ("full_attention", "sliding_attention")}
                parameters = parts if family == "modernbert" else {**scaling, name: value}
                changed.append(({**values, "rope_parameters": parameters}, name))
    refused = 0
    for settings, name in changed:
        try:
            found = family_of(settings)
            for kind in (kind_of(found, settings, None), "sequence"):
                found.read_model(settings, kind)
                found.read_task(settings, kind)
        except ValueError as error:
            refused += name in str(error) or "model_type" in str(error)
    assert refused > len(changed) / 4


def header(folder, text: bytes, length: int | None = None) -> None:
    (folder / "model.safetensors").write_bytes(
        (len(text) if length is None else length).to_bytes(8, "little") + text + bytes(100)
    )


@pytest.mark.parametrize(
    ("text", "length"),
    [
        (b"{}", 2**63),
        (b"{}", 10**8),
        (b'{"a":' * 50_000, None),
        (b'{"wte.weight":{"dtype":"F32","shape":[1000000000000,1000000000000],"data_offsets":[0,100]}}', None),
        (b'{"wte.weight":{"dtype":"F32","shape":[25],"data_offsets":[0,100000000000]}}', None),
        (b'{"wte.weight":{"dtype":"F32","shape":[5],"data_offsets":[80,100]}}', None),
        (b'{"wte.weight":{"dtype":"F99","shape":[25],"data_offsets":[0,100]}}', None),
        (b'{"wte.weight":{"dtype":"F32","shape":[-1],"data_offsets":[0,100]}}', None),
        (b"\xff\xfe", None),
    ],
)
def test_headers_of_safetensors_that_lie(text, length, gpt2):
    header(gpt2, text, length)
    assert "model.safetensors is damaged or not a safetensors file" in refusal(gpt2)


def test_compressed_pickles_are_not_unpacked(gpt2):
    (gpt2 / "model.safetensors").unlink()
    with zipfile.ZipFile(gpt2 / "pytorch_model.bin", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/data.pkl", bytes(20_000_000))
    assert "pytorch_model.bin is damaged, or not a file of torch.save: it has compressed parts" in refusal(gpt2)
