import json
import math

from sa2va_trl.evaluation.curves import panels, read_log


LOG = [
    {"step": 1, "epoch": 0.5, "loss": 2.0, "dice_loss": 1.0, "learning_rate": 1e-4, "grad_norm": 3.0},
    {"step": 1, "eval_dice": 0.5, "eval_loss": 1.5, "eval_runtime": 3.0, "eval_samples_per_second": 1.0},
    {"step": 2, "loss": math.nan, "rewards/margins": 0.1, "done": True, "note": "text"},
    {"epoch": 1.0, "loss": 1.0},
]


def test_what_is_logged_is_sorted_into_panels():
    assert panels(LOG) == {
        "losses": {"loss": ([1], [2.0]), "dice_loss": ([1], [1.0]), "eval_loss": ([1], [1.5])},
        "metrics": {"eval_dice": ([1], [0.5]), "rewards/margins": ([2], [0.1])},
        "learning rate": {"learning_rate": ([1], [1e-4])},
    }
    assert panels([]) == {} == panels([{"step": 1, "train_loss": 1.0}])


def test_a_state_that_is_not_there_or_not_whole_is_none(tmp_path):
    assert read_log(tmp_path) is None and read_log("no/such/folder") is None
    for text in ("", "{", "[]", "{}", '{"log_history": []}', '{"log_history": [1]}'):
        (tmp_path / "trainer_state.json").write_text(text)
        assert read_log(tmp_path) is None
    (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": LOG}))
    assert len(read_log(tmp_path)) == 4
