import numpy as np

from ingot.data.sequences.packing import cumulative_lengths, positions


def test_positions_and_cu_seqlens_restart_at_documents_and_rows():
    starts = np.zeros((3, 6), dtype=bool)
    starts[0, [0, 4]] = True  # opens with a document
    starts[1, [1, 2]] = True  # opens inside of one
    assert positions(starts).tolist() == [[0, 1, 2, 3, 0, 1], [0, 0, 0, 1, 2, 3], [0, 1, 2, 3, 4, 5]]
    assert cumulative_lengths(starts).tolist() == [0, 4, 6, 7, 8, 12, 18]
    assert cumulative_lengths(starts).dtype == np.int32
    assert positions(starts).dtype == np.int64
