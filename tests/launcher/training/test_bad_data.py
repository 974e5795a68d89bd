"""Runs over damaged data: all ranks skip the same data, a resume too, and too much damage ends the run on all ranks."""

import json
import shutil
from pathlib import Path

import pytest

from ingot.data.corpus.quarantine import Damage, DamagedShard, Quarantine
from ingot.data.corpus.shards import Corpus
from ingot.data.loader.reader import NoReadableData
from ingot.launcher.runtime import exit_codes
from ingot.launcher.training.bad_data import BadDataWatch, Unreadable
from ingot.launcher.training.callbacks.callback import Callbacks
from ingot.parallel import mesh as meshes
from tests.launcher.runs import launch, records, write_config
from tests.ranks import run_ranks


@pytest.fixture(scope="module")
def small_bundles(corpus, tmp_path_factory):
    """The corpus in many small bundles, so that one bundle is a small part of it."""
    from ingot.data.tokenizers.load import load_tokenizer
    from ingot.data.writing.writer import CorpusWriter

    folder = tmp_path_factory.mktemp("damage") / "corpus"
    whole = Corpus.open(corpus, "train")
    shutil.copytree(corpus / "tokenizer", folder / "tokenizer")
    tokenizer = load_tokenizer(folder / "tokenizer")
    writer = CorpusWriter(folder, tokenizer, shard_bytes=30_000, bundle_tokens=2_000)
    for split in ("train", "validation"):
        tokens, _ = whole.read(0, 0, 60_000)
        for begin in range(0, 60_000, 500):
            writer.add(split, f"{begin}", tokens[begin : begin + 500].tolist(), 1_500)
    writer.finish()
    return folder


@pytest.fixture
def damaged(small_bundles, tmp_path):
    """The corpus with one bit flipped in one bundle of every shard."""
    folder = tmp_path / "corpus"
    shutil.copytree(small_bundles, folder)
    for shard in Corpus.open(folder, "train").shards:
        bundle = json.loads((folder / shard.index).read_text())["bundles"][0]
        content = bytearray((folder / shard.name).read_bytes())
        content[bundle["tokens_offset"] + 100] ^= 1
        (folder / shard.name).write_bytes(content)
    return folder


def trains(run, *keys):
    return [tuple(record[key] for key in keys) for record in records(run)]


@pytest.mark.slow
@pytest.mark.distributed
def test_a_damaged_corpus_trains_the_same_in_all_layouts_and_after_a_resume(damaged, tmp_path):
    config = write_config(tmp_path, damaged)
    common = ["--config", config, "--parallel.engine", "fsdp", "--data.max_bad_fraction", 1]
    launch("python", *common, "--run.name", "one")
    launch("torchrun 2", *common, "--run.name", "two", "--run.steps", 10)
    launch("python", *common, "--run.name", "two", "--run.steps", 20)
    one, two = tmp_path / "runs/one", tmp_path / "runs/two"
    keys = ("step", "batch_fingerprint", "substituted")
    assert trains(one, *keys) == trains(two, *keys)
    assert records(one)[-1]["substituted"] > 5
    quarantines = [
        json.loads((run / "checkpoints/step-00000020/manifest.json").read_text())["quarantine"] for run in (one, two)
    ]
    assert quarantines[0] == quarantines[1]
    lines = [json.loads(line) for line in (one / "quarantine.jsonl").read_text().splitlines()]
    assert {(line["sha256"], line["bundle"]) for line in lines} == {tuple(name) for name in quarantines[0]}
    assert all("do not match their checksum" in line["reason"] for line in lines)
    assert {"rank", "shard", "bundle", "offset", "reason", "step"} <= set(lines[0])


def test_too_much_damage_and_strictness_end_a_run_with_one_message(damaged, tmp_path):
    config = write_config(tmp_path, damaged)
    common = ["--config", config, "--parallel.engine", "fsdp", "--data.validation", "[]"]
    result = launch("python", *common, "--data.max_bad_fraction", 1e-4, code=exit_codes.GIVE_UP)
    assert "are in damaged data: more than data.max_bad_fraction 0.0001" in result.stderr
    assert "Traceback" not in result.stderr
    result = launch("python", *common, "--data.strict", "true", "--run.name", "strict", code=exit_codes.BAD_INPUT)
    assert result.stderr.count("error: ") == 1
    assert "do not match their checksum" in result.stderr
    assert "Traceback" not in result.stderr


def watch_of(folder, fraction=1.0):
    return BadDataWatch(Quarantine(), Callbacks(), folder, max_bad_fraction=fraction)


def agree_about_one_rank(folder: str, kind: str) -> str:
    """Only rank 1 finds damage or has an error. Returns what each rank concludes."""
    mesh = meshes.start("cpu", 60)
    watch = watch_of(Path(folder))
    error = None
    if mesh.rank == 1:
        if kind == "damage":
            watch.quarantine.add(Damage("corpus", "a.tar", "ab", 3, 17, "bad"))
        else:
            errors = {"strict": DamagedShard("bad bytes"), "none": NoReadableData("all gone"), "bug": KeyError("x")}
            error = errors[kind]
    try:
        first, second = watch.found(error), watch.found(None)
        again = watch.agree(*meshes.sum_over_ranks(first.counts), first, 5)
        again_next = watch.agree(*meshes.sum_over_ranks(second.counts), second, 6)
        return f"{again} {again_next} {sorted(watch.names)} {watch.quarantine.find('ab', 3)[0]}"
    except Unreadable as problem:
        return f"{problem.code} {problem}"
    except Exception as problem:
        return f"{type(problem).__name__} {problem}"
    finally:
        meshes.stop()


@pytest.mark.distributed
def test_all_ranks_know_what_one_rank_finds(tmp_path):
    assert run_ranks(agree_about_one_rank, 2, str(tmp_path), "damage") == ["True False [('ab', 3)] True"] * 2
    first, second = run_ranks(agree_about_one_rank, 2, str(tmp_path), "strict")
    assert first == second
    assert first.startswith("2 bad bytes")
    assert run_ranks(agree_about_one_rank, 2, str(tmp_path), "none") == ["93 all gone"] * 2
    first, second = run_ranks(agree_about_one_rank, 2, str(tmp_path), "bug")
    assert first == "RuntimeError rank 1 could not read its data: KeyError: 'x'"
    assert second == "KeyError 'x'"


def test_the_bound_is_on_a_window_of_sequences(tmp_path):
    watch = watch_of(tmp_path, 1e-3)
    for _ in range(100):
        watch.count_substitutes(1, 1000)  # one in a thousand is within the bound
    with pytest.raises(Unreadable, match="11 of the last 10000 sequences") as caught:
        watch.count_substitutes(2, 1000)
    assert caught.value.code == exit_codes.GIVE_UP
    watch_of(tmp_path, 1.0).count_substitutes(50_000, 50_000)
    watch_of(tmp_path, 0.0).count_substitutes(0, 8)
    with pytest.raises(Unreadable):
        watch_of(tmp_path, 0.0).count_substitutes(1, 8)
