"""The Python API: a model in, a model out, text, and the sequences of a corpus."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from ingot.data.corpus.shards import Corpus
from ingot.data.loader.reader import Reader, ReaderOptions
from ingot.data.tokenizers.chat import ChatEncoder
from ingot.data.tokenizers.load import load_tokenizer
from ingot.data.tokenizers.tokenizer import Tokenizer
from ingot.launcher.checkpoints.export import write_folder
from ingot.launcher.inference.generation import decoder, room_of
from ingot.launcher.loading.base_model import is_finetuned
from ingot.launcher.loading.finetuned_model import merge, open_finetuned
from ingot.launcher.loading.language_model import load_for_inference
from ingot.launcher.runtime.device import in_dtype, open_device
from ingot.model.finetuning.task_model import TaskModel
from ingot.model.generation.generate import Sampling, complete
from ingot.model.huggingface.load import load as load_folder
from ingot.model.transformer import LanguageModel


def load(
    path: str | Path, *, tokenizer: str | Path | None = None, device: str = "cpu", dtype: str = "float32"
) -> tuple[LanguageModel | TaskModel, Tokenizer]:
    """Opens a model and its tokenizer.

    Args:
        path: a run (its newest intact checkpoint, of a fine-tuning run the best), a checkpoint, or a Hugging Face
            folder.
        tokenizer: a tokenizer folder; by default the one beside the weights.
        device: in torch's words.
        dtype: float32 or bfloat16.

    Returns:
        The model in evaluation mode: a language model, or a model with the head of a task. What a method such as LoRA
        has added is merged.

    Raises:
        ValueError: there is no model or tokenizer, or they do not fit together.
    """
    path, place = str(path), open_device(device)
    name = None if tokenizer is None else str(tokenizer)
    model: LanguageModel | TaskModel
    if (Path(path) / "config.json").is_file() and isinstance(found := load_folder(path, device=place), TaskModel):
        model, text = found, load_tokenizer(name or path)
    elif not (Path(path) / "config.json").is_file() and is_finetuned(path):
        opened = open_finetuned(path, place, name)
        merge(opened.model)
        model, text = opened.model, opened.tokenizer
    else:
        model, text = load_for_inference(path, name, place)
    return in_dtype(model, dtype).eval(), text


def save(
    model: LanguageModel | TaskModel,
    tokenizer: Tokenizer,
    folder: str | Path,
    *,
    dtype: str = "float32",
    family: str | None = None,
) -> None:
    """Writes a folder that `transformers` opens.

    Args:
        folder: a new folder; it appears when it is complete.
        dtype: of the weights in the files: float32, bfloat16 or float16.
        family: a `model_type` of transformers; by default the first that can express the model.

    Raises:
        ValueError: the folder exists, or no family can express the model.
    """
    parameters = dict(model.named_parameters())
    task = model.task if isinstance(model, TaskModel) else None
    read = lambda name: parameters[name].detach()  # noqa: E731
    write_folder(folder, model.config, task, read, tokenizer, dtype=getattr(torch, dtype), family=family)


def generate(
    model: LanguageModel,
    tokenizer: Tokenizer,
    prompts: str | Sequence[str],
    *,
    max_tokens: int = 64,
    temperature: float = 0.8,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
    stop: Sequence[str] = (),
    seed: int = 0,
    chat: bool = False,
) -> str | list[str]:
    """Continues texts with a GPT.

    Args:
        prompts: one text, or several, which are computed together.
        max_tokens: tokens that are written at most for each text.
        temperature: divides the logits; 0 always takes the most likely token.
        top_k, top_p, min_p: bounds of the tokens that are drawn from; see `ingot generate --help`.
        stop: strings that end a text and are no part of it.
        seed: of the draws.
        chat: a prompt is what a user says; the tokenizer's chat template is put around it.

    Returns:
        What follows the prompt; a list for several prompts.
    """
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    sampling = Sampling(
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
        stop=tuple(stop),
        eos_ids=tokenizer.end_ids,
    )
    if chat:
        encoder = ChatEncoder(tokenizer.with_chat_template())
        sampling = replace(sampling, eos_ids=encoder.end_ids)
        chats = [([{"role": "user", "content": text}], f"prompt {n}") for n, text in enumerate(texts, start=1)]
        ids = [each.tolist() for each in encoder.prompts(chats)]
    else:
        start = tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id
        ids = [([] if start is None else [start]) + tokenizer.encode(text) for text in texts]
    limits = room_of(model.config, ids, max_tokens)
    done = complete(model, ids, sampling, decode=decoder(tokenizer), limits=limits)
    found = [completion.text for completion in done]
    return found[0] if isinstance(prompts, str) else found


def read_corpus(
    path: str | Path,
    *,
    sequence_length: int,
    batch_size: int,
    split: str = "train",
    objective: str = "clm",
    shuffle: bool = True,
    seed: int = 0,
) -> Reader:
    """The sequences of a corpus folder in batches, in the order in which a run with the same options reads them.

        for batch in ingot.read_corpus("corpora/demo", sequence_length=128, batch_size=8).steps():
            batch.micro_batches[0]["input_ids"]   # int64 [8, 128]

    Args:
        path: a corpus folder or its URL.
        sequence_length: tokens of a sequence.
        batch_size: sequences of a batch.
        split: train or validation.
        objective: clm, or mlm.
        shuffle: a new order for each epoch; False reads the corpus in its own order.
        seed: of the order and of the masks.

    Raises:
        ValueError: no such corpus, or no sequence of this length in it.
    """
    corpus = Corpus.open(path, split)
    options = ReaderOptions(
        sequence_length=sequence_length,
        objective=objective,
        global_batch=batch_size,
        micro_batch=batch_size,
        seed=seed,
        shuffle=shuffle,
    )
    return Reader([corpus], load_tokenizer(corpus.tokenizer_folder), options)
