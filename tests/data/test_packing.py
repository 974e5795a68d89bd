import numpy as np

from data.packing import InstanceMap, count_instances, cumulative_lengths, positions


def test_instances_cover_each_shard_without_overlap():
    shards = [1, 41, 0, 40, 4, 100]
    instances = InstanceMap(shards, 10)
    assert len(instances) == 0 + 4 + 0 + 3 + 0 + 9
    places = [instances.locate(i) for i in range(len(instances))]
    expected = [(s, k * 10) for s, tokens in enumerate(shards) for k in range(count_instances(tokens, 10))]
    assert places == expected
    assert all(start + 11 <= shards[shard] for shard, start in places)  # the label of the last token is there too
    assert all(tokens - 10 * count_instances(tokens, 10) <= 10 for tokens in shards if tokens)


def test_positions_and_cu_seqlens_restart_at_documents_and_rows():
    starts = np.zeros((3, 6), dtype=bool)
    starts[0, [0, 4]] = True  # opens with a document
    starts[1, [1, 2]] = True  # opens inside of one
    assert positions(starts).tolist() == [[0, 1, 2, 3, 0, 1], [0, 0, 0, 1, 2, 3], [0, 1, 2, 3, 4, 5]]
    assert cumulative_lengths(starts).tolist() == [0, 4, 6, 7, 8, 12, 18]
    assert cumulative_lengths(starts).dtype == np.int32
    assert positions(starts).dtype == np.int64
