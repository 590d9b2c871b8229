"""Scoring piece by piece, on several processes, and taken up where a killed run ended."""

import hashlib
import json
import math
import os
import uuid
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np
import pandas as pd
import torch
from datasets import Dataset
from torch import nn
from tqdm.auto import tqdm

from ..data.columns import IDENTIFIERS
from ..data.stored import iter_undecoded
from ..features.encoding import unwrapped
from ..files import whole_file
from ..processes import everywhere, process_rank, raise_first
from .runs import check_frames, on_the_grid, videos
from .score_files import SCORES_FORMAT


# Rows that are scored, and written, as one piece of work; a piece never ends within a video.
_PIECE = 32


def check_score_options(batch_size: int, threshold: float, tolerance: float) -> None:
    """
    Check what scoring with and without labels has in common.

    Args:
        batch_size (`int`): rows a pass, at least 1.
        threshold (`float`): probability above which a pixel belongs to a mask, in (0, 1).
        tolerance (`float`): share of the image's longer side, in [0, 1).

    Raises:
        `ValueError`: an option out of its range.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
    if not 0 < threshold < 1:
        raise ValueError(f"threshold must lie between 0 and 1, got {threshold}.")
    if not 0 <= tolerance < 1:
        raise ValueError(f"tolerance is a share of the image's side in [0, 1), got {tolerance}.")


def stored_temperature(model: nn.Module) -> list[float]:
    """
    What a model's own temperature adds to what scores depend on: nothing where it has none, as in earlier versions,
    whose partial scores stay good.
    """
    temperature = unwrapped(model).config.mask_temperature
    return [] if temperature == 1 else [temperature]


class Scorer(Protocol):
    """
    Rows to values.

    Args:
        model (`nn.Module`): that scores; its mode is left as it was.
        batch_size (`int`): rows in one call.
        progress (`bool`): whether to show a bar.
    """

    model: nn.Module
    batch_size: int
    progress: bool

    def __call__(self, piece: pd.DataFrame, generator: torch.Generator) -> list:
        """What is kept of the rows of a batch until their neighbours are known."""

    def finish(self, piece: pd.DataFrame, frames: list) -> dict[str, dict]:
        """Values of all rows of a piece by their `sample_id`, from what is kept of them."""


def partial_folder(partial_dir: str | os.PathLike | None, prints: Callable[[], dict], options: list) -> Path | None:
    """
    Where the scores of one model, data set and set of options are kept as they come.

    Args:
        partial_dir (`str` or `os.PathLike`, *optional*): of all such folders; `None` keeps nothing.
        prints (`Callable`): makes a [`~mining.score_files.fingerprint_of`]; asked for only if it is needed.
        options (`list`): all that scores depend on beside, which JSON can hold.

    Returns:
        `Path`, or `None`.
    """
    if partial_dir is None:
        return None
    content = json.dumps([SCORES_FORMAT, prints(), *options])
    return Path(partial_dir) / hashlib.sha256(content.encode()).hexdigest()[:16]


def score_pieces(scorer: Scorer, table: pd.DataFrame, seed: int, partial: Path | None) -> pd.DataFrame:
    """
    Score rows piece by piece, on all processes.

    Args:
        scorer (`Scorer`): of the rows.
        table (`pandas.DataFrame`): the rows, from [`rows_of`].
        seed (`int`): of the random draws of every piece.
        partial (`Path`, *optional*): from [`partial_folder`].

    Returns:
        `pandas.DataFrame`: identifiers and values, one row a row of `table`, in its order.
    """
    pieces = _pieces(table)
    scores = _partial_scores(partial)
    missing = [piece for piece in pieces if not all(name in scores for name in piece["sample_id"])]
    modes = {module: module.training for module in scorer.model.modules()}
    scorer.model.eval()
    try:
        found = _score_missing(scorer, _share(missing), missing, seed, partial)
    finally:
        for module, training in modes.items():
            module.training = training
    for share in everywhere(found):
        scores |= share
    names = [name for name in IDENTIFIERS if name in table]
    rest = pd.DataFrame([scores[name] for name in table["sample_id"]])
    return pd.concat([table[names].reset_index(drop=True), rest], axis=1)


def rows_of(dataset: Dataset) -> pd.DataFrame:
    """
    What is known of rows before any is decoded.

    Args:
        dataset (`datasets.Dataset`): checked rows.

    Returns:
        `pandas.DataFrame`: one row a row: its identifiers, the numbers of its `masks`, `images` and `phrases`, and its
        position `row`.

    Raises:
        `MiningError`: videos without an order, see [`~mining.runs.check_frames`].
    """
    names = [name for name in IDENTIFIERS if name in dataset.column_names]
    found = {name: [] for name in (*names, "masks", "images", "phrases")}
    for rows in iter_undecoded(dataset):
        for row in rows:
            for name in names:
                found[name].append(row[name])
            for one, many in (("mask", "masks"), ("image", "images"), ("phrase", "phrases")):
                found[many].append(1 if row.get(one) is not None else len(row.get(many) or ()))
    table = pd.DataFrame(found).assign(row=np.arange(len(dataset)))
    check_frames(table)
    return table


def _pieces(table: pd.DataFrame) -> list[pd.DataFrame]:
    """Rows that are scored together: whole videos in the order of their frames, then rows without a video."""
    groups = [rows for _, rows in videos(table)]
    loose = table[table["video_id"].isna()] if "video_id" in table else table
    groups += [loose.iloc[[position]] for position in range(len(loose))]
    pieces, waiting = [], []
    for group in groups:
        waiting.append(group)
        if sum(map(len, waiting)) >= _PIECE:
            pieces.append(pd.concat(waiting))
            waiting = []
    return [*pieces, pd.concat(waiting)] if waiting else pieces


def _share(pieces: list[pd.DataFrame]) -> list[list[int]]:
    """Numbers of the pieces that each process scores: always the next largest to the one with least to do."""
    shares = [[] for _ in everywhere(None)]
    load = [0] * len(shares)
    for number in sorted(range(len(pieces)), key=lambda number: -len(pieces[number])):
        target = load.index(min(load))
        shares[target].append(number)
        load[target] += len(pieces[number])
    return shares


def _score_missing(
    scorer: Scorer, shares: list[list[int]], pieces: list[pd.DataFrame], seed: int, partial: Path | None
) -> dict[str, dict]:
    """This process's share of the pieces."""
    rank, batch_size = process_rank(), scorer.batch_size
    batches = [
        [(number, start) for number in share for start in range(0, len(pieces[number]), batch_size)]
        for share in shares
    ]
    # As many passes on every process, the last ones for form's sake: ZeRO-3 gathers weights together.
    steps = max(map(len, batches), default=0)
    found, frames, generator = {}, [], None
    for step in tqdm(range(steps), desc="score", disable=not scorer.progress or rank != 0):
        idle = step >= len(batches[rank])
        number, start = (0, 0) if idle else batches[rank][step]
        piece, failure = pieces[number], None
        if start == 0:
            # Of its own for each piece, so that neither the number of processes nor a restart changes a candidate.
            generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}:{piece['sample_id'].iloc[0]}".encode()))
        try:
            scored = scorer(piece.iloc[start : start + batch_size], generator)
            if not idle:
                frames = scored if start == 0 else frames + scored
                if start + batch_size >= len(piece):
                    rows = scorer.finish(piece, frames)
                    found |= rows
                    _keep(partial, rows)
        except Exception as error:  # the other processes have to hear of it
            failure = error
        raise_first(failure)
    return found


def neighbours(piece: pd.DataFrame) -> list[tuple[int | None, int | None]]:
    """
    Args:
        piece (`pandas.DataFrame`): rows of whole videos, and rows without one.

    Returns:
        `list[tuple]`: of every row the positions of the frames just before and after it, at the video's usual step;
        `None` where there is none.
    """
    near = [[None, None] for _ in range(len(piece))]
    place = dict(zip(piece["sample_id"], range(len(piece)), strict=True))
    for _, rows in videos(piece):
        positions = [place[name] for name in rows["sample_id"]]
        steps = np.diff(on_the_grid(rows["frame_index"], 1))
        for one, other, step in zip(positions[:-1], positions[1:], steps, strict=True):
            if step == 1:
                near[one][1], near[other][0] = other, one
    return [tuple(pair) for pair in near]


def nanmean(values: list[float]) -> float:
    """The mean of those values that are known; NaN where none is."""
    known = [value for value in values if not math.isnan(value)]
    return float(np.mean(known)) if known else math.nan


def _keep(folder: Path | None, rows: dict[str, dict]) -> None:
    if folder is None:
        return
    # A file of its own that appears whole: neither another process nor a kill can spoil it.
    with whole_file(folder / f"{uuid.uuid4().hex}.json") as temporary:
        temporary.write_text(json.dumps(rows))


def _partial_scores(folder: Path | None) -> dict[str, dict]:
    """What an earlier call has left, the same on all processes."""
    scores = {}
    for file in sorted(folder.glob("*.json")) if folder is not None else ():
        scores |= json.loads(file.read_text())
    return everywhere(scores)[0]
