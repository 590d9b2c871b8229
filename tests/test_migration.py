"""docs/migration.md, followed from top to bottom on a small checkpoint: the official calls, and those beside them."""

import numpy as np
import pytest
from house import ROOT
from official_scripts import without_a_gpu, write_published
from pages import blocks, text_of
from prepared import shown


PAGE = text_of(ROOT / "docs" / "migration.md")


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """The files of the page, in the working directory."""
    write_published(tmp_path / "ByteDance" / "Sa2VA-4B")
    (tmp_path / "clip").mkdir()
    for number in range(6):
        shown(number).save(tmp_path / "clip" / f"{number}.png")
    shown(0).save(tmp_path / "frame.png")
    regions = np.zeros((2, *shown(0).size[::-1]))
    regions[0, 4:20, 5:25], regions[1, 15:28, 22:36] = 1, 1
    np.save(tmp_path / "regions.npy", regions)
    monkeypatch.chdir(tmp_path)
    without_a_gpu(monkeypatch)
    return tmp_path


def test_the_calls_run_and_say_the_same(desk):
    names = {}
    first, processor, *pairs = blocks(PAGE, "python")
    exec(first, names)
    assert names["result"]["prediction"].endswith("<|im_end|>")
    exec(processor, names)
