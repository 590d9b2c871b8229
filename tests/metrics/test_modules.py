import math
import sys
from pathlib import Path

import evaluate
import numpy as np
import pytest
from pairs import EMPTY, FIXED

import sa2va_trl.metrics
from sa2va_trl.metrics import mask_metrics, reliability


FOLDER = Path(sa2va_trl.metrics.__file__).parent / "modules"


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    """`evaluate.load`, whose copies of the modules and what they collect go to a folder of these tests."""
    folder = tmp_path_factory.mktemp("evaluate")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", list(sys.path))
        patch.setattr(evaluate.config, "HF_MODULES_CACHE", folder / "modules")
        yield lambda name: evaluate.load(str(FOLDER / f"{name}.py"), cache_dir=str(folder / "cache"))


def test_masks_are_scored_as_the_functions_do(load):
    metric = load("masks")
    pairs = [FIXED["blobs-0"], FIXED["shaken-1"], (EMPTY, EMPTY)]
    expected = [mask_metrics(*pair) for pair in pairs]
    for _ in range(2):  # asked twice, in batches of their own
        metric.add_batch(predictions=[pairs[0][0], pairs[1][0]], references=[pairs[0][1], pairs[1][1]])
        metric.add(prediction=pairs[2][0], reference=pairs[2][1])
        found = metric.compute()
        for name in expected[0]:
            column = [value[name] for value in expected if not math.isnan(value[name])]
            assert found[name] == pytest.approx(np.mean(column) if column else math.nan, nan_ok=True)
            assert found[f"{name}_undefined"] == 3 - len(column)
    assert found["hd95_undefined"] == 1
    wide = metric.compute(predictions=[pairs[0][0]], references=[pairs[0][1]], spacing=(2.0, 2.0))
    assert wide["hd95"] == pytest.approx(2 * expected[0]["hd95"])


def test_calibration_is_over_all_pixels(load):
    rng = np.random.default_rng(0)
    maps, targets = rng.random((2, 6, 7), dtype=np.float32), rng.random((2, 6, 7)) > 0.5
    found = load("calibration").compute(predictions=maps, references=targets.astype(np.uint8), bins=5)
    whole = reliability(maps, targets, 5)
    assert found == {"ece": pytest.approx(whole.ece), "brier": pytest.approx(whole.brier)}
