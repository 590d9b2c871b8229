"""The columns of a dataset: which there may be, and what their features say."""

from typing import Any

from datasets import Features, Image, List, Value
from datasets.features import LargeList

from .._moved import looked_up
from ..errors import DatasetError
from ..tokens import SEG_TOKEN


DEFAULT_PHRASE = "blood vessel"
IMAGE_COLUMNS = ("image", "images")
PHRASE_COLUMNS = ("phrase", "phrases")
#: Columns that say which rows belong together, from the widest group to the single row.
GROUP_COLUMNS = ("patient_id", "video_id", "sample_id")
#: A preferred and a rejected mask of a row's one object.
PAIR_COLUMNS = ("chosen_mask", "rejected_mask")
#: Regions of a row's image, which its text speaks of as region1, region2 and so on.
REGIONS = "regions"
# What tables of scores say a row is.
IDENTIFIERS = ("sample_id", "patient_id", "video_id", "frame_index")
#: What every reader of `sa2va_trl.data.readers` returns.
FEATURES = Features(
    {
        "image": Image(),
        "masks": List(Image(mode="L")),
        "phrases": List(Value("string")),
        "sample_id": Value("string"),
    }
)
ACCEPTED_COLUMNS = (
    "`sample_id` with one of: (a) `image` (or `images`, a clip), `mask` and `phrase`; (b) `image` (or `images`), "
    f"`masks` and `phrases`; (c) `messages`, alone or with `image`/`images` and one mask for every {SEG_TOKEN}"
)


def is_image_list(feature: Any) -> bool:
    """Whether a feature is a list of images."""
    return isinstance(feature, List | LargeList) and isinstance(feature.feature, Image)


def is_box_list(feature: Any) -> bool:
    """Whether a feature is a list of lists of numbers."""
    inner = feature.feature if isinstance(feature, List | LargeList) else None
    number = inner.feature if isinstance(inner, List | LargeList) else None
    return isinstance(number, Value) and number.dtype.startswith(("int", "uint", "float"))


def mask_mode(features: Features | None, column: str) -> str | None:
    """The mode that a column of masks (or one mask) is converted to when a row is read, where its feature has one."""
    feature = None if features is None else features.get(column)
    return getattr(feature.feature if is_image_list(feature) else feature, "mode", None)


def check_columns(features: Features, name: str) -> None:
    """
    Refuse columns that no style of `ACCEPTED_COLUMNS` can be read from.

    Args:
        features (`datasets.Features`): of the dataset.
        name (`str`): what the message calls it.

    Raises:
        `DatasetError`: naming what is missing, what there is and what is accepted.
    """
    names = set(features)
    missing = [] if "sample_id" in names else ["`sample_id`"]
    if "messages" not in names and not ({"mask", "phrase"} <= names or {"masks", "phrases"} <= names):
        partners = {"mask": "phrase", "phrase": "mask", "masks": "phrases", "phrases": "masks"}
        halves = [f"`{partner}` (goes with `{half}`)" for half, partner in partners.items() if half in names]
        missing += halves or ["`masks` and `phrases` (or `mask` and `phrase`, or `messages`)"]
    if "messages" not in names and not names & set(IMAGE_COLUMNS):
        missing.append("`image` (or `images`)")
    if missing:
        one = names & {"mask", "masks"} and not names & {*PHRASE_COLUMNS, "messages"}
        hint = ' One phrase for all rows: --phrase "blood vessel", or load_dataset_dict(..., phrase="blood vessel").'
        raise DatasetError(
            f"{name} has no usable columns: missing {', '.join(missing)}. It has: {', '.join(features) or 'none'}. "
            f"Accepted: {ACCEPTED_COLUMNS}.{hint if one else ''}"
        )


def check_features(features: Features, name: str) -> None:
    """
    As [`check_columns`], and refuse columns of images and masks that are of another type.

    Args:
        features (`datasets.Features`): of the dataset.
        name (`str`): what the message calls it.

    Raises:
        `DatasetError`: naming the column and how to cast it.
    """
    check_columns(features, name)
    for column in ("image", "mask"):
        if column in features and not isinstance(features[column], Image):
            raise DatasetError(
                f"{name}: column `{column}` is {features[column]}, not an image; "
                f'cast it: dataset.cast_column("{column}", datasets.Image())'
            )
    for column in ("images", "masks"):
        if column in features and not is_image_list(features[column]):
            raise DatasetError(
                f"{name}: column `{column}` is {features[column]}, not a list of images; "
                f'cast it: dataset.cast_column("{column}", datasets.List(datasets.Image()))'
            )
    if REGIONS in features and not (is_image_list(features[REGIONS]) or is_box_list(features[REGIONS])):
        raise DatasetError(
            f"{name}: column `regions` is {features[REGIONS]}, neither a list of images (masks) nor a list of boxes; "
            'cast it: dataset.cast_column("regions", datasets.List(datasets.Image())), or for boxes '
            'datasets.List(datasets.List(datasets.Value("float32")))'
        )


# What could be imported from here before it had a file of its own.
_MOVED = {
    "BadRow": "errors",
    "mask_values": "media.masks",
    **dict.fromkeys(("MAX_PIXELS", "decode_image", "open_image", "quiet_pillow", "too_deep"), "media.pictures"),
    "decode_mask": "data.masks",
    "check_dataset": "data.checks",
    **dict.fromkeys(("bad_row", "normalize_row", "read_masks", "read_pair", "worse_pair"), "data.layout"),
    **dict.fromkeys(("iter_undecoded", "plain_rows"), "data.stored"),
    "resolve_inside": "data.readers.folders",
}
__getattr__ = looked_up(__name__, _MOVED)
