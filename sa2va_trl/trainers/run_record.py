"""What a run writes about itself into each checkpoint, and whether one that goes on from it learns from the same."""

import hashlib
import json
from enum import Enum
from pathlib import Path

from datasets import Dataset, IterableDataset
from transformers import TrainingArguments

from ..errors import DatasetError


# The file, beside those that Trainer writes.
RECORD = "resume.json"
# They are the optimizer's, which is loaded with its own: what the config says of them would have no effect.
OPTIMIZER_OPTIONS = ("optim", "learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon")
# They decide which rows come in which order.
ORDER_OPTIONS = ("dataset_repeats", "train_sampling_strategy", "dataloader_drop_last", "curriculum")


def record_of(args: TrainingArguments, train_batch_size: int, rows: dict) -> dict:
    """
    What a run that goes on from a checkpoint of this one has to share with it.

    Args:
        args (`TrainingArguments`): a config of the mask trainers.
        train_batch_size (`int`): rows of a micro-batch of one process, which `auto_find_batch_size` may have lowered.
        rows (`dict`): from [`rows_digest`].

    Returns:
        `dict` with `batch`, `rows`, `seed` and `options`, which JSON can hold.
    """
    options = {name: getattr(args, name) for name in (*OPTIMIZER_OPTIONS, *ORDER_OPTIONS)}
    return {
        "batch": {
            "per_device_train_batch_size": train_batch_size,
            "processes": args.world_size,
            "gradient_accumulation_steps": args.gradient_accumulation_steps,
        },
        "rows": rows,
        "seed": args.data_seed,
        "options": {name: value.value if isinstance(value, Enum) else value for name, value in options.items()},
    }


def write_record(folder: Path, record: dict) -> None:
    """Put the record of a run into a checkpoint's folder, which may not be there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n")


def check_record(checkpoint: str, own: dict, optimizer: bool, order: bool) -> None:
    """
    Refuse a checkpoint of a run that learned from other rows, in another order or in other batches, or with an
    optimizer that this one has other options for. Of older checkpoints, which have no record, nothing is known.

    Args:
        checkpoint (`str`): a folder.
        own (`dict`): the record of the run that goes on, see [`record_of`].
        optimizer (`bool`): whether the optimizer is gone on with.
        order (`bool`): whether rows that were seen are skipped.

    Raises:
        `ValueError`: naming the options that differ, with both values.
    """
    saved = read_record(Path(checkpoint))
    if not saved:
        return
    names = [name for name in own["options"] if (optimizer if name in OPTIMIZER_OPTIONS else order)]
    # (Earlier versions did not have all of them.)
    changed = [name for name in names if saved["options"].get(name, own["options"][name]) != own["options"][name]]
    if order and saved["seed"] != own["seed"]:
        changed.append("seed")
        saved, own = ({**part, "options": {**part["options"], "seed": part["seed"]}} for part in (saved, own))
    if changed:
        there = ", ".join(f"{name}={saved['options'].get(name)}" for name in changed)
        here = ", ".join(f"{name}={own['options'][name]}" for name in changed)
        raise ValueError(f"{checkpoint} was begun with {there}, and this run has {here}: resume it with the same.")
    if not order:
        return
    check_same_rows(
        checkpoint,
        saved["rows"],
        own["rows"],
        ", or, to go on with others from the beginning of an epoch, with ignore_data_skip=True",
    )
    if own["rows"]["count"] is None:
        same = saved["batch"] == own["batch"]  # a stream is divided in another way
    else:
        same = _step_of(saved) == _step_of(own)
    if not same:
        raise ValueError(
            f"{checkpoint} was trained with {_describe(saved)}, and this run has {_describe(own)}: resume it with as "
            "many, so that it learns from the same rows in the same order (gradient_accumulation_steps makes up for "
            "processes)."
        )


def rows_digest(dataset: Dataset | IterableDataset) -> dict:
    """
    What tells training rows from others.

    Args:
        dataset (`datasets.Dataset` or `datasets.IterableDataset`): training rows.

    Returns:
        `dict`: their number and a digest of their `sample_id` in order, `None` where there are none.
    """
    if not isinstance(dataset, Dataset):
        return {"count": None, "digest": None}
    digest, rows = None, dataset.with_format(None)
    if "sample_id" in rows.column_names:
        digest = hashlib.sha256("\n".join(map(str, rows["sample_id"])).encode()).hexdigest()[:32]
    return {"count": len(rows), "digest": digest}


def check_same_rows(checkpoint: str, saved: dict, own: dict, otherwise: str = "") -> None:
    """
    Refuse a checkpoint of other rows.

    Args:
        checkpoint (`str`): a folder.
        saved, own (`dict`): of the checkpoint and of the run that goes on, from [`rows_digest`].
        otherwise (`str`, *optional*): what else could be done than taking the same data.

    Raises:
        `DatasetError`: they differ.
    """
    if saved != own:
        what = "other rows, or in another order," if saved["count"] == own["count"] else f"{saved['count']} rows"
        raise DatasetError(
            f"{checkpoint} was trained on {what} than train_dataset has ({own['count']}): resume it with the same "
            f"data{otherwise}."
        )


def _step_of(record: dict) -> tuple:
    """Rows of a step, and where incomplete batches are dropped, those of a batch of all processes."""
    batch = record["batch"]
    rows = batch["per_device_train_batch_size"] * batch["processes"]
    dropped = rows if record["options"]["dataloader_drop_last"] else None
    return rows * batch["gradient_accumulation_steps"], dropped


def _describe(record: dict) -> str:
    batch = record["batch"]
    return (
        f"{_step_of(record)[0]} rows a step (per_device_train_batch_size={batch['per_device_train_batch_size']} on "
        f"{batch['processes']} process{'es' * (batch['processes'] > 1)}, "
        f"gradient_accumulation_steps={batch['gradient_accumulation_steps']})"
    )


def read_record(folder: Path) -> dict:
    """
    The record in a checkpoint.

    Args:
        folder (`Path`): of the checkpoint.

    Returns:
        `dict`: from [`record_of`], and `processes`; empty in a checkpoint of an older version, which has none.

    Raises:
        `ValueError`: it is damaged.
    """
    file = folder / RECORD
    if not file.is_file():
        return {}
    try:
        record = json.loads(file.read_text())
        return {**record, "processes": record["batch"]["processes"]}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is damaged ({error!r}): resume from another checkpoint.") from error
