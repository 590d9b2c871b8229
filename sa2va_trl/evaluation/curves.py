"""What a training has logged, sorted into panels to be drawn."""

import json
import math
import os
from pathlib import Path


Curve = tuple[list[float], list[float]]
STATE = "trainer_state.json"
# Of a log's entries: where it was, and what says how fast the machine is.
NO_CURVES = ("step", "epoch", "num_tokens", "total_flos", "train_loss")
NO_ENDINGS = ("_runtime", "_per_second", "entropy", "mean_token_accuracy")


def read_log(folder: str | os.PathLike) -> list[dict] | None:
    """
    What the trainer's state says of a run.

    Args:
        folder (`str` or `os.PathLike`): what a training task has left.

    Returns:
        `list[dict]`: `log_history` of `trainer_state.json`; `None` where it is not there or not whole.
    """
    try:
        log = json.loads((Path(folder) / STATE).read_text(encoding="utf-8"))["log_history"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return log if isinstance(log, list) and all(isinstance(entry, dict) for entry in log) and log else None


def panels(log: list[dict]) -> dict[str, dict[str, Curve]]:
    """
    Args:
        log (`list[dict]`): from [`read_log`].

    Returns:
        `dict[str, dict[str, tuple[list, list]]]`: by title of the panel (`"losses"`, `"metrics"`, `"learning rate"`;
        those without a curve are left out) and name of the curve, steps and values. What is not a finite number is
        left out.

    Example:

        ```python
        >>> from sa2va_trl.evaluation.curves import panels

        >>> panels([{"step": 1, "loss": 0.9}, {"step": 2, "loss": 0.8, "eval_dice": 0.5}])
        {'losses': {'loss': ([1, 2], [0.9, 0.8])}, 'metrics': {'eval_dice': ([2], [0.5])}}

        ```
    """
    found = {"losses": {}, "metrics": {}, "learning rate": {}}
    for entry in log:
        for name, value in entry.items():
            is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
            if "step" not in entry or not is_number or name in NO_CURVES or name.endswith(NO_ENDINGS):
                continue
            steps, values = found[_panel(name)].setdefault(name, ([], []))
            steps.append(entry["step"])
            values.append(value)
    # A gradient's norm, as large as it may be, would flatten the metrics.
    found["metrics"].pop("grad_norm", None)
    return {title: lines for title, lines in found.items() if lines}


def _panel(name: str) -> str:
    if name.endswith("learning_rate"):
        return "learning rate"
    return "losses" if "loss" in name else "metrics"
