"""An evaluation under way: what is scored is kept on disk, for all processes and for a call that takes it up."""

import base64
import json
import math
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path

import numpy as np
import pandas as pd
from datasets import Dataset

from ..errors import DatasetError
from ..files import whole_file
from ..postprocessing import IDENTITY, Postprocessing
from ..processes import everywhere, process_rank
from .gallery import KeptExtremes, Picture
from .overlays import KeptMasks
from .workers import scored


class Parts:
    """
    Rows that are scored together, and a file for each such part, which appears whole. No row is held in memory, so any
    number of rows takes as much.

    Args:
        folder (`Path`):
            Of the files. All processes share it, and whoever gives it sees to it that no evaluation of another model,
            data set or set of options is given the same one, such as by [`~mining.pieces.partial_folder`].
        dataset (`datasets.Dataset`): all rows.
        size (`int`): rows of a part: those of a forward pass, so that none depends on how parts are shared out.
    """

    def __init__(self, folder: Path, dataset: Dataset, size: int):
        self.folder, self.dataset, self.size = folder, dataset, size
        folder.mkdir(parents=True, exist_ok=True)
        self.count = math.ceil(len(dataset) / size)
        self.done: set[int] = set()
        #: Of those that this process has to score, the numbers; from [`share`].
        self.own: list[int] = []

    def share(self) -> list[int]:
        """
        What this process has to score. All have to call it together, before any of them scores.

        Returns:
            `list[int]`: positions of rows that no earlier call has scored, in their order.
        """
        self.done = everywhere({int(file.stem) for file in self.folder.glob("*.json")})[0]
        missing = [part for part in range(self.count) if part not in self.done]
        self.own = missing[process_rank() :: len(everywhere(None))]
        return [
            row for part in self.own for row in range(part * self.size, min((part + 1) * self.size, len(self.dataset)))
        ]

    @property
    def rows_done(self) -> int:
        """How many rows the parts of an earlier call have."""
        return sum(min(self.size, len(self.dataset) - part * self.size) for part in self.done)

    def score(
        self,
        predictions: Iterator[tuple[dict, np.ndarray]],
        threshold: float,
        extremes: KeptExtremes,
        metrics: str = "overlap",
        workers: int = 0,
        on_row: Callable[[dict, np.ndarray, dict], None] = lambda *_: None,
        postprocessing: Postprocessing = IDENTITY,
        keep_masks: bool = True,
    ) -> None:
        """
        Score and keep rows.

        Args:
            predictions (iterator): of the rows that [`share`] has named, in this order; those without masks left out.
            threshold (`float`): probability above which a pixel belongs to a mask.
            extremes ([`KeptExtremes`]): which of them are to be shown.
            metrics, workers, on_row, postprocessing: as of [`~evaluation.evaluate`].
            keep_masks (`bool`, *optional*, defaults to `True`): for [`kept`], where any are to be drawn.
        """
        names = self.dataset["sample_id"]
        part_of = {names[row]: row // self.size for row in range(len(names))}
        found = scored(predictions, threshold, metrics, workers, postprocessing)
        for part, rows in groupby(found, key=lambda entry: part_of[entry[0]["sample_id"]]):
            entries = []
            for row, probabilities, scores in rows:
                entry, picture = {"scores": scores}, extremes(row, probabilities, scores)
                on_row(row, probabilities, scores)
                if keep_masks:
                    kept = KeptMasks(threshold, postprocessing)
                    kept(row, probabilities, scores)
                    entry["masks"] = kept.bits[row["sample_id"]]
                entries.append(entry if picture is None else {**entry, "picture": picture._asdict()})
            self.keep(part, entries)
        for part in self.own:  # none of whose rows has a mask
            if not self._file(part).exists():
                self.keep(part, [])

    def _file(self, part: int) -> Path:
        return self.folder / f"{part:08d}.json"

    def keep(self, part: int, entries: list[dict]) -> None:
        """
        Keep a part, which is done then.

        Args:
            part (`int`): its number.
            entries (`list[dict]`): of its rows, which JSON can hold.
        """
        with whole_file(self._file(part)) as temporary:
            temporary.write_text(json.dumps(entries, default=_plain))

    def read(self) -> Iterator[dict]:
        """
        `scores` and, of some, `masks` and `picture` of every row, in the order of the data set.

        Raises:
            `DatasetError`: a part is not there, as where processes do not share the folder.
        """
        if missing := [part for part in range(self.count) if not self._file(part).exists()]:
            raise DatasetError(
                f"{self.folder} lacks {len(missing)} of {self.count} parts of the rows that were scored just now. "
                "Is it shared by all processes?"
            )
        for part in range(self.count):
            yield from json.loads(self._file(part).read_text())

    def remove(self) -> None:
        """Remove the parts, and nothing else that the folder holds."""
        for part in range(self.count):
            self._file(part).unlink(missing_ok=True)

    def samples(self) -> pd.DataFrame:
        """
        The table of scores, as [`~evaluation.evaluate`] has it.

        Raises:
            `DatasetError`: no row has a mask.
        """
        samples = [entry["scores"] for entry in self.read()]
        if not samples:
            raise DatasetError("The dataset has no row with a mask, so there is nothing to score.")
        return pd.DataFrame(samples)

    def kept(
        self, samples: pd.DataFrame, threshold: float, count: int, by: str = "dice"
    ) -> tuple[KeptMasks, KeptExtremes]:
        """
        What is to be drawn, of all processes.

        Args:
            samples (`pandas.DataFrame`): those whose masks are needed.
            threshold (`float`): that they were scored at.
            count (`int`): pictures of the worst, and of the best; as many as `extremes` of [`score`] has kept.
            by (`str`, *optional*, defaults to `"dice"`): score that these were judged by.

        Returns:
            The masks of `samples`, and the worst and the best of all.
        """
        masks, extremes, wanted = KeptMasks(threshold), KeptExtremes(count, by), set(samples["sample_id"])
        for entry in self.read():
            if (name := entry["scores"]["sample_id"]) in wanted:
                masks.bits[name] = base64.b85decode(entry["masks"])
            if "picture" in entry:
                own = entry["picture"]
                content = {name: base64.b85decode(own[name]) for name in ("image", "maps")}
                extremes.add(Picture(**{**own, **content, "size": tuple(own["size"])}))
        return masks, extremes


def _plain(value: np.generic | bytes) -> float | int | bool | str:
    """What JSON can hold in place of a value that it cannot."""
    return base64.b85encode(value).decode() if isinstance(value, bytes) else value.item()
