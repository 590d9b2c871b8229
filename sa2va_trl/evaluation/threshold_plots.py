"""Pictures of a sweep over thresholds: its curves, and how far probabilities can be trusted."""

import os
from typing import TYPE_CHECKING

from ..files import whole_file


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


# Told apart by line where there is no colour, and by colours (Okabe and Ito's) that the colour-blind tell apart too.
LINES = {
    "dice": ("#0072B2", "-"),
    "iou": ("#009E73", "--"),
    "recall": ("#D55E00", "-."),
    "precision": ("#CC79A7", ":"),
}
NAMES = {"dice": "Dice", "iou": "IoU", "recall": "recall", "precision": "precision"}


def draw_curves(
    path: str | os.PathLike, thresholds: list[float], splits: dict[str, dict[str, dict]], chosen: dict
) -> None:
    """
    Draw the curves of each split beside each other, with the choice.

    Args:
        path (`str` or `os.PathLike`): of the PNG.
        thresholds (`list[float]`): of the curves.
        splits (`dict[str, dict]`): by the split's name, [`~evaluation.thresholds.curves`] of it.
        chosen (`dict`): from [`~evaluation.thresholds.best_threshold`].
    """
    figure, axes = _figure(len(splits))
    for place, (axis, (split, curves)) in enumerate(zip(axes, splits.items(), strict=True)):
        for name, curve in curves.items():
            colour, line = LINES[name]
            axis.plot(thresholds, curve["mean"], line, color=colour, label=NAMES[name])
            if curve["low"] is not None:
                axis.fill_between(thresholds, curve["low"], curve["high"], color=colour, alpha=0.15, linewidth=0)
        axis.axvline(0.5, color="#777777", linewidth=1)
        label = f"chosen, {chosen['threshold']:g}"
        axis.axvline(chosen["threshold"], color="#000000", linewidth=1, linestyle="--", label=label)
        if place == 0 and None not in chosen["ci95"]:
            axis.axvspan(*chosen["ci95"], color="#000000", alpha=0.07, linewidth=0)
        axis.set(title=split, xlabel="threshold", xlim=(0, 1), ylim=(0, 1))
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("mean over images, 95 % band")
    axes[0].legend(loc="lower center", ncols=2, fontsize="small")
    _save(figure, path)


def draw_reliability(path: str | os.PathLike, reports: dict[str, dict]) -> None:
    """
    Draw reliability diagrams beside each other: the share of pixels within the target over their probability.

    Args:
        path (`str` or `os.PathLike`): of the PNG.
        reports (`dict[str, dict]`): by title, from [`~evaluation.calibration.Calibration`].
    """
    figure, axes = _figure(len(reports))
    for axis, (title, report) in zip(axes, reports.items(), strict=True):
        bins = report["reliability"]
        axis.plot([0, 1], [0, 1], color="#777777", linewidth=1)
        axis.plot(
            [entry["probability"] for entry in bins],
            [entry["frequency"] for entry in bins],
            "o-",
            color="#0072B2",
            markersize=4,
        )
        axis.set(
            title=f"{title}: ECE {report['ece']:.4f}, Brier {report['brier']:.4f}",
            xlabel="probability",
            xlim=(0, 1),
            ylim=(0, 1),
        )
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("share of pixels in the target")
    _save(figure, path)


def _figure(columns: int) -> "tuple[Figure, list[Axes]]":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * columns, 4), layout="constrained")
    return figure, list(figure.subplots(1, columns, squeeze=False)[0])


def _save(figure: "Figure", path: str | os.PathLike) -> None:
    with whole_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130)
