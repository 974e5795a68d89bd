"""Damaged shards: noticed, left out, and replaced the same way in every layout."""

import json
import shutil
import tarfile

import numpy as np
import pytest

from ingot.data.corpus.quarantine import WHOLE_SHARD, Damage, DamagedShard, Quarantine
from ingot.data.corpus.shards import Corpus
from ingot.data.loader.reader import NoReadableData, Reader, ReaderOptions
from ingot.data.sequences.objectives import IGNORE_INDEX

LENGTH, GLOBAL, STEPS = 48, 8, 40


def members(path):
    with tarfile.open(path) as tar:
        return tar.getmembers()


def middle(path):
    """The tokens of a bundle in the middle of a shard, as a member of its tar."""
    found = [member for member in members(path) if member.name.endswith(".tokens.npy")]
    return found[len(found) // 2]


def overwrite(path, offset, content):
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(content)


def cut(path, size):
    with open(path, "r+b") as file:
        file.truncate(size)


def flip(path):
    offset = middle(path).offset_data + 300
    overwrite(path, offset, bytes([path.read_bytes()[offset] ^ 16]))


DAMAGES = {
    "bad header": lambda path: overwrite(path, middle(path).offset + 100, b"\xff" * 300),
    "zeroed block": lambda path: overwrite(path, middle(path).offset_data, bytes(1024)),
    "cut at a header": lambda path: cut(path, middle(path).offset),
    "cut inside a header": lambda path: cut(path, middle(path).offset + 200),
    "cut at a member": lambda path: cut(path, middle(path).offset_data),
    "cut inside a member": lambda path: cut(path, middle(path).offset_data + 700),
    "bit flip": flip,
    "missing": lambda path: path.unlink(),
    "missing index": lambda path: path.with_suffix(".json").unlink(),
    "damaged index": lambda path: flip_first(path.with_suffix(".json")),
}


def flip_first(path):
    overwrite(path, 5, b"#")


@pytest.fixture
def folder(corpus_folder, tmp_path):
    shutil.copytree(corpus_folder, tmp_path / "corpus")
    return tmp_path / "corpus"


@pytest.fixture
def make(tokenizer):
    made = []

    def make(folder, quarantine=None, rank=0, num_ranks=1, **changes):
        corpus = Corpus.open(folder, "train", check=False, quarantine=quarantine)
        options = dict(
            sequence_length=LENGTH,
            objective="clm",
            seed=3,
            shuffle=True,
            global_batch=GLOBAL,
            micro_batch=1,
            strict=False,
            threads=0,
        )
        options = ReaderOptions(**{**options, **changes})
        made.append(Reader([corpus], tokenizer, options, rank=rank, num_ranks=num_ranks))
        return made[-1]

    yield make
    for reader in made:
        reader.close()


def run(readers, steps=STEPS, cursor=0):
    """(fingerprints, substitutes) of each step, over all ranks."""
    streams = [reader.steps(cursor) for reader in readers]
    batches = [[next(stream) for stream in streams] for _ in range(steps)]
    return (
        [sum(b.fingerprint for b in step) % 2**64 for step in batches],
        [sum(b.substituted for b in step) for step in batches],
    )


@pytest.mark.parametrize("kind", DAMAGES)
def test_each_kind_is_found_and_replaced_alike_in_every_layout(folder, make, kind):
    sound, _ = run([make(folder)])
    shard = Corpus.open(folder, "train").shards[1]
    DAMAGES[kind](folder / shard.name)
    quarantine = Quarantine()
    fingerprints, substituted = run([make(folder, quarantine)])
    found = quarantine.take_found()
    if kind == "bad header":  # nothing that is read lies in a header
        assert (fingerprints, sum(substituted), found) == (sound, 0, [])
        return
    assert sum(substituted) > 5
    assert {damage.sha256 for damage in found} == {shard.sha256}
    assert (WHOLE_SHARD in {damage.bundle for damage in found}) == kind.startswith(("missing", "damaged index"))
    assert [now == before for now, before in zip(fingerprints, sound, strict=True)] == [not n for n in substituted]
    for num_ranks, threads in ((2, 0), (4, 2), (8, 1)):
        readers = [make(folder, num_ranks=num_ranks, rank=rank, threads=threads) for rank in range(num_ranks)]
        assert run(readers) == (fingerprints, substituted)
    assert run([make(folder, Quarantine(quarantine._damage))], 10, 20 * GLOBAL)[0] == fingerprints[20:30]


def test_strict_and_open_say_what_is_wrong(folder, corpus_folder, make):
    path = folder / Corpus.open(folder, "train").shards[1].name
    flip(path)
    with pytest.raises(DamagedShard, match=rf"{path}: the tokens of bundle .* do not match their checksum"):
        run([make(folder, strict=True)])
    path.unlink()
    with pytest.raises(ValueError, match=f"lacks {path.name}"):
        Corpus.open(folder, "train")
    path.symlink_to("nowhere")
    with pytest.raises(ValueError, match=f"lacks {path.name}"):
        Corpus.open(folder, "train")
    path.unlink()
    shutil.copy(corpus_folder / path.name, path)
    path.with_suffix(".json").unlink()
    with pytest.raises(ValueError, match=f"lacks {path.stem}.json"):
        Corpus.open(folder, "train")


@pytest.mark.parametrize("threads", [0, 2])
def test_one_rank_alone_sees_damage_and_takes_as_many_steps(folder, corpus_folder, make, threads):
    flip(folder / Corpus.open(folder, "train").shards[0].name)
    quarantine = Quarantine()
    readers = [
        make(folder if rank == 1 else corpus_folder, quarantine if rank == 1 else None, rank=rank, num_ranks=2)
        for rank in (0, 1)
    ]
    runs = [list(reader.steps(0, STEPS * GLOBAL)) for reader in readers]
    assert [len(steps) for steps in runs] == [STEPS, STEPS]
    assert [sum(b.substituted for b in steps) > 0 for steps in runs] == [False, True]
    # Once the others have been told, they leave out the same.
    everywhere = [Quarantine(quarantine._damage) for _ in range(2)]
    told = [make(corpus_folder, q, rank=rank, num_ranks=2) for rank, q in enumerate(everywhere)]
    assert run(told) == run([make(folder)])


def test_a_quarantine_that_grows_counts_for_what_was_read_before(corpus_folder, make):
    quarantine = Quarantine()
    reader = make(corpus_folder, quarantine)
    run([reader])
    shard = reader.corpora[0].shards[0]
    quarantine.adopt([(shard.sha256, 0)])
    assert run([reader]) == run([make(corpus_folder, Quarantine([(shard.sha256, 0)]))])
    assert sum(run([reader])[1]) > 0
    assert quarantine.take_found() == []


def test_a_rank_that_cannot_read_still_takes_its_steps(folder, make):
    for shard in Corpus.open(folder, "train").shards:
        (folder / shard.name).unlink()
    with pytest.raises(NoReadableData, match=r"100 substitutes for it.*missing.*Copy or prepare"):
        run([make(folder)])
    reader = make(folder, errors="yield", micro_batch=4)
    batches = list(reader.steps(0, 20))
    assert [batch.cursor for batch in batches] == [8, 16, 20]
    assert isinstance(reader.error, NoReadableData)
    for batch in batches:
        assert isinstance(batch.error, NoReadableData)
        assert (batch.num_targets, batch.num_tokens, batch.fingerprint, len(batch.micro_batches)) == (0, 0, 0, 2)
        assert all((micro["labels"] == IGNORE_INDEX).all() for micro in batch.micro_batches)
        assert batch.micro_batches[0]["input_ids"].shape == (4, LENGTH)


def test_substitutes_differ_and_come_from_the_same_corpus(folder, make):
    """A bundle's instances are not all replaced by one and the same."""
    shard = Corpus.open(folder, "train").shards[0]
    reader = make(folder, Quarantine([(shard.sha256, WHOLE_SHARD)]), global_batch=1, shuffle=False)
    rows = [b.micro_batches[0]["input_ids"].tobytes() for b in reader.steps(0, reader.num_instances) if b.substituted]
    assert len(rows) == -(-shard.tokens // LENGTH)
    assert len(set(rows)) > 0.5 * len(rows)


def test_a_file_that_is_cut_while_it_is_read(folder, make):
    corpus = Corpus.open(folder, "train")
    shard = corpus.shards[0]
    corpus.read(0, 0, shard.tokens)
    cut(folder / shard.name, 2000)
    with pytest.raises(DamagedShard, match=rf"{shard.name}: the file ends before byte \d+"):
        corpus.read(0, 0, shard.tokens)


def test_quarantine_is_a_set_that_names_bundles_by_content():
    quarantine = Quarantine([("a", 1)])
    first = quarantine.version
    quarantine.adopt([("a", 1)])
    assert quarantine.version == first
    damage = Damage("corpus", "shard", "b", WHOLE_SHARD, None, "gone")
    quarantine.add(damage)
    quarantine.add(damage)
    assert quarantine.version != first
    assert quarantine.take_found() == [damage]
    assert quarantine.take_found() == []
    assert quarantine.find("b", 17) == (True, damage)
    assert quarantine.find("a", 2) == (False, None)
    assert len(quarantine) == 2


def test_too_many_open_files_are_no_damage(corpus_folder, make):
    import errno

    corpus = Corpus.open(corpus_folder, "train")

    def refuse(name):
        raise OSError(errno.EMFILE, "Too many open files")

    corpus.storage.open = refuse
    with pytest.raises(OSError, match="Too many open files"):
        corpus.read(0, 0, 10)
    assert len(corpus.quarantine) == 0


def test_indexes_that_do_not_fit_their_bundles(folder):
    """A manifest that vouches for a wrong index: document lengths that do not add up."""
    import hashlib
    import zlib

    shard = Corpus.open(folder, "train").shards[0]
    path = folder / shard.index
    index = json.loads(path.read_text())
    line = index["bundles"][0]
    doclens = np.array([1] * line["num_documents"], dtype="<u4")
    overwrite(folder / shard.name, line["doclens_offset"], doclens.tobytes())
    line["doclens_crc32"] = zlib.crc32(doclens)
    path.write_text(json.dumps(index))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["splits"]["train"]["shards"][0]["index_sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DamagedShard, match="the doclens of bundle"):
        Corpus.open(folder, "train").read(0, 0, 10)
