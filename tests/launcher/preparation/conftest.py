"""The text collection, tokenizer and corpus of tests/data serve here too."""

from tests.data.conftest import gpt2_like, text_folder, texts, tokenizer, write_corpus  # noqa: F401
