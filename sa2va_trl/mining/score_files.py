"""Tables of scores on disk, and which model and data they are of."""

import hashlib
import json
import os

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset
from torch import nn

from ..data.prompts import ANSWERS
from ..errors import MiningError
from ..features.encoding import unwrapped
from ..features.fingerprint import fingerprint
from ..features.rows import row_facts
from ..files import whole_file
from ..models import Sa2VAProcessor
from ..questions import question_of
from .hardness import record, with_record


SCORE_METRICS = ("dice", "iou", "precision", "recall", "cldice")
# Of the scores' file and of what the columns mean: raise it when either changes.
SCORES_FORMAT = 1
_METADATA = b"sa2va_trl.mining"


def fingerprint_of(model: nn.Module, processor: Sa2VAProcessor, dataset: Dataset) -> dict:
    """
    What scores depend on: every weight of the model, adapters included, the processor, the rows, and what is asked.

    An adapter that is folded into the weights makes another fingerprint than the same adapter beside them. Under
    ZeRO-3 all processes have to call it together.

    Args:
        model (`Sa2VAForConditionalGeneration` or a `PeftModel` around one): not changed.
        processor (`Sa2VAProcessor`): of the model.
        dataset (`datasets.Dataset`): the rows, in any order: images, masks, texts and identifiers count.

    Returns:
        `dict` of strings and numbers, which JSON can hold.
    """
    prints = fingerprint(unwrapped(model), processor, parts=("",))
    # Not the versions of packages: scores stay what they were measured to be.
    kept = {name: prints[name] for name in ("weights", "config", "processor", "dtype")}
    digest = _dataset_digest(dataset, question_of(unwrapped(model).config))
    return {"format": SCORES_FORMAT, "model": kept, "dataset": digest, "rows": len(dataset)}


def _dataset_digest(dataset: Dataset, question: str) -> str:
    facts = row_facts(dataset, question, ANSWERS[0], digests=True)
    return hashlib.sha256("".join(sorted(row.digest for row in facts)).encode()).hexdigest()


def save_scores(scores: pd.DataFrame, path: str | os.PathLike, fingerprint: dict) -> None:
    """
    Write scores as Parquet, with the fingerprint and what was decided in the file's metadata: beside, then renamed.

    Args:
        scores (`pandas.DataFrame`): from [`~mining.scoring.score_dataset`] or [`~mining.selection.mine`].
        path (`str` or `os.PathLike`): of the file; its folder is made if it is not there.
        fingerprint (`dict`): from [`fingerprint_of`].
    """
    about = fingerprint if record(scores) is None else {**fingerprint, "hard": record(scores)}
    table = pa.Table.from_pandas(scores, preserve_index=False)
    table = table.replace_schema_metadata({**table.schema.metadata, _METADATA: json.dumps(about).encode()})
    with whole_file(path) as temporary:
        pq.write_table(table, temporary)


def read_scores(path: str | os.PathLike, fingerprint: dict | None = None) -> pd.DataFrame:
    """
    Scores from a file of [`save_scores`].

    Args:
        path (`str` or `os.PathLike`): of the file.
        fingerprint (`dict`, *optional*): of the model and the data set that the scores have to be of.

    Returns:
        `pandas.DataFrame`; of a mined file it carries what was decided, see [`~mining.hardness.decided`].

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
    return with_record(table.to_pandas(), own.get("hard"))


def scores_for(
    scores: pd.DataFrame | str | os.PathLike, model: nn.Module, processor: Sa2VAProcessor, dataset: Dataset
) -> pd.DataFrame:
    """
    Scores as a trainer is given them.

    Args:
        scores (`pandas.DataFrame`, `str` or `os.PathLike`): a table, or a file of [`save_scores`].
        model, processor, dataset: what those of a file have to be of, as in [`fingerprint_of`].

    Returns:
        `pandas.DataFrame`: the table as it is, or as [`read_scores`] reads it.

    Raises:
        `MiningError`: as [`read_scores`].
    """
    if isinstance(scores, pd.DataFrame):
        return scores
    return read_scores(scores, fingerprint_of(model, processor, dataset))
