import os
import signal
import time
from multiprocessing import get_context

import numpy as np
import pytest
import torch

from sa2va_trl.errors import FeatureError
from sa2va_trl.features import store as module
from sa2va_trl.features.store import FeatureStore
from sa2va_trl.models.outputs import SegFeatures, pair_masks


# Rows are numbers here, and `encode` writes down which it was asked for.


class Numbers:
    """Stands in for a data set: row `i` is `{"number": i}`."""

    def __getitem__(self, index):
        return {"number": index}


def numbered(row):
    """Made-up features of a row: 1 or 2 `[SEG]`s on 0 to 2 images."""
    number = row["number"]
    rng = torch.Generator().manual_seed(number)
    segs, images = 1 + number % 2, number % 3
    states = torch.randn(segs, 5, generator=rng)
    return states, tuple(torch.randn(images, 2, side, side, generator=rng) for side in (8, 4, 2))


def encode_numbers(rows):
    parts = [numbered(row) for row in rows]
    segs, images = [len(states) for states, _ in parts], [len(levels[0]) for _, levels in parts]
    pairs = pair_masks(torch.arange(len(rows)).repeat_interleave(torch.tensor(segs)), torch.tensor(images))
    pyramid = tuple(torch.cat([levels[level] for _, levels in parts]) for level in range(3))
    return SegFeatures(torch.cat([states for states, _ in parts]), *pairs, pyramid), segs, images


COUNT = 12


ROWS = {f"key{number}": (Numbers(), number) for number in range(COUNT)}


def store(folder):
    return FeatureStore(folder, {"weights": "some"})


def build(folder, log=None, pause=0.0, die_after=None, batch_size=2):
    """Returns the store and the rows that were computed."""
    asked = []

    def encode(rows):
        time.sleep(pause)
        if die_after is not None and len(asked) >= die_after:
            os.kill(os.getpid(), signal.SIGKILL)
        asked.extend(row["number"] for row in rows)
        if log is not None:
            with open(log, "a") as file:
                file.writelines(f"{row['number']}\n" for row in rows)
        return encode_numbers(rows)

    found = store(folder)
    found.build(ROWS, encode, batch_size, progress=False)
    return found, asked


def assert_right(found, keys=ROWS):
    for key in keys:
        features, images = found.read([key])
        states, levels = numbered({"number": ROWS[key][1]})
        assert torch.equal(features.seg_states, states)
        assert all(torch.equal(one, other) for one, other in zip(features.pyramid, levels, strict=True))
        assert images.tolist() == [len(levels[0])]
    order = list(keys)[::-1]
    features, _ = found.read(order)
    expected, _, _ = encode_numbers([{"number": ROWS[key][1]} for key in order])
    for name in ("seg_states", "seg_index", "image_index", "row_index"):
        assert torch.equal(getattr(features, name), getattr(expected, name)), name
    assert all(torch.equal(one, other) for one, other in zip(features.pyramid, expected.pyramid, strict=True))


def spawn(*args):
    # Not a fork of this process: one that has computed with several threads deadlocks in torch.
    context = get_context("forkserver")
    context.set_forkserver_preload(["sa2va_trl.features.encoding"])
    process = context.Process(target=build, args=args)
    process.start()
    return process


def test_rows_are_computed_once(tmp_path):
    found, asked = build(tmp_path)
    assert asked == list(range(COUNT))
    assert_right(found)
    again, asked = build(tmp_path)
    assert asked == []
    assert_right(again)
    with pytest.raises(FeatureError, match="no features of the row with key 'other'"):
        again.read(["key1", "other"])


@pytest.mark.parametrize("die_after", [0, 2, 8])
def test_a_killed_run_is_taken_up_where_it_ended(tmp_path, die_after):
    process = spawn(tmp_path, None, 0.0, die_after)
    process.join(30)
    assert process.exitcode == -signal.SIGKILL
    # Worse than that: killed while it wrote.
    for file in store(tmp_path).folder.glob("part-*"):
        with open(file, "ab") as part:
            part.write(file.read_bytes()[:17])
    found, asked = build(tmp_path)
    assert asked == list(range(die_after, COUNT))
    assert_right(found)
    assert build(tmp_path)[1] == []


def files(folder, end):
    return sorted(store(folder).folder.glob(f"*.{end}"))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("end", ["bin", "jsonl"])
def test_a_damaged_row_is_computed_again_and_only_that(tmp_path, end, seed):
    build(tmp_path)
    (file,) = files(tmp_path, end)
    content = bytearray(file.read_bytes())
    place = np.random.default_rng(seed).integers(len(content))
    content[place] ^= 1 << seed
    file.write_bytes(content)
    found, asked = build(tmp_path)
    # A damaged line end takes the next line with it, and a letter of a name in the line's own grammar nothing.
    assert 1 <= len(asked) <= 2
    assert_right(found)
    assert build(tmp_path)[1] == []


@pytest.mark.parametrize("end", ["bin", "jsonl"])
def test_a_file_that_was_cut_off_costs_its_last_rows(tmp_path, end):
    build(tmp_path)
    (file,) = files(tmp_path, end)
    os.truncate(file, file.stat().st_size // 2)
    found, asked = build(tmp_path)
    assert 0 < len(asked) < COUNT and asked == list(range(COUNT))[-len(asked) :]
    assert_right(found)


def test_a_lost_file_costs_its_rows(tmp_path):
    build(tmp_path)
    files(tmp_path, "bin")[0].unlink()
    found, asked = build(tmp_path)
    assert len(asked) == COUNT
    assert_right(found)
    assert len(files(tmp_path, "jsonl")) == 1  # what described the lost file is gone too


def test_of_two_builders_one_computes_and_both_read(tmp_path):
    log = tmp_path / "log"
    others = [spawn(tmp_path, log, 0.1), spawn(tmp_path, log, 0.1)]
    found, _ = build(tmp_path, log, 0.1)
    for other in others:
        other.join(60)
        assert other.exitcode == 0
    assert sorted(map(int, log.read_text().split())) == list(range(COUNT))
    assert_right(found)


def test_a_dead_builder_holds_nobody_up(tmp_path):
    process = spawn(tmp_path, None, 0.0, 4)
    process.join(30)
    assert (store(tmp_path).folder / "lock").exists()
    start = time.monotonic()
    assert_right(build(tmp_path)[0])
    assert time.monotonic() - start < 5


def test_too_little_room_is_said_before_anything_is_computed(tmp_path, monkeypatch):
    monkeypatch.setattr(FeatureStore, "free", lambda self: 1234)
    asked = []
    with pytest.raises(FeatureError, match="24,000 bytes are needed and 1,234 bytes are free"):
        store(tmp_path).build(ROWS, asked.append, 2, need=lambda keys: 2000 * len(keys), progress=False)
    assert asked == [] and files(tmp_path, "bin") == []


def test_a_disk_that_fills_up_leaves_nothing_corrupt(tmp_path, monkeypatch):
    room = 5000
    write_all = module._write_all

    def limited(file, content):
        nonlocal room
        if len(content) > room:
            write_all(file, memoryview(content)[:room])
            raise OSError(28, "No space left on device")
        room -= len(content)
        return write_all(file, content)

    monkeypatch.setattr(module, "_write_all", limited)
    with pytest.raises(FeatureError, match=r"No space left on device.*bytes are needed and .*bytes are free"):
        store(tmp_path).build(ROWS, encode_numbers, 2, need=lambda keys: len(keys), progress=False)
    written = store(tmp_path).open().records
    assert 0 < len(written) < COUNT
    assert_right(store(tmp_path).open(), list(written))
    assert files(tmp_path, "bin")[0].stat().st_size == sum(record.size for record in written.values())
    room = 10**9
    found, asked = build(tmp_path)
    assert len(asked) == COUNT - len(written)
    assert_right(found)


def test_an_error_of_the_model_is_the_error(tmp_path):
    def encode(rows):
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        store(tmp_path).build(ROWS, encode, 2, progress=False)
    assert_right(build(tmp_path)[0])


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FeatureError, match="cache_dir"):
        build(tmp_path / "file")
