import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sa2va_trl import batches
from sa2va_trl.batches import CPU_ROWS, GPU_ROWS, Batches, like_sized, parse_batch_size


CPU, GPU = torch.device("cpu"), torch.device("cuda")


@settings(deadline=None)
@given(st.lists(st.integers(1, 5000), max_size=40), st.integers(1, 9))
def test_groups_hold_every_row_once_and_little_padding(work, size):
    groups = like_sized(work, size)
    assert sorted(row for group in groups for row in group) == list(range(len(work)))
    assert all(len(group) <= size for group in groups)
    for group in groups:
        longest = max(work[row] for row in group)
        assert min(work[row] for row in group) >= 0.75 * longest
        assert sum(longest - work[row] for row in group) <= 0.25 * longest * (len(group) - 1)
    firsts = [work[group[0]] for group in groups]
    assert firsts == sorted(work, reverse=True)[:1] + sorted(firsts[1:], reverse=True)


def test_rows_of_one_size_keep_their_order():
    assert like_sized([7] * 5, 2) == [[0, 1], [2, 3], [4]]


@pytest.mark.parametrize("value", [0, -1, "0", "many", "", 1.5, True, None])
def test_what_is_no_batch_size_is_refused(value):
    with pytest.raises(ValueError, match="batch_size must be a whole number of at least 1, or auto"):
        parse_batch_size(value)


def runs(made, work, fits=10**9):
    """The passes that are made, where more than `fits` rows do not fit; every row comes once, with its own."""
    asked = []

    def call(rows):
        asked.append(list(rows))
        if len(rows) > fits:
            raise torch.OutOfMemoryError("out of memory")
        return [row * 10 for row in rows]

    found = dict(pair for rows, own in made.run(call, work) for pair in zip(rows, own, strict=True))
    assert found == {row: row * 10 for row in range(len(work))}
    return asked


@pytest.mark.parametrize("size", [1, 3, "auto"])
def test_passes_are_of_the_size_that_is_asked_for(size):
    asked = runs(Batches(size, CPU), [5] * 10)
    most = CPU_ROWS if size == "auto" else size
    assert [len(rows) for rows in asked] == [most] * (10 // most) + [10 % most] * (10 % most > 0)


@pytest.mark.parametrize("size", [8, "auto"])
def test_where_memory_runs_out_half_as_many_go(size, monkeypatch):
    monkeypatch.setattr(batches, "CPU_ROWS", 8)
    made = Batches(size, CPU)
    assert [len(rows) for rows in runs(made, [5] * 9, fits=3)] == [8, 4, 2, 2, 2, 2, 1]
    assert [len(rows) for rows in runs(made, [5] * 4, fits=3)] == [2, 2]  # it is remembered


def test_a_row_that_does_not_fit_alone_is_an_error():
    with pytest.raises(torch.OutOfMemoryError):
        runs(Batches(4, CPU), [5] * 6, fits=0)


def test_other_errors_are_nobody_s_memory():
    def call(rows):
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        list(Batches(4, CPU).run(call, [1, 2]))


@pytest.mark.parametrize(("free", "fit"), [(1000, 8), (90, 1), (10**6, GPU_ROWS)])
def test_on_a_gpu_the_longest_row_says_how_many_fit(monkeypatch, free, fit):
    memory = {"memory_allocated": 500, "max_memory_allocated": 600, "memory_reserved": 520}
    for name, value in memory.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    # What torch has reserved and not handed out is free, too.
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free - 20, 10**9))
    made = Batches("auto", GPU)
    asked = runs(made, [9, 12, 10] + [9] * 40)
    assert asked[0] == [1] and made.most == fit
    assert [len(rows) for rows in asked[1:]] == [fit] * (42 // fit) + [42 % fit] * (42 % fit > 0)
    assert len(runs(made, [9] * fit)) == 1  # nothing is measured again
