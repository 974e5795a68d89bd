"""The commands `index` and `verify` of launcher/prepare.py: make a corpus of existing tars, and check a corpus."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import NoReturn

from ingot.launcher.preparation.worker_pool import ProgressBar
from ingot.launcher.runtime.exit_codes import BAD_INPUT, DONE, BadInput, bad_input


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise BadInput(f"{message}\n{self.format_usage().strip()}")


def index(argv: list[str]) -> int:
    """Make a corpus of tars of tokens: write indexes and a manifest."""
    parser = _Parser(prog="prepare.py index", description=index.__doc__)
    parser.add_argument("tars", nargs="+", type=Path, help="tars of KEY.tokens.npy, or folders of them")
    parser.add_argument("--output", type=Path, help="corpus folder to make; default: the folder of the tars")
    parser.add_argument("--tokenizer", type=Path, help="tokenizer folder; default: the one in the corpus folder")
    parser.add_argument("--split", help="split of all tars; default: by their names, train-000000.tar is of train")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing manifest or corpus")
    options = parser.parse_args(argv)
    with bad_input():
        manifest, folder = _index(options)
    for name, split in manifest["splits"].items():
        print(f"{folder}: {name} {split['num_documents']:,} documents {split['num_tokens']:,} tokens")
    return DONE


def _index(options: argparse.Namespace) -> tuple[dict, Path]:
    from ingot.data.corpus.manifest import MANIFEST
    from ingot.data.tokenizers.load import load_tokenizer
    from ingot.data.writing.reindex import index_corpus
    from ingot.data.writing.writer import atomic_corpus_folder

    tars = [tar for given in options.tars for tar in (sorted(given.glob("*.tar")) if given.is_dir() else [given])]
    for tar in tars:
        if not tar.is_file():
            raise ValueError(f"{tar} does not exist")
    folders = {tar.resolve().parent for tar in tars}
    if not tars or (options.output is None and len(folders) > 1):
        raise ValueError(
            "the tars are in several folders: name a corpus folder with --output"
            if tars
            else "there are no tars: name some, or a folder of them"
        )
    with ProgressBar("indexing", sum(tar.stat().st_size for tar in tars)) as bar:
        if options.output is not None and options.output.resolve() not in folders:
            tokenizer = load_tokenizer(_tokenizer_folder(options, folders))
            with atomic_corpus_folder(options.output, options.overwrite) as partial:
                tokenizer.save(partial / "tokenizer")
                tokenizer = load_tokenizer(partial / "tokenizer")
                return index_corpus(partial, tars, tokenizer, split=options.split, progress=bar.add), options.output
        folder = tars[0].parent
        if (folder / MANIFEST).exists() and not options.overwrite:
            raise ValueError(
                f"{folder} has a {MANIFEST} already: check it with verify, or give --overwrite to replace it"
            )
        source = _tokenizer_folder(options, folders)
        if source.resolve() != (folder / "tokenizer").resolve():
            if (folder / "tokenizer").exists():
                raise ValueError(f"{folder / 'tokenizer'} exists: run without --tokenizer, or remove that folder")
            load_tokenizer(source).save(folder / "tokenizer")
        tokenizer = load_tokenizer(folder / "tokenizer")
        try:
            return index_corpus(folder, tars, tokenizer, split=options.split, progress=bar.add), folder
        except BaseException:
            if source.resolve() != (folder / "tokenizer").resolve():
                shutil.rmtree(folder / "tokenizer")
            raise


def _tokenizer_folder(options: argparse.Namespace, folders: set[Path]) -> Path:
    if options.tokenizer is not None:
        return options.tokenizer
    found = [folder / "tokenizer" for folder in sorted(folders) if (folder / "tokenizer").is_dir()]
    if len(found) != 1:
        raise ValueError("name the folder of the tokenizer that made these tokens with --tokenizer")
    return found[0]


def verify(argv: list[str]) -> int:
    """Check every byte of corpora. Exit code 0, or 2 with a line for each problem."""
    parser = _Parser(prog="prepare.py verify", description=verify.__doc__)
    parser.add_argument("corpus", nargs="+", type=Path, help="corpus folder")
    options = parser.parse_args(argv)
    from ingot.data.corpus.manifest import read_manifest
    from ingot.data.writing.verify import verify_corpus

    num_problems = 0
    for folder in options.corpus:
        with bad_input():
            manifest = read_manifest(folder)
            splits = manifest["splits"].values()
            total = sum(shard["bytes"] for split in splits for shard in split.get("shards", []))
            with ProgressBar("verifying", total) as bar:
                problems = verify_corpus(folder, bar.add)
        for problem in problems:
            print(problem)
        print(f"{folder}: {len(problems)} problems" if problems else f"{folder}: complete, no problems")
        num_problems += len(problems)
    return BAD_INPUT if num_problems else DONE
