import gc
import logging
import os
from collections import Counter
from pathlib import Path


os.environ["HF_HUB_OFFLINE"] = "1"  # before anything of Hugging Face is imported: no test may need the network

import counted_once
import longer
import numpy as np
import pytest
from hypothesis import settings
from PIL import Image
from xdist.scheduler import LoadFileScheduling


# Fewer examples of a property than hypothesis takes by itself, since there are a hundred of them;
# HYPOTHESIS_PROFILE=default takes them all.
settings.register_profile("fewer", max_examples=25)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fewer"))

TESTS = Path(__file__).parent
# Runs of several processes begin, while the other worker computes by itself.
FIRST = ("distributed/", "models/test_reference.py", "models/test_qwen_reference.py")
# Of a VLM. (The library is imported where it is used: not in the process that only hands out tests to workers, which
# would begin as much later.)
FAMILIES = ("internvl", "qwen2_5_vl", "qwen3_vl")


class OneWorkerAFile(LoadFileScheduling):
    """
    With several workers (`pytest -n 2 --dist loadfile`) a file stays on one of them, which shares its fixtures, and so
    do all runs of several processes, which follow one another in those that stand ready.

    (The groups of xdist 3.8 would say so, but have no effect with pytest 9.2: they are written into an attribute that
    it no longer has.)
    """

    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        return "distributed" if "distributed/" in file else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    return OneWorkerAFile(config, log) if config.getvalue("dist") == "loadfile" else None


def pytest_collection_modifyitems(items):
    longer_ones, seconds = longer.listed(), Counter()
    for name, time in longer_ones.items():
        seconds[name.partition("::")[0]] += time
    for item in items:
        name = f"{item.path.relative_to(TESTS).as_posix()}::{item.originalname}"
        if name in longer_ones:
            item.add_marker("longer")
    order = [*FIRST, ""]

    def turn(item):
        # The file that takes longest is the next one, so that no worker is left with it at the end.
        first = next(i for i, start in enumerate(order) if start in item.nodeid)
        return first, -seconds[item.path.relative_to(TESTS).as_posix()] if first else 0

    items.sort(key=turn)


def pytest_collection_finish():
    # What is imported stays, and need not be looked at again whenever a trainer collects garbage before it starts.
    gc.collect()
    gc.freeze()


def pytest_unconfigure():
    gc.unfreeze()


@pytest.fixture(autouse=True)
def _needs_of_equal_steps():
    """A count of what a step needs takes longer than the steps of most tests do."""
    counted_once.count_once()


@pytest.fixture(autouse=True)
def _log_of_the_library():
    """As it is without a task, which shows it on the screen from then on."""
    logger = logging.getLogger("sa2va_trl")
    logger.handlers, logger.propagate = [], True
    logger.setLevel(logging.NOTSET)


@pytest.fixture
def tiny():
    """A fresh tiny model, in evaluation mode, and its processor."""
    from sa2va_trl import tiny_sa2va

    model, processor = tiny_sa2va(image_size=128)
    return model.eval(), processor


@pytest.fixture(scope="module")
def network():
    """One tiny model for a whole file, in which nothing changes it, and its processor."""
    from sa2va_trl import tiny_sa2va

    model, processor = tiny_sa2va(image_size=128)
    return model.eval(), processor


@pytest.fixture(params=FAMILIES)
def any_tiny(request):
    """As `tiny`, of each VLM family in turn."""
    from sa2va_trl import tiny_sa2va
    from sa2va_trl.models.configuration import SUPPORTED_VLMS

    assert set(FAMILIES) == set(SUPPORTED_VLMS)
    model, processor = tiny_sa2va(image_size=128, family=request.param)
    return model.eval(), processor


@pytest.fixture
def image():
    """A small image, wider than high, without any symmetry."""
    rows, columns = np.mgrid[0:60, 0:100]
    channels = (3 * rows + columns, rows * columns // 8, 7 * columns - rows)
    return Image.fromarray((np.stack(channels, axis=-1) % 256).astype(np.uint8))


@pytest.fixture(scope="session")
def shared():
    """The folder with the reference files, which are not part of the repository."""
    root = Path(__file__).resolve().parents[1]
    folder = (root / os.environ.get("SA2VA_TRL_SHARED", "../shared")).resolve()
    if not folder.is_dir():
        pytest.skip(f"no reference files: {folder} is not a folder; set SA2VA_TRL_SHARED to theirs")
    return folder
