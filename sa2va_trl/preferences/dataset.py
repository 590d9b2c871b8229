"""Pairs of a dataset: built, checked and saved."""

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np
import torch
from datasets import Dataset, Features, Image, Value
from datasets.table import embed_table_storage
from huggingface_hub import DatasetCard
from pyarrow.parquet import ParquetWriter
from torch import nn

from ..data.checks import check_dataset
from ..data.columns import PAIR_COLUMNS, mask_mode
from ..data.known import content_key, is_good, is_good_row, remember
from ..data.layout import read_pair, row_layout, worse_pair
from ..data.stored import iter_undecoded, plain_rows
from ..errors import BadRow, DatasetError
from ..features.encoding import RowEncoder, Stored
from ..files import written_beside
from ..mask_logits import mask_probabilities, upsample_mask_logits
from ..media.pictures import decode_image, displayed_size, quiet_pillow
from ..models import Sa2VAProcessor
from ..rewards import get_reward
from ..sampling import MaskSampler
from .pairs import check_gap, encoded_mask, make_pair, sampler_of


logger = logging.getLogger(__name__)


def build_preferences(
    dataset: Dataset,
    model: nn.Module,
    processor: Sa2VAProcessor,
    chosen: str | list[str] = "ground_truth",
    rejected: str | list[str] = "greedy",
    reward: str | dict[str, float] | Callable[..., list[float]] = "dice",
    min_gap: float = 0.15,
    allow_worse: bool = False,
    sampler: MaskSampler | None = None,
    batch_size: int = 4,
    seed: int = 0,
    progress: bool = True,
    features: Stored | None = None,
) -> Dataset:
    """
    Preference pairs of every object of a dataset, at the size of its image.

    Args:
        dataset (`datasets.Dataset`):
            Rows as in [`~data.checks.check_dataset`]. Rows with several objects become one row an object, with its
            phrase; rows without masks are left out.
        model (`Sa2VAForConditionalGeneration` or `PeftModel`): draws the masks; in evaluation mode afterwards.
        processor (`Sa2VAProcessor`): of the model.
        chosen, rejected (`str` or `list[str]`, *optional*):
            How pairs are made, see [`make_pair`]. Of several, all combinations are made.
        reward (*optional*, defaults to `"dice"`): see [`~rewards.get_reward`].
        min_gap (`float`, *optional*, defaults to 0.15):
            Pairs whose rewards differ by less are left out. The default suits Dice and the model's own mask; faults of
            the topology (`"broken_branch"`) hardly change Dice, so give them another reward or a gap near 0.
        allow_worse (`bool`, *optional*, defaults to `False`):
            Keep pairs whose chosen mask is worse than the rejected one by at least `min_gap`, too.
        sampler (`MaskSampler`, *optional*): of the candidates of `"best"` and `"worst"`.
        batch_size (`int`, *optional*, defaults to 4): rows a forward pass.
        seed (`int`, *optional*, defaults to 0): of candidates and corruptions. The global random state is left alone.
        progress (`bool`, *optional*, defaults to `True`): show a bar.
        features (*optional*):
            From [`~evaluation.stored_features`] of the same model and of `one_object_a_row(dataset)`; only the mask
            head runs then.

    Returns:
        `datasets.Dataset`: the columns of the dataset and
            - `chosen_mask` and `rejected_mask` (`Image(mode="L")`, 0 and 255), of the image's size;
            - `chosen_reward` and `rejected_reward` (`float64`);
            - `pair_kind` (`string`): `"ground_truth_vs_greedy"` and so on.
        Where a row gives several, `sample_id` gets `#` and the object's number and `:` and the kind behind it.

    Raises:
        `DatasetError`: bad rows, clips, conversations about several objects, no row with a mask, or no pair with a gap
            of `min_gap`; the message says how many pairs other gaps would give.
        `ValueError`: a bad option, or features of other rows.

    Example:

        ```python
        >>> from sa2va_trl import build_preferences, tiny_sa2va
        >>> from sa2va_trl.data import synthetic_dataset

        >>> model, processor = tiny_sa2va(image_size=128)
        >>> dataset = synthetic_dataset(num_videos=1, frames_per_video=2, size=64)
        >>> pairs = build_preferences(dataset, model, processor, rejected=["greedy", "eroded"], progress=False)
        >>> sorted(set(pairs["pair_kind"]))
        ['ground_truth_vs_eroded', 'ground_truth_vs_greedy']
        >>> pairs[0]["chosen_mask"].size, pairs[0]["chosen_reward"]
        ((64, 64), 1.0)

        ```
    """
    chosen = (chosen,) if isinstance(chosen, str) else tuple(chosen)
    rejected = (rejected,) if isinstance(rejected, str) else tuple(rejected)
    sampler = sampler_of(chosen, rejected, sampler)
    reward = get_reward(reward)
    check_gap(min_gap)
    dataset = plain_rows(dataset)
    check_dataset(dataset, name="dataset")
    dataset = one_object_a_row(dataset)
    if features is not None and len(features[1]) != len(dataset):
        raise ValueError(
            f"features are of {len(features[1])} rows, the dataset has {len(dataset)} objects: compute them of "
            "one_object_a_row(dataset)."
        )
    kinds = [(better, worse) for better in chosen for worse in rejected]

    columns = {name: [] for name in PREFERENCE_FEATURES}
    indices, gaps, counts = [], [], Counter()
    drawn = _draw_candidates(RowEncoder(model, processor, dataset, features, batch_size, progress), sampler, seed)
    for position, (target, candidates) in enumerate(drawn):
        for better, worse in kinds:
            rng = np.random.default_rng([seed, position])
            pair = make_pair(better, worse, target, candidates, reward, min_gap, rng)
            if np.array_equal(pair.chosen, pair.rejected):
                counts["identical"] += 1
                continue
            gaps.append(abs(pair.gap) if allow_worse else pair.gap)
            counts["worse"] += pair.gap < 0
            if gaps[-1] < min_gap:
                continue
            indices.append(position)
            columns["chosen_mask"].append(encoded_mask(pair.chosen))
            columns["rejected_mask"].append(encoded_mask(pair.rejected))
            columns["chosen_reward"].append(pair.chosen_reward)
            columns["rejected_reward"].append(pair.rejected_reward)
            columns["pair_kind"].append(f"{better}_vs_{worse}")
    total = len(dataset) * len(kinds)
    logger.info("%d of %d pairs have a reward gap of at least %g.", len(indices), total, min_gap)
    if counts["worse"]:
        logger.warning(
            "%d of %d pairs have a chosen mask that is worse than the rejected one; %s.",
            counts["worse"],
            total,
            "allow_worse keeps those with a large enough gap" if allow_worse else "they were left out",
        )
    if not indices:
        raise DatasetError(_no_pairs(np.array(gaps), total, counts, min_gap))
    pairs = dataset.remove_columns([name for name in columns if name in dataset.column_names]).select(indices)
    if len(kinds) > 1:
        names = [f"{name}:{kind}" for name, kind in zip(pairs["sample_id"], columns["pair_kind"], strict=True)]
        pairs = _replace_column(pairs, "sample_id", names)
    for name, values in columns.items():
        pairs = pairs.add_column(name, values, feature=PREFERENCE_FEATURES[name])
    return pairs.select_columns([name for name in dataset.column_names if name not in columns] + list(columns))


PREFERENCE_FEATURES = {
    "chosen_mask": Image(mode="L"),
    "rejected_mask": Image(mode="L"),
    "chosen_reward": Value("float64"),
    "rejected_reward": Value("float64"),
    "pair_kind": Value("string"),
}


def one_object_a_row(dataset: Dataset) -> Dataset:
    """
    Split rows with several objects into one row an object, with its phrase.

    Args:
        dataset (`datasets.Dataset`): checked rows, see [`~data.checks.check_dataset`].

    Returns:
        `datasets.Dataset`: the same columns. Rows without masks are left out; `sample_id` gets `#` and the object's
        number behind it where a row is split.

    Raises:
        `DatasetError`: clips, conversations about several objects (all of them are named), or no row with a mask.
    """
    indices, numbers, masks, phrases, bad, start = [], [], [], [], [], 0
    for rows in iter_undecoded(dataset):
        for position, row in enumerate(rows, start):
            own = [row["mask"]] if row.get("mask") is not None else row.get("masks") or []
            reason = None
            if len(row.get("images") or []) > 1 and own:
                reason = "a clip: preferences are over the masks of still images, so give its frames as rows"
            elif len(own) > 1 and row.get("messages"):
                reason = f"one conversation about {len(own)} objects: give each a row of its own"
            if reason is not None:
                bad.append(BadRow(position, row["sample_id"], None, reason))
                continue
            for number in range(len(own)):
                indices.append(position)
                numbers.append(number if len(own) > 1 else None)
                masks.append([own[number]] if row.get("mask") is None else row.get("masks"))
                names = row.get("phrases")
                phrases.append([names[number]] if names and row.get("mask") is None else names)
        start += len(rows)
    if bad:
        raise DatasetError(f"{len(bad)} of {len(dataset)} rows cannot become preference pairs:", bad)
    if not indices:
        raise DatasetError("The dataset has no row with a mask, so there is nothing to prefer.")
    order = dataset.column_names
    if indices != list(range(len(dataset))):
        dataset = dataset.select(indices)
    if any(number is not None for number in numbers):
        names = [
            name if number is None else f"{name}#{number}"
            for name, number in zip(dataset["sample_id"], numbers, strict=True)
        ]
        for name, values in (("masks", masks), ("phrases", phrases), ("sample_id", names)):
            if name in order:
                dataset = _replace_column(dataset, name, values)
    return dataset.select_columns(order)


def _replace_column(dataset: Dataset, name: str, values: list) -> Dataset:
    feature = dataset.features[name]
    return dataset.remove_columns(name).add_column(name, values, feature=feature)


@torch.no_grad()
def _draw_candidates(rows: RowEncoder, sampler: MaskSampler, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """For each row its mask of shape `(H, W)` and its candidates of shape `(K, H, W)`, both uint8 {0, 1}."""
    model = rows.model.eval()
    generator = torch.Generator().manual_seed(seed)
    config, size = model.config, model.config.grounding_config.image_size
    for _, _, targets, encoded in rows.batches("draw candidates"):
        mask_logits = sampler(model, encoded, generator).mask_logits
        for own, target in zip(mask_logits, targets, strict=True):
            maps = upsample_mask_logits(own, size, target.shape[-2:])
            drawn = mask_probabilities(maps, config.mask_temperature) > config.mask_threshold
            yield target[0].numpy(), drawn.byte().cpu().numpy()


def _no_pairs(gaps: np.ndarray, total: int, counts: Counter, min_gap: float) -> str:
    lines = [
        f"None of {total} pairs has a reward gap of at least min_gap={min_gap:g}: {counts['identical']} have two "
        f"equal masks, {counts['worse']} a chosen mask that is worse than the rejected one."
    ]
    if len(gaps) and gaps.max() > 0:
        lines.append(f"The largest gap is {gaps.max():.4g}. Pairs by min_gap:")
        steps = [step for step in (0.5, 0.3, 0.2, 0.15, 0.1, 0.05, 0.02, 0.01, 0.001, 0) if step < min_gap]
        lines += [f"  {step:<6g}{np.count_nonzero(gaps >= step):>8}" for step in steps]
    return "\n".join(lines)


def check_preferences(dataset: Dataset, name: str = "train_dataset", allow_worse: bool = False) -> None:
    """
    Check what pairs have beyond other rows (which [`~data.checks.check_dataset`] checks) before training starts.

    Args:
        dataset (`datasets.Dataset`):
            With `chosen_mask` and `rejected_mask`. A pair is worse than it should be by `chosen_reward` and
            `rejected_reward` where there are these columns, and otherwise by the Dice coefficients of its masks with
            the row's one mask.
        name (`str`, *optional*, defaults to `"train_dataset"`): what the messages call it.
        allow_worse (`bool`, *optional*, defaults to `False`):
            Only warn of pairs whose chosen mask is worse than the rejected one.

    Raises:
        `DatasetError`: columns are missing, masks are unreadable, not binary, of another size than their image or
            equal, or pairs are the wrong way round. `problems` holds every such row.
    """
    if missing := [column for column in PAIR_COLUMNS if not isinstance(dataset.features.get(column), Image)]:
        raise DatasetError(
            f"{name} has no image column {' and '.join(f'`{column}`' for column in missing)}: pairs need both; "
            "sa2va-trl build_preferences makes them from images and masks."
        )
    bad, worse, position = [], [], 0
    with quiet_pillow():
        for table in dataset.with_format("arrow").iter(64):
            for row in table.to_pylist():
                key = _pair_key(row, dataset.features)
                reason, wrong = (None, None) if is_good(key) else _pair_faults(row, dataset.features)
                for problems, fault in ((bad, reason), (worse, wrong)):
                    if fault is not None:
                        problems.append(BadRow(position, row["sample_id"], None, fault))
                if reason is wrong is None:
                    remember(key)
                position += 1
    if bad:
        raise DatasetError(f"{name}: {len(bad)} of {len(dataset)} pairs cannot be used:", bad)
    if worse and not allow_worse:
        raise DatasetError(
            f"{name}: the chosen mask is worse than the rejected one in {len(worse)} of {len(dataset)} pairs. Leave "
            "them out, or allow them with allow_worse:",
            worse,
        )
    if worse:
        logger.warning("%s: %d of %d chosen masks are worse than the rejected ones.", name, len(worse), len(dataset))


def _pair_key(row: dict, features: Features) -> bytes | None:
    """What tells an undecoded row and its pair apart, for [`~data.known.is_good`]."""
    layout = row_layout(row)
    if layout.problems:
        return None
    modes = [mask_mode(features, name) for name in PAIR_COLUMNS]
    rewards = [row.get("chosen_reward"), row.get("rejected_reward")]
    pictures = [*layout.images, *layout.masks, *(row[name] for name in PAIR_COLUMNS)]
    return content_key(pictures, "pair", len(layout.images), modes, rewards)


def _pair_faults(row: dict, features: Features) -> tuple[str | None, str | None]:
    """What makes an undecoded row no pair, and how it is the wrong way round."""
    images = [row["image"]] if row.get("image") is not None else row.get("images") or []
    masks = [row["mask"]] if row.get("mask") is not None else row.get("masks") or []
    if len(images) != 1:
        return f"has {len(images)} images; pairs are of one", None
    try:
        size = displayed_size(images[0]) if is_good_row(row, features) else decode_image(images[0]).size
        pair = read_pair(row, size, features)
    except DatasetError as error:
        return str(error), None
    if not pair:
        return "chosen_mask is missing (None)", None
    if len(masks) != 1:
        return f"has {len(masks)} masks; pairs are of one object", None
    return None, worse_pair(row, pair, masks[0])


def save_preferences(dataset: Dataset, folder: str | os.PathLike, split: str = "train") -> None:
    """
    Write pairs so that `datasets.load_dataset(folder)` opens them: a Parquet file that holds every image, and a
    `README.md`.

    Args:
        dataset (`datasets.Dataset`): from [`build_preferences`].
        folder (`str` or `os.PathLike`): made if it is not there; appears, or changes, only when all is written.
        split (`str`, *optional*, defaults to `"train"`): its name in the folder.
    """
    kinds = Counter(dataset["pair_kind"])
    card = DatasetCard(
        "---\n"
        "tags:\n- sa2va_trl\n- preference\n"
        "---\n\n# Preference pairs of masks\n\n"
        "Each row has an image, its mask, and a `chosen_mask` that is preferred to a `rejected_mask`, with the reward "
        "of both and how they were made (`pair_kind`).\n\n"
        "| `pair_kind` | pairs |\n|---|---|\n"
        + "".join(f"| `{kind}` | {count} |\n" for kind, count in sorted(kinds.items()))
    )
    with written_beside(folder) as temporary:
        # A name that says the split. A card that says it instead would have `datasets` cache all folders of one name,
        # whatever they hold, in one place.
        (temporary / "data").mkdir()
        file = temporary / "data" / f"{split}-00000-of-00001.parquet"
        # `Dataset.to_parquet` would keep only the paths of images that are files.
        with ParquetWriter(file, dataset.features.arrow_schema) as writer:
            for table in dataset.with_format("arrow").iter(64):
                writer.write_table(embed_table_storage(table))
        (temporary / "README.md").write_text(str(card), encoding="utf-8")
