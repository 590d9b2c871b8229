"""Tables of scores on disk, and which model and data they are of."""

import hashlib
import json
import os
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from accelerate.utils import extract_model_from_parallel
from datasets import Dataset
from torch import nn

from ..data.columns import IDENTIFIERS, iter_undecoded
from ..data.prompts import ANSWERS, QUESTIONS
from ..errors import MiningError
from ..features.fingerprint import fingerprint
from ..features.rows import row_keys


METRICS = ("dice", "iou", "precision", "recall", "cldice")
# Of the scores' file and of what the columns mean: raise it when either changes.
FORMAT = 1
_METADATA = b"sa2va_trl.mining"


def fingerprint_of(model: nn.Module, processor, dataset: Dataset) -> dict:
    """
    What scores depend on: every weight of the model, adapters included, the processor, and the rows.

    An adapter that is folded into the weights makes another fingerprint than the same adapter beside them. Under
    ZeRO-3 all processes have to call it together.

    Args:
        model (`Sa2VAForConditionalGeneration` or a `PeftModel` around one): not changed.
        processor (`Sa2VAProcessor`): of the model.
        dataset (`datasets.Dataset`): the rows, in any order: images, masks, texts and identifiers count.

    Returns:
        `dict` of strings and numbers, which JSON can hold.
    """
    prints = fingerprint(extract_model_from_parallel(model), processor, parts=("",))
    # Not the versions of packages: scores stay what they were measured to be.
    kept = {name: prints[name] for name in ("weights", "config", "processor", "dtype")}
    return {"format": FORMAT, "model": kept, "dataset": _dataset_digest(dataset), "rows": len(dataset)}


def _dataset_digest(dataset: Dataset) -> str:
    keys, entries = row_keys(dataset, QUESTIONS[0], ANSWERS[0]), []
    number = 0
    for rows in iter_undecoded(dataset):
        for row in rows:
            found = hashlib.sha256(keys[number].encode())
            masks = [row["mask"]] if row.get("mask") is not None else row.get("masks") or []
            for mask in masks:
                stored = mask["bytes"] if mask["bytes"] is not None else Path(mask["path"]).read_bytes()
                found.update(hashlib.sha256(stored).digest())
            names = [None if row.get(name) is None else str(row[name]) for name in IDENTIFIERS]
            found.update(json.dumps(names).encode())
            entries.append(found.hexdigest())
            number += 1
    return hashlib.sha256("".join(sorted(entries)).encode()).hexdigest()


def save_scores(scores: pd.DataFrame, path: str | os.PathLike, fingerprint: dict) -> None:
    """
    Write scores as Parquet, with the fingerprint in the file's metadata: beside, then renamed.

    Args:
        scores (`pandas.DataFrame`): from [`score_dataset`].
        path (`str` or `os.PathLike`): of the file; its folder is made if it is not there.
        fingerprint (`dict`): from [`fingerprint_of`].
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pandas(scores, preserve_index=False)
    table = table.replace_schema_metadata({**table.schema.metadata, _METADATA: json.dumps(fingerprint).encode()})
    temporary = path.with_name(f".{path.name}.tmp")
    pq.write_table(table, temporary)
    temporary.replace(path)


def read_scores(path: str | os.PathLike, fingerprint: dict | None = None) -> pd.DataFrame:
    """
    Scores from a file of [`save_scores`].

    Args:
        path (`str` or `os.PathLike`): of the file.
        fingerprint (`dict`, *optional*): of the model and the data set that the scores have to be of.

    Returns:
        `pandas.DataFrame`.

    Raises:
        `MiningError`: there is no such file, it holds no scores, or those of another model or data set.
    """
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise MiningError(
            f"{path} cannot be read as scores: {error}. sa2va-trl mine_hard_samples writes them."
        ) from error
    metadata = table.schema.metadata or {}
    if _METADATA not in metadata:
        raise MiningError(f"{path} holds no scores of sa2va-trl mine_hard_samples: it says of no model what it is of.")
    own = json.loads(metadata[_METADATA])
    if fingerprint is not None:
        wrong = []
        if own.get("format") != fingerprint["format"]:
            wrong.append("they were written by another version of this package")
        if own.get("model") != fingerprint["model"]:
            parts = [name for name, part in fingerprint["model"].items() if own.get("model", {}).get(name) != part]
            wrong.append(f"they are of another model (its {', '.join(parts)} differ)")
        if own.get("dataset") != fingerprint["dataset"]:
            rows = f"{own.get('rows')} rows, not {fingerprint['rows']}"
            same = own.get("rows") == fingerprint["rows"]
            wrong.append(f"they are of another data set ({'as many other rows' if same else rows})")
        if wrong:
            raise MiningError(
                f"{path} holds scores that do not fit: {' and '.join(wrong)}. Mine again with this model."
            )
    return table.to_pandas()
