"""Contact sheets of runs of hard frames."""

import numpy as np
from score_tables import table

from sa2va_trl.evaluation import film_strip, predict_probabilities
from sa2va_trl.mining.selection import mine
from sa2va_trl.mining.sheets import draw_run, run_frames


def test_a_run_has_one_more_frame_on_either_side():
    dice = [0.9, 0.4, 0.4, 0.9, 0.9, 0.4, 0.4]
    frames = {"video_id": ["a"] * 7, "frame_index": [6, 5, 4, 3, 2, 1, 0]}
    mined = mine(table(dice=dice, **frames))
    assert run_frames(mined, "a", "a/0")["frame_index"].tolist() == [0, 1, 2]
    assert run_frames(mined, "a", "a/1")["frame_index"].tolist() == [3, 4, 5, 6]


def test_a_sheet_shows_what_the_model_draws(network, rows, scores):
    few, frames = rows.select(range(3)), scores.iloc[:3].assign(cluster=[None, "v/0", "v/0"])
    masks = [maps[0] > 0.5 for _, maps in predict_probabilities(*network, few, progress=False)]
    targets = [np.asarray(row["mask"]) > 0 for row in few]
    titles = [
        f"{star} frame {number}: {dice:.3f}"
        for star, number, dice in zip(" **", range(3), frames["dice"], strict=True)
    ]
    for labels in (True, False):
        expected = film_strip([row["image"] for row in few], masks, targets if labels else None, titles)
        drawn = draw_run(*network, few, frames, labels=labels, batch_size=2)
        assert drawn.size == expected.size == (3 * 192, 20 + 2 * 192)
        # (A pixel at the threshold may fall either way from batch to batch.)
        assert (np.asarray(drawn) != np.asarray(expected)).mean() < 0.01
