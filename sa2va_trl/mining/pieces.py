"""Scoring piece by piece, on several processes, and taken up where a killed run ended."""

import hashlib
import json
import math
import uuid
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from datasets import Dataset
from tqdm.auto import tqdm

from ..data.columns import IDENTIFIERS
from ..data.stored import iter_undecoded
from ..processes import everywhere, raise_first
from .runs import check_frames, on_the_grid, videos
from .score_files import FORMAT, fingerprint_of


# Rows that are scored, and written, as one piece of work; a piece never ends within a video.
_PIECE = 32


def _check_score_options(batch_size: int, threshold: float, tolerance: float) -> None:
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
    if not 0 < threshold < 1:
        raise ValueError(f"threshold must lie between 0 and 1, got {threshold}.")
    if not 0 <= tolerance < 1:
        raise ValueError(f"tolerance is a share of the image's side in [0, 1), got {tolerance}.")


def _score(scorer, model, processor, dataset, table, options, batch_size, seed, prints, partial_dir, progress):
    """The table of scores, piece by piece, on all processes."""
    pieces = _pieces(table)
    partial = None
    if partial_dir is not None:
        prints = fingerprint_of(model, processor, dataset) if prints is None else prints
        content = json.dumps([FORMAT, prints, *options])
        partial = Path(partial_dir) / hashlib.sha256(content.encode()).hexdigest()[:16]
    scores = _partial_scores(partial)
    missing = [piece for piece in pieces if not all(name in scores for name in piece["sample_id"])]
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        found = _score_pieces(scorer, _share(missing), missing, batch_size, seed, partial, progress)
    finally:
        for module, training in modes.items():
            module.training = training
    for share in everywhere(found):
        scores |= share
    names = [name for name in IDENTIFIERS if name in table]
    rest = pd.DataFrame([scores[name] for name in table["sample_id"]])
    return pd.concat([table[names].reset_index(drop=True), rest], axis=1)


def _rows_of(dataset: Dataset) -> pd.DataFrame:
    """Identifiers of all rows, with the number of masks, images and phrases; `row` is the position."""
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


def _score_pieces(scorer, shares, pieces, batch_size, seed, partial, progress) -> dict[str, dict]:
    rank = torch.distributed.get_rank() if len(shares) > 1 else 0
    batches = [
        [(number, start) for number in share for start in range(0, len(pieces[number]), batch_size)]
        for share in shares
    ]
    # As many passes on every process, the last ones for form's sake: ZeRO-3 gathers weights together.
    steps = max(map(len, batches), default=0)
    found, frames, generator = {}, [], None
    for step in tqdm(range(steps), desc="score", disable=not progress or rank != 0):
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


def _neighbours(piece: pd.DataFrame) -> list[tuple[int | None, int | None]]:
    """Of every row the positions of the frames just before and after it, at the video's usual step."""
    near = [[None, None] for _ in range(len(piece))]
    place = dict(zip(piece["sample_id"], range(len(piece)), strict=True))
    for _, rows in videos(piece):
        positions = [place[name] for name in rows["sample_id"]]
        steps = np.diff(on_the_grid(rows["frame_index"], 1))
        for one, other, step in zip(positions[:-1], positions[1:], steps, strict=True):
            if step == 1:
                near[one][1], near[other][0] = other, one
    return [tuple(pair) for pair in near]


def _nanmean(values: list[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return float(np.mean(known)) if known else math.nan


def _keep(folder: Path | None, rows: dict[str, dict]) -> None:
    if folder is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    # A file of its own that appears whole: neither another process nor a kill can spoil it.
    temporary = folder / f".{uuid.uuid4().hex}.tmp"
    temporary.write_text(json.dumps(rows))
    temporary.replace(folder / f"{temporary.name[1:-4]}.json")


def _partial_scores(folder: Path | None) -> dict[str, dict]:
    """What an earlier call has left, the same on all processes."""
    scores = {}
    for file in sorted(folder.glob("*.json")) if folder is not None else ():
        scores |= json.loads(file.read_text())
    return everywhere(scores)[0]
