"""The hash of a tokenizer is of what it encodes: of the same for every form of it, of another for another one."""

import hashlib
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from ingot.data.tokenizers.huggingface_export import export_tokenizer
from ingot.data.tokenizers.load import load_tokenizer
from ingot.data.tokenizers.tokenizer import DEFAULT_CHAT_TEMPLATE, Tokenizer
from ingot.data.tokenizers.training import train_sentencepiece

DOCS = Path(__file__).parents[3] / "docs"


def exported(tokenizer: Tokenizer, folder: Path, **options: bool) -> Tokenizer:
    folder.mkdir()
    export_tokenizer(tokenizer, folder, **{"causal": True, "exact": False, **options})
    return load_tokenizer(folder)


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
@pytest.mark.filterwarnings("ignore:.*cannot be converted")
def test_an_export_and_a_copy_of_it_by_transformers_are_the_same_tokenizer(model_type, texts, tmp_path):
    own = train_sentencepiece(texts, tmp_path / "own", 330, model_type)
    gpt, bert = exported(own, tmp_path / "gpt"), exported(own, tmp_path / "bert", causal=False, token_types=True)
    gpt._tokenizer.save_pretrained(tmp_path / "again")
    again = load_tokenizer(tmp_path / "again")
    assert own.encoding_sha256 == gpt.encoding_sha256 == bert.encoding_sha256 == again.encoding_sha256
    assert own.sha256 == gpt.sha256 == bert.sha256 == again.sha256
    assert len({own.files_sha256, gpt.files_sha256, again.files_sha256}) == 3


def test_another_encoding_is_another_tokenizer(tokenizer, tmp_path):
    first = exported(tokenizer, tmp_path / "first")
    settings = json.loads((tmp_path / "first/tokenizer.json").read_text())
    merges, vocabulary = settings["model"]["merges"], settings["model"]["vocab"]
    one, two = (piece for piece in list(vocabulary)[-2:])
    swapped = {**vocabulary, one: vocabulary[two], two: vocabulary[one]}
    added = {**settings["added_tokens"][0], "id": vocabulary[one], "content": one}
    changes = {
        "merges": {"model": {**settings["model"], "merges": [*merges[1:], merges[0]]}},
        "vocabulary": {"model": {**settings["model"], "vocab": swapped}},
        "normalizer": {"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}, settings["normalizer"]]}},
        "pieces": {"pre_tokenizer": None},
        "special": {"added_tokens": [*settings["added_tokens"], added]},
    }
    found = {first.encoding_sha256}
    for name, change in changes.items():
        shutil.copytree(tmp_path / "first", tmp_path / name)
        (tmp_path / name / "tokenizer.json").write_text(json.dumps({**settings, **change}))
        found.add(load_tokenizer(tmp_path / name).encoding_sha256)
    shutil.copytree(tmp_path / "first", tmp_path / "end")
    config = json.loads((tmp_path / "end/tokenizer_config.json").read_text())
    (tmp_path / "end/tokenizer_config.json").write_text(json.dumps({**config, "eos_token": "<pad>"}))
    found.add(load_tokenizer(tmp_path / "end").encoding_sha256)
    assert len(found) == len(changes) + 2
    plain = {key: value for key, value in settings["model"].items() if value is not None}
    written = {**plain, "merges": [" ".join(merge) for merge in merges]}  # as older versions write it
    (tmp_path / "first/tokenizer.json").write_text(json.dumps({**settings, "model": written}))
    assert load_tokenizer(tmp_path / "first").encoding_sha256 == first.encoding_sha256


def test_the_template_is_part_of_the_tokenizer_and_no_template_is_the_default_one(tokenizer, tmp_path):
    first = exported(tokenizer, tmp_path / "first")
    path = tmp_path / "first/chat_template.jinja"
    path.write_text(DEFAULT_CHAT_TEMPLATE)
    assert load_tokenizer(tmp_path / "first").sha256 == first.sha256 == tokenizer.sha256
    tokenizer.with_chat_template().save(tmp_path / "saved")
    saved = load_tokenizer(tmp_path / "saved")
    assert saved.files_sha256 == tokenizer.with_chat_template().files_sha256 != tokenizer.files_sha256
    assert (saved.sha256, tokenizer.chat_template) == (tokenizer.sha256, None)
    path.write_text(DEFAULT_CHAT_TEMPLATE + "x")
    other = load_tokenizer(tmp_path / "first")
    assert other.sha256 != first.sha256
    assert other.encoding_sha256 == first.encoding_sha256
    assert other.files_sha256 != first.files_sha256
    assert other.old_sha256 == first.old_sha256


@pytest.mark.skipif(shutil.which("jq") is None, reason="needs jq")
@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
@pytest.mark.filterwarnings("ignore:.*cannot be converted")
def test_a_stranger_computes_it_with_the_commands_of_the_docs(model_type, texts, tmp_path):
    own = train_sentencepiece([*texts, "\x7f\x01 \u2028 😀"], tmp_path / "own", 330, model_type)
    found = exported(own, tmp_path / "out")
    (tmp_path / "out/chat_template.jinja").write_text("{{ messages }}\n\n")
    page = (DOCS / "corpus-format.md").read_text()
    (script,) = re.findall(r"```bash\n(.*?)```", page, flags=re.S)
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path / "out", capture_output=True, text=True, check=True)
    encoding, whole = (line.split()[0] for line in done.stdout.splitlines())
    assert encoding == found.encoding_sha256
    assert whole == load_tokenizer(tmp_path / "out").sha256
    assert hashlib.sha256(f"{encoding}\n{{{{ messages }}}}\n\n".encode()).hexdigest() == whole
