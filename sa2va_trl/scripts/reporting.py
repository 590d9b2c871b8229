"""The page that a task leaves, where what it takes to draw one is installed."""

import hashlib
import json
import platform
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pandas as pd

from ..errors import MiningError
from ..evaluation.curves import read_log
from ..evaluation.gallery import Picture, read_changed
from ..evaluation.page import HOW, PICTURES, REPORT, Section, write_page
from ..evaluation.report import BY, HARD_BELOW, HardRuns, about_section, training_report
from ..files import replaced_together, write_json
from ..mining.runs import temporal_clusters, videos
from .screen import say


# What may lie beside a page.
FILES = ("metrics_distribution.png", "training_curves.png")
NEEDED = "matplotlib"
# Of every sample, where `evaluate` is asked to keep them, and the threshold and post-processing of its masks.
SAMPLES, KEPT_AT = "sample_pictures", "threshold.json"
# What a page says of its gallery where any run has post-processing.
RAW = "the gallery shows masks as they are before post-processing"
MOST_CHANGED = 12
PACKAGES = ("sa2va_trl", "torch", "transformers", "trl", "peft", "datasets", "numpy", "pandas")


def can_report() -> bool:
    """Whether a page can be drawn; otherwise says how to make it so."""
    if find_spec(NEEDED) is None:
        say(f"No {REPORT} is written: it needs {NEEDED}, pip install 'sa2va_trl[report]'.")
        return False
    return True


def check_report_pictures(how: str) -> None:
    """
    Raises:
        `ValueError`: there is no such way to keep the pictures of a report.
    """
    if how not in HOW:
        raise ValueError(f"report_pictures must be {' or '.join(HOW)}, got {how!r}.")


def hard_runs(samples: pd.DataFrame) -> HardRuns:
    """Runs of frames of a Dice below 0.75: by `video_id` the first and last index of each."""
    if BY not in samples:
        return {}
    try:
        clips = list(videos(samples))
    except MiningError:  # frames without a place in their clip: there is no course to show
        return {}
    found = {}
    for video, frames in clips:
        index = frames["frame_index"].to_list()
        runs = temporal_clusters(frames[BY], hard_below=HARD_BELOW)
        found[video] = [(index[first], index[last]) for first, last in runs]
    return found


def logs_of(folders: Mapping[str, str | Path | None]) -> dict[str, list[dict]]:
    """What trainings have logged, by name, where `trainer_state.json` is in their folder."""
    found = {name: read_log(folder) for name, folder in folders.items() if folder is not None}
    return {name: log for name, log in found.items() if log is not None}


def about(options: Iterable[Any], files: Sequence[Path] = (), digests: Mapping[str, str] | None = None) -> dict:
    """
    How a result came about.

    Args:
        options (iterable of dataclasses): of the task.
        files (`Sequence[Path]`, *optional*): whose SHA-256 is shown; those that are not there are left out.
        digests (`Mapping[str, str]`, *optional*): others, by name.

    Returns:
        `dict`: for [`~evaluation.report.about_section`].
    """
    own = {name: value for entry in options for name, value in asdict(entry).items() if value not in (None, {}, [])}
    packages = {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}}
    sums = {f"{file.name} (SHA-256)": sha256(file) for file in files if file.is_file()}
    return {"Options": own, "Versions": packages, "Digests": {**(digests or {}), **sums}}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # of a clone that is not installed
        return "not installed"


def sha256(file: Path) -> str:
    """Of the bytes of a file."""
    found = hashlib.sha256()
    with file.open("rb") as opened:
        while block := opened.read(2**20):
            found.update(block)
    return found.hexdigest()


def save_report(
    folder: str | Path,
    title: str,
    subtitle: str,
    report: tuple[list[Section], dict[str, bytes]],
    about: Mapping[str, Mapping[str, Any]],
    logs: Mapping[str, list[dict]] | None = None,
    pictures: str = "embedded",
) -> None:
    """
    Write the page of a task, whose earlier one has been removed.

    Args:
        folder (`str` or `Path`): of the task's results.
        title, subtitle (`str`): of the page.
        report (`tuple[list[Section], dict[str, bytes]]`): sections, and files beside the page.
        about (`Mapping`): from [`about`].
        logs (`Mapping[str, list[dict]]`, *optional*): from [`logs_of`].
        pictures (`str`, *optional*, defaults to `"embedded"`): or `"beside"`, see [`~evaluation.page.write_page`].
    """
    sections, files = report
    trained, curves = training_report(logs or {})
    write_page(folder, title, [*sections, *trained, about_section(about)], subtitle, pictures, {**files, **curves})


def move_pictures(folder: Path, pictures: Path, threshold: float, postprocessing: Mapping[str, float | int]) -> None:
    """
    Put pictures of every sample into the folder of an evaluation, in place of an earlier one's.

    Args:
        folder (`Path`): of the evaluation.
        pictures (`Path`): on the same disk, with what [`~evaluation.gallery.save_picture`] has written; it is moved.
        threshold (`float`): that was evaluated at.
        postprocessing (`Mapping[str, float | int]`): likewise, from [`~postprocessing.Postprocessing.to_dict`].
    """
    write_json(pictures / KEPT_AT, {"threshold": threshold, "postprocessing": dict(postprocessing)})
    with replaced_together(folder, [SAMPLES]) as new:
        pictures.rename(new / SAMPLES)


def kept_at(pictures: Path) -> tuple[float, bool]:
    """
    Args:
        pictures (`Path`): what [`move_pictures`] has left.

    Returns:
        The threshold that was evaluated at, and whether masks were post-processed, which the pictures do not show.
    """
    found = json.loads((pictures / KEPT_AT).read_text())
    if not isinstance(found, dict):  # of an earlier version, which wrote the threshold alone
        found = {"threshold": found, "postprocessing": {}}
    return found["threshold"], bool(found["postprocessing"])


def changed_pictures(
    folders: tuple[Path, Path], names: tuple[str, str], before: pd.Series, after: pd.Series, lower: bool = False
) -> tuple[dict[str, list[Picture]], float, bool]:
    """
    Pictures of what changed most between two evaluations that have kept them.

    Args:
        folders (`tuple[Path, Path]`): of the evaluations.
        names (`tuple[str, str]`): what they are called.
        before, after (`pandas.Series`): a metric of each, by `sample_id`.
        lower (`bool`, *optional*, defaults to `False`): whether lower is better.

    Returns:
        The pictures, by title, the threshold that they were evaluated at, and whether either evaluation has
        post-processed its masks. No pictures where either has kept none, or the thresholds differ.
    """
    places = tuple(Path(folder) / SAMPLES for folder in folders)
    if not all((place / KEPT_AT).is_file() for place in places):
        return {}, 0.5, False
    thresholds, processed = zip(*map(kept_at, places), strict=True)
    if thresholds[0] != thresholds[1]:
        say(f"{' and '.join(names)} were evaluated at thresholds {list(thresholds)}: what changed most is not shown.")
        return {}, 0.5, False
    gain = (before - after if lower else after - before).dropna().sort_values(kind="stable")
    found = {}
    for title, order in {"Most improved": gain[::-1], "Most worsened": gain}.items():
        chosen = order[order > 0] if title == "Most improved" else order[order < 0]
        pictures = []
        for name in chosen.index[:MOST_CHANGED]:
            facts = {names[0]: float(before[name]), names[1]: float(after[name])}
            pictures.append(read_changed(places, name, facts))
        found[title] = [picture for picture in pictures if picture is not None]
    return found, thresholds[0], any(processed)


def remove_report(folder: str | Path) -> None:
    """Remove what an earlier call has left of a report, which would be taken for this one's."""
    for name in (REPORT, *FILES):
        (Path(folder) / name).unlink(missing_ok=True)
    shutil.rmtree(Path(folder) / PICTURES, ignore_errors=True)
