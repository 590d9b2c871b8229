"""Contact sheets of pairs."""

import numpy as np

from sa2va_trl.evaluation import overlay
from sa2va_trl.preferences.dataset import build_preferences
from sa2va_trl.preferences.sheets import contact_sheet


def test_a_sheet_goes_from_the_smallest_to_the_largest_gap(network, rows):
    pairs = build_preferences(rows, *network, min_gap=0, progress=False)
    gaps = np.array(pairs["chosen_reward"]) - np.array(pairs["rejected_reward"])
    order = np.argsort(gaps)
    assert len(set(gaps)) == 4
    for count, shown in ((2, order[[0, 3]]), (9, order), (1, order[:1])):
        sheet = np.asarray(contact_sheet(pairs, count))
        assert sheet.shape == (256 * len(shown), 768, 3)
        for strip, number in zip(np.split(sheet, len(shown)), shown.tolist(), strict=True):
            row = pairs[number]
            target = np.asarray(row["mask"]) > 0
            for name, part in (("chosen_mask", strip[:, 256:512]), ("rejected_mask", strip[:, 512:])):
                drawn = overlay(row["image"], np.asarray(row[name]) > 0, target)
                expected = np.asarray(drawn.crop((64, 0, 128, 64)).resize((256, 256))).astype(int)
                # (The strip was enlarged as a whole: its parts run into each other at their edges.)
                assert np.abs(part.astype(int) - expected)[:, 8:-8].max() <= 1
