"""The frames that were chosen from a clip, drawn on the signals that they were chosen by."""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ..files import whole_file
from .plots import BLUE, GREY, INK, ORANGE, in_style, make_figure, to_png


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


_NAMES = {
    "contrast": "vessels (share of the picture)",
    "motion": "motion",
    "phase": "phase of the beat (cycles)",
    "breathing": "breathing (share of the height)",
    "distance": "distance from the nearest chosen",
}
_PHASES = {"inflow": "inflow", "filled": "filled", "washout": "wash-out"}


@in_style
def frame_timeline(report: Mapping[str, Any]) -> "Figure":
    """
    A timeline: one row for each signal, the chosen frames as dots on it and as lines through all rows, the key frame
    as a diamond, what was left out as crosses below, and phases of contrast by their names.

    Args:
        report (`dict`): of [`~data.frame_samplers.FrameSample`].

    Returns:
        `matplotlib.figure.Figure`, without any window.
    """
    signals = report["signals"] or {"": [0.0] * report["total"]}
    figure, axes = make_figure(9, 1.0 + 1.45 * len(signals), rows=len(signals))
    for own, (name, values) in zip(axes, signals.items(), strict=True):
        _draw(own, np.array(values, dtype=float), report)
        own.set_ylabel(_NAMES.get(name, name).replace(" (", "\n("))
        if not name:
            own.set_yticks([])
    for own in axes[:-1]:
        own.tick_params(labelbottom=False)
    axes[-1].set_xlabel("frame")
    axes[0].set_title("\n".join(_lines(report)), loc="left", pad=18 if report.get("phases") else 6)
    for name, place in (report.get("phases") or {}).items():
        if place is not None:
            middle = (place[0] + place[1]) / 2
            above = axes[0].get_xaxis_transform()
            axes[0].text(middle, 1.02, _PHASES[name], transform=above, ha="center", color=GREY, fontsize=9)
    return figure


def _lines(report: Mapping[str, Any]) -> list[str]:
    lines = [f"{report['sampler']}: {len(report['frames'])} of {report['total']} frames"]
    if report.get("period"):
        lines[0] += f", a beat every {report['period']:.1f}"
    left = [f"{len(own)} {reason}" for reason, own in report["left_out"].items()]
    return lines + ([f"left out: {', '.join(left)}"] if left else []) + list(report["reasons"])


def _draw(axes: "Axes", values: np.ndarray, report: Mapping[str, Any]) -> None:
    time, chosen = np.arange(len(values)), np.array(report["frames"], dtype=int)
    filled = (report.get("phases") or {}).get("filled")
    if filled is not None:
        axes.axvspan(filled[0] - 0.5, filled[1] + 0.5, color=BLUE, alpha=0.1, linewidth=0)
    for frame in chosen:
        axes.axvline(frame, color=ORANGE, alpha=0.35, linewidth=1)
    # A phase starts anew with every beat; no line goes back down.
    jumps = np.abs(np.diff(values)) > 0.5 if np.nanmax(values, initial=0) <= 1 else np.zeros(len(values) - 1, bool)
    axes.plot(time, np.where(np.append(jumps, False), np.nan, values), color=BLUE, linewidth=1.3)
    axes.plot(chosen, values[chosen], "o", color=ORANGE, markersize=5)
    key_frame = report.get("key_frame")
    if key_frame is not None:
        axes.plot(key_frame, values[key_frame], "D", color=INK, markersize=7, fillstyle="none")
    for own in report["left_out"].values():
        axes.plot(own, np.zeros(len(own)), "x", color=GREY, transform=axes.get_xaxis_transform(), clip_on=False)
    axes.set_xlim(-1, max(len(values), 2))
    axes.margins(y=0.12)


def save_timeline(path: str | os.PathLike, report: Mapping[str, Any]) -> None:
    """
    Write the timeline as PNG.

    Args:
        path (`str` or `os.PathLike`): of the file.
        report (`dict`): as for [`frame_timeline`].
    """
    with whole_file(path) as temporary:
        temporary.write_bytes(to_png(frame_timeline(report)))
