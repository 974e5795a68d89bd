"""Ingot pretrains GPT and BERT models from scratch on any number of devices, and fine-tunes them."""

from pathlib import Path

if not (Path(__file__).parent / "model").is_dir():  # a clone, where the rooms stand beside this folder
    __path__.append(str(Path(__file__).resolve().parents[1]))
