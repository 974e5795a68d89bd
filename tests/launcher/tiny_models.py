"""Tiny models in Hugging Face's form, and tasks that they learn in a few steps."""

import json
import random
from pathlib import Path

import torch

NAMES = ["anna", "bertha", "carl", "dora", "emil", "frida", "gustav", "hedwig"]
PLACES = ["paris", "rome", "oslo", "cairo", "quito"]
GOOD, BAD = ["good", "great", "fine", "lovely"], ["bad", "awful", "poor", "boring"]
FILLERS = ["the", "film", "was", "and", "music", "story", "with", "actors", "very", "in", "lives", "who", "where", "?"]
WORDS = [*NAMES, *PLACES, *GOOD, *BAD, *FILLERS]
LABELS = "target"


def released_bert(folder: Path, **settings) -> Path:
    """A random BERT of 2 layers in Hugging Face's form. Its vocabulary is WORDS and single letters."""
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder.mkdir(parents=True)
    letters = [*"abcdefghijklmnopqrstuvwxyz", *("##" + c for c in "abcdefghijklmnopqrstuvwxyz")]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *letters, *"0123456789:,."]
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    BertTokenizerFast(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = BertConfig(vocab_size=len(vocabulary), max_position_embeddings=64, **{**shape, **dropout, **settings})
    BertModel(config).save_pretrained(folder)
    return folder


def released_gpt2(folder: Path) -> Path:
    """A random GPT-2 of 2 layers with the same vocabulary."""
    from transformers import BertTokenizerFast, GPT2Config, GPT2LMHeadModel

    bert = released_bert(folder / "other")
    tokenizer = BertTokenizerFast.from_pretrained(bert, bos_token="[CLS]", eos_token="[SEP]")
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=64, n_embd=32, n_layer=2, n_head=2, bos_token_id=2, eos_token_id=3,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


def write_task(kind: str, folder: Path, count: int = 120) -> list[str]:
    """Writes train and dev files of a task that can be learned. Returns the options that read them."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(kind)
    ending = {"token_classification": "conll", "question_answering": "json"}.get(kind, "jsonl")
    files = {}
    for part, number in (("train", count), ("dev", count // 3)):
        files[part] = folder / f"{part}.{ending}"
        examples = [_MAKERS[kind](draw) for _ in range(number)]
        if kind == "token_classification":
            files[part].write_text("\n\n".join("\n".join(f"{w} {t}" for w, t in e) for e in examples) + "\n")
        elif kind == "question_answering":
            paragraphs = [
                {"context": context, "qas": [{"id": str(n), "question": q, "answers": answers}]}
                for n, (context, q, answers) in enumerate(examples)
            ]
            files[part].write_text(json.dumps({"data": [{"title": "x", "paragraphs": paragraphs}]}))
        else:
            files[part].write_text("".join(json.dumps(example) + "\n" for example in examples))
    given = ["--task.kind", kind, "--task.train", str(files["train"]), "--task.validation", str(files["dev"])]
    return [*given, "--task.label_column", LABELS, *_OPTIONS.get(kind, [])]


def _opinion(draw: random.Random, good: bool) -> str:
    words = draw.choices(FILLERS[:9], k=draw.randint(2, 8))
    words.insert(draw.randint(0, len(words)), draw.choice(GOOD if good else BAD))
    return " ".join(words)


def _classification(draw: random.Random) -> dict:
    good = draw.random() < 0.5
    return {"text": _opinion(draw, good), LABELS: "positive" if good else "negative"}


def _multi_label(draw: random.Random) -> dict:
    named, placed = draw.random() < 0.5, draw.random() < 0.5
    words = draw.choices(FILLERS[:9], k=4) + [draw.choice(NAMES)] * named + [draw.choice(PLACES)] * placed
    draw.shuffle(words)
    return {"text": " ".join(words), LABELS: ["person"] * named + ["place"] * placed}


def _regression(draw: random.Random) -> dict:
    good = draw.randint(0, 4)
    words = draw.choices(GOOD, k=good) + draw.choices(BAD, k=4 - good)
    draw.shuffle(words)
    return {"text": " ".join(words), LABELS: good / 4}


def _multiple_choice(draw: random.Random) -> dict:
    right = draw.randint(0, 2)
    endings = [_opinion(draw, place == right) for place in range(3)]
    return {"text": "the film was", "endings": endings, LABELS: right}


def _token_classification(draw: random.Random) -> list[tuple[str, str]]:
    words = [(word, "O") for word in draw.choices(FILLERS[:9], k=draw.randint(3, 6))]
    for names, tag in ((NAMES, "PER"), (PLACES, "LOC")):
        outside = [n for n, (_, label) in enumerate(words) if label[0] != "I"]
        entity = [(draw.choice(names), f"B-{tag}")] + [(draw.choice(names), f"I-{tag}")] * (draw.random() < 0.4)
        place = draw.choice(outside)
        words[place:place] = entity
    return words


def _question_answering(draw: random.Random) -> tuple[str, str, list[dict]]:
    people = draw.sample(NAMES, 2)
    answer = draw.choice(PLACES)
    context = f"{people[0]} lives in {answer} with {people[1]}"
    return context, f"where lives {people[0]} ?", [{"text": answer, "answer_start": context.index(answer)}]


def _instruction(draw: random.Random) -> dict:
    good = draw.random() < 0.5
    return {"input": _opinion(draw, good), "output": "good" if good else "bad"}


_MAKERS = {
    "classification": _classification,
    "multi_label": _multi_label,
    "regression": _regression,
    "multiple_choice": _multiple_choice,
    "token_classification": _token_classification,
    "question_answering": _question_answering,
    "instruction": _instruction,
}
_OPTIONS = {
    "question_answering": ["--task.doc_stride", "8"],
    "instruction": ["--task.template", "the film : {input} ?"],
}
