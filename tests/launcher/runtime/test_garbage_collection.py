import gc

from ingot.launcher.runtime.garbage_collection import GarbageCollection


def collections() -> int:
    return sum(generation["collections"] for generation in gc.get_stats())


def make_garbage() -> None:
    for _ in range(5000):
        loop: list = []
        loop.append(loop)


def test_garbage_is_collected_at_the_given_steps_only():
    with GarbageCollection(2) as garbage:
        before = collections()
        make_garbage()
        garbage.step_end(1)
        assert collections() == before
        garbage.step_end(2)
        assert collections() == before + 1
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0


def test_zero_leaves_the_collector_as_it_is():
    with GarbageCollection(0) as garbage:
        before = collections()
        make_garbage()
        garbage.step_end(2)
        assert collections() > before


def test_a_collector_that_was_off_stays_off():
    gc.disable()
    try:
        with GarbageCollection(1):
            assert not gc.isenabled()
        assert not gc.isenabled()
    finally:
        gc.enable()
