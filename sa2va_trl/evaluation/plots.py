"""Plots of reports, by matplotlib: drawn into the page as SVG in its own colours, or saved as PNG."""

import io
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


# Okabe and Ito's, told apart with any colour vision; where two things are compared their shapes differ, too.
BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "#8a8a8a"
INK = "#1b1c1d"
# In a page they are the page's own, light or dark.
OF_THE_PAGE = {BLUE: "var(--blue)", ORANGE: "var(--orange)", GREY: "var(--grey)", INK: "currentColor"}
MARKERS = "os^Dv"
HATCHES = ("", "///", "...", "xxx", "---")
# Of a legend that hides nothing.
ABOVE = {"loc": "lower left", "bbox_to_anchor": (0, 1), "borderpad": 0.2, "handlelength": 1.4}
STYLE = {
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
    "svg.fonttype": "none",  # text stays text: to be read aloud, searched for and copied
}


def make_figure(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple["Figure", list["Axes"]]:
    """
    Args:
        width, height (`float`): in inches; 1 is 72 pixels of a page.
        rows, columns (`int`, *optional*, defaults to 1): of its axes.

    Returns:
        A figure without any window, and its axes, row by row.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    return figure, figure.subplots(rows, columns, squeeze=False).ravel().tolist()


def in_style(draw: Callable[..., "Figure"]) -> Callable[..., "Figure"]:
    """A function that draws, with our style in place of the user's own."""

    @wraps(draw)
    def drawn(*args, **kwargs):
        from matplotlib import rc_context

        with rc_context(STYLE):
            return draw(*args, **kwargs)

    return drawn


def to_svg(figure: "Figure", name: str) -> str:
    """
    Args:
        figure (`Figure`): from a function of this module.
        name (`str`): no other plot of the page has it, so that their parts have names of their own.

    Returns:
        `str`: an `<svg>` to be put into a page.
    """
    from matplotlib import rc_context

    text = io.StringIO()
    with rc_context({**STYLE, "svg.hashsalt": name}):
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(text, format="svg", transparent=True, metadata=nothing)
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :].replace("*{stroke-linejoin: round; stroke-linecap: butt}", "")
    for colour, own in OF_THE_PAGE.items():
        svg = svg.replace(colour, own)
    # Groups are counted in every plot from 1 on, and an identifier may be in a page only once.
    svg = svg.replace('<g id="', f'<g id="{name}-')
    return svg.replace("<svg ", '<svg aria-hidden="true" ', 1)


def to_png(figure: "Figure") -> bytes:
    """The figure on white, 150 dots an inch."""
    from matplotlib import rc_context

    data = io.BytesIO()
    with rc_context(STYLE):
        figure.savefig(data, format="png", dpi=150, facecolor="white")
    return data.getvalue()


@in_style
def distributions(samples: pd.DataFrame, names: Sequence[str]) -> "Figure":
    """
    A histogram of each metric with its mean and median.

    Args:
        samples (`pandas.DataFrame`): one row a sample.
        names (`Sequence[str]`): columns; values that are not finite are left out.
    """
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    figure, axes = make_figure(3.4 * columns, 2.2 * rows, rows, columns)
    for own, name in zip(axes, names, strict=False):
        values = finite(samples[name])
        _histogram(own, values, name)
    for own in axes[len(names) :]:
        own.set_axis_off()
    return figure


def _histogram(axes: "Axes", values: np.ndarray, name: str) -> None:
    axes.hist(values, bins=20, color=BLUE, alpha=0.55)
    axes.axvline(values.mean(), color=ORANGE, label=f"mean {values.mean():.3g}")
    axes.axvline(np.median(values), color=INK, linestyle="--", label=f"median {np.median(values):.3g}")
    axes.legend(fontsize=8, **ABOVE, ncols=2)
    axes.set_title(name, pad=22)
    axes.set_ylabel("images")


@in_style
def boxes(values: Mapping[str, ArrayLike], label: str) -> "Figure":
    """
    Values by group: a box (median, quartiles, whiskers of 1.5 times their distance), every value, and the mean.

    Args:
        values (`Mapping[str, array-like]`): finite numbers by name of the group, drawn from top to bottom.
        label (`str`): of the axis.
    """
    names = list(values)
    figure, (axes,) = make_figure(10, 0.9 + 0.32 * max(len(names), 2))
    places = np.arange(len(names))[::-1]
    for place, own in zip(places, values.values(), strict=True):
        own = finite(own)
        spread = np.linspace(-0.18, 0.18, 7)[np.arange(len(own)) % 7]  # so that equal ones do not hide each other
        axes.plot(own, place + spread, "o", color=BLUE, markersize=3, alpha=0.5)
        if len(own):
            axes.boxplot(
                own, positions=[place], orientation="horizontal", widths=0.6, showfliers=False, manage_ticks=False,
                medianprops={"color": INK, "linewidth": 1.5}, boxprops={"color": GREY},
                whiskerprops={"color": GREY}, capprops={"color": GREY},
            )  # fmt: skip
            axes.plot(own.mean(), place, "D", color=ORANGE, markersize=6)
    axes.set_yticks(places, [shortened(name) for name in names])
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.set_xlabel(f"{label} (box: median and quartiles; diamond: mean)")
    return figure


@in_style
def bucket_bars(counts: pd.DataFrame) -> "Figure":
    """
    How many samples lie in which range.

    Args:
        counts (`pandas.DataFrame`): a column a run, a row a range, whose names are shown.
    """
    runs = list(counts)
    figure, (axes,) = make_figure(10, 0.9 + len(counts) * (0.22 * len(runs) + 0.15))
    height, highest = 0.8 / len(runs), max(int(counts.to_numpy().max()), 1)
    for number, run in enumerate(runs):
        places = np.arange(len(counts)) + (number - (len(runs) - 1) / 2) * height
        style = {"facecolor": (BLUE, ORANGE)[number % 2], "edgecolor": INK, "hatch": HATCHES[number % len(HATCHES)]}
        bars = axes.barh(places, counts[run], height=0.9 * height, label=shortened(run), linewidth=0.5, **style)
        shares = counts[run] / max(counts[run].sum(), 1)
        labels = [f"{count} ({share:.0%})" for count, share in zip(counts[run], shares, strict=True)]
        axes.bar_label(bars, labels, fontsize=9, padding=3)
    axes.set_yticks(np.arange(len(counts)), counts.index)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.15 * highest)
    axes.set_xlabel("images")
    if len(runs) > 1:
        axes.legend(fontsize=9, **ABOVE, ncols=5)
    return figure


@in_style
def timeline(runs: Mapping[str, pd.Series], hard: Sequence[tuple[float, float]], limit: float, label: str) -> "Figure":
    """
    A metric over the frames of a clip.

    Args:
        runs (`Mapping[str, pandas.Series]`): by name of the run its values, by index of the frame.
        hard (`Sequence[tuple[float, float]]`): first and last frame of each run of hard ones, shaded.
        limit (`float`): below which a frame is hard, drawn as a line.
        label (`str`): of the metric.
    """
    figure, (axes,) = make_figure(5, 2.1)
    for number, (name, values) in enumerate(runs.items()):
        style = {"marker": MARKERS[number % len(MARKERS)], "linestyle": ("-", "--", ":")[number % 3]}
        colour = (BLUE, ORANGE)[number % 2]
        axes.plot(values.index, values, color=colour, markersize=4, label=shortened(name), **style)
    for number, (first, last) in enumerate(hard):
        style = {"facecolor": GREY, "edgecolor": INK, "alpha": 0.25, "hatch": "///", "linewidth": 0}
        axes.axvspan(first - 0.4, last + 0.4, label="hard frames" if number == 0 else None, **style)
    axes.axhline(limit, color=GREY, linestyle="--", linewidth=1)
    axes.set_ylim(-0.03, 1.03)
    axes.set_xlabel("frame")
    axes.set_ylabel(label)
    if len(runs) > 1 or hard:
        axes.legend(fontsize=8, **ABOVE, ncols=3)
    axes.xaxis.get_major_locator().set_params(integer=True)
    return figure


@in_style
def paired(before: pd.Series, after: pd.Series, names: tuple[str, str], label: str, lower: bool = False) -> "Figure":
    """
    Two runs on the same samples: one against the other, and how often by how much they differ.

    Args:
        before, after (`pandas.Series`): in the same order.
        names (`tuple[str, str]`): of the two.
        label (`str`): of the metric.
        lower (`bool`, *optional*, defaults to `False`): whether lower is better.
    """
    figure, (points, gains) = make_figure(10, 4, 1, 2)
    before, after = before.to_numpy(float), after.to_numpy(float)
    kept = np.isfinite(before) & np.isfinite(after)
    before, after = before[kept], after[kept]
    better = (after < before) if lower else (after > before)
    worse = ~better & (after != before)
    points.plot(
        before[better], after[better], "o", color=BLUE, markersize=4, alpha=0.6, label=f"better: {better.sum()}"
    )
    points.plot(before[worse], after[worse], "^", color=ORANGE, markersize=5, alpha=0.6, label=f"worse: {worse.sum()}")
    same = ~better & ~worse
    points.plot(before[same], after[same], "x", color=INK, markersize=5, label=f"equal: {same.sum()}")
    ends = [min(before.min(), after.min()), max(before.max(), after.max())] if len(before) else [0, 1]
    points.plot(ends, ends, color=GREY, linewidth=1)
    points.set_xlabel(f"{label}, {shortened(names[0])}")
    points.set_ylabel(f"{label}, {shortened(names[1])}")
    points.legend(fontsize=9, loc="lower right")
    difference = after - before
    gains.hist(difference, bins=30, color=BLUE, alpha=0.55)
    gains.axvline(0, color=GREY)
    if len(difference):
        gains.axvline(difference.mean(), color=ORANGE, linestyle="--", label=f"mean {difference.mean():+.4f}")
        gains.legend(fontsize=9, loc="upper right")
    gains.set_xlabel(f"{label}: {shortened(names[1])} minus {shortened(names[0])}")
    gains.set_ylabel("images")
    return figure


@in_style
def histogram(values: ArrayLike, title: str, label: str, unit: str = "images", log: bool = False) -> "Figure":
    """
    Args:
        values (array-like): what is not finite is left out.
        title, label (`str`): of the plot, and of its axis.
        unit (`str`, *optional*, defaults to `"images"`): what is counted.
        log (`bool`, *optional*, defaults to `False`): whether counts are drawn as logarithms.
    """
    figure, (axes,) = make_figure(5, 2.3)
    axes.hist(finite(values), bins=30, color=BLUE, alpha=0.7, log=log)
    axes.set_title(title)
    axes.set_xlabel(label)
    axes.set_ylabel(unit)
    return figure


@in_style
def curves(runs: Mapping[str, Mapping[str, Mapping[str, tuple[list[float], list[float]]]]]) -> "Figure":
    """
    What trainings have logged, a row a run.

    Args:
        runs (`Mapping[str, Mapping]`): by name of the run its panels, see [`~evaluation.curves.panels`].
    """
    titles = list(dict.fromkeys(title for panels in runs.values() for title in panels))
    figure, axes = make_figure(10, 0.3 + 2.5 * len(runs), len(runs), len(titles))
    places = iter(axes)
    for run, panels in runs.items():
        for title in titles:
            own, lines = next(places), panels.get(title, {})
            for number, (line, (steps, values)) in enumerate(lines.items()):
                style = {
                    "linestyle": ("-", "--", ":", "-.")[number % 4],
                    "color": (BLUE, ORANGE, INK, GREY)[number % 4],
                }
                marker = MARKERS[number // 4 % len(MARKERS)] if number >= 4 or len(steps) < 20 else None
                own.plot(steps, values, marker=marker, markersize=3, linewidth=1.3, label=line, **style)
            own.set_title(f"{shortened(run)}: {title}")
            own.set_xlabel("step")
            if len(lines) > 1:
                own.legend(fontsize=7)
            if not lines:
                own.set_axis_off()
    return figure


def finite(values: ArrayLike) -> np.ndarray:
    """Those that are finite numbers."""
    values = np.asarray(values, dtype=np.float64)
    return values[np.isfinite(values)]


def shortened(name: str, length: int = 28) -> str:
    """A name with room beside a plot. (Two dollars would begin a formula.)"""
    name = str(name).replace("$", r"\$")
    return name if len(name) <= length else f"{name[: length - 1]}…"
