"""A small text collection, a tokenizer trained on it, and a corpus made of it; each made once."""

import random
from pathlib import Path

import pytest

from ingot.data.tokenizers.load import load_tokenizer
from ingot.data.tokenizers.training import train_sentencepiece
from ingot.data.writing.writer import CorpusWriter, atomic_corpus_folder

WORDS = [
    *("for", "while", "return", "import", "value", "index", "token", "shard", "reader", "order"),
    *("the", "of", "and", "to", "in", "is", "self", "None", "True", "print"),
]


def make_text(seed: int, num_lines: int) -> str:
    draw = random.Random(seed)
    lines = []
    for _ in range(num_lines):
        indent = " " * (4 * draw.randrange(4))
        lines.append(
            indent + " ".join(draw.choices(WORDS, k=draw.randrange(1, 9))) + draw.choice(["", ":", "()", "\t# 1"])
        )
    return "\n".join(lines) + "\n"


@pytest.fixture(scope="session")
def texts() -> list[str]:
    return [make_text(seed, 5 + seed * 7 % 60) for seed in range(60)]


@pytest.fixture(scope="session")
def text_folder(tmp_path_factory, texts) -> Path:
    folder = tmp_path_factory.mktemp("text")
    for number, text in enumerate(texts):
        path = folder / f"part{number % 3}" / f"{number:03d}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(text.encode())
    return folder


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory, texts):
    return train_sentencepiece(texts, tmp_path_factory.mktemp("tokenizer"), 340)


@pytest.fixture(scope="session")
def gpt2_like(tmp_path_factory, texts) -> Path:
    """A byte-level BPE folder in the manner of GPT-2: one token both opens and closes a text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("gpt2")
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(texts, trainer)
    end = "<|endoftext|>"
    PreTrainedTokenizerFast(tokenizer_object=inner, bos_token=end, eos_token=end).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def write_corpus():
    """write_corpus(folder, tokenizer, texts) -> folder: every eighth text is held out."""

    def write(folder: Path, tokenizer, texts, *, bundle_tokens=1500, shard_bytes=12_000) -> Path:
        with atomic_corpus_folder(folder) as partial:
            tokenizer.save(partial / "tokenizer")
            tokenizer = load_tokenizer(partial / "tokenizer")
            writer = CorpusWriter(partial, tokenizer, shard_bytes=shard_bytes, bundle_tokens=bundle_tokens)
            for number, text in enumerate(texts):
                split = "validation" if number % 8 == 7 else "train"
                writer.add(split, f"{number}", tokenizer.encode(text), len(text.encode()))
            writer.finish()
        return folder

    return write


@pytest.fixture(scope="session")
def corpus_folder(tmp_path_factory, write_corpus, tokenizer, texts) -> Path:
    """Several shards of several bundles in the training split."""
    return write_corpus(tmp_path_factory.mktemp("corpora") / "small", tokenizer, texts)
