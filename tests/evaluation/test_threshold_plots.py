import numpy as np
import pytest
from PIL import Image

from sa2va_trl.evaluation.calibration import Calibration
from sa2va_trl.evaluation.threshold_plots import draw_curves, draw_reliability
from sa2va_trl.evaluation.thresholds import SWEPT, sort_map


THRESHOLDS = [0.25, 0.5, 0.75]


def colours(path):
    return {tuple(colour) for colour in np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3)}


@pytest.mark.parametrize("has_bands", [True, False])
def test_curves_of_both_splits_are_drawn(tmp_path, has_bands):
    def curve(mean):
        band = [[value + shift for value in mean] if has_bands else None for shift in (-0.1, 0.1)]
        return {"mean": mean, "low": band[0], "high": band[1]}

    one = {name: curve([0.2 + 0.15 * place, 0.5, 0.4]) for place, name in enumerate(SWEPT)}
    chosen = {"threshold": 0.25, "ci95": [0.25, 0.5] if has_bands else [None, None]}
    draw_curves(tmp_path / "a.png", THRESHOLDS, {"validation": one}, chosen)
    draw_curves(tmp_path / "b.png", THRESHOLDS, {"validation": one, "test": one}, chosen)
    widths = [Image.open(tmp_path / name).width for name in ("a.png", "b.png")]
    assert widths[1] == 2 * widths[0] and sorted(file.name for file in tmp_path.iterdir()) == ["a.png", "b.png"]
    assert {(0x00, 0x72, 0xB2), (0x00, 0x9E, 0x73), (0xD5, 0x5E, 0x00), (0xCC, 0x79, 0xA7)} <= colours(
        tmp_path / "a.png"
    )


def test_reliability_is_drawn(tmp_path):
    found = Calibration()
    found.add(sort_map(np.linspace(0, 1, 50), np.linspace(0, 1, 50) > 0.6))
    draw_reliability(tmp_path / "r.png", {"as they are": found.report(), "after": found.report()})
    assert (0x00, 0x72, 0xB2) in colours(tmp_path / "r.png")
