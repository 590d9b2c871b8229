"""Whether a run reads features in place of images: one decision for training and evaluation."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

from ..errors import FeatureError
from ..processes import everywhere, process_rank
from .store import FeatureStore


MODES = ("auto", "on", "off")


class Rows(NamedTuple):
    """
    Rows that may have features.

    Args:
        store (`FeatureStore`): opened.
        keys (`Iterable[str]`): of the rows, each once.
        need (`Callable[[Iterable[str]], int]`): bytes that the features of some keys take.
    """

    store: FeatureStore
    keys: Iterable[str]
    need: Callable[[Iterable[str]], int]


class Decision(NamedTuple):
    """
    Args:
        rows (`Rows` or `None`): what features are read of; `None` where the pixels are.
        missing (`list[str]`): keys of the rows whose features have to be computed first.
        message (`str` or `None`): a sentence to say; `None` where there was nothing to decide.
    """

    rows: Rows | None
    missing: list[str]
    message: str | None


def decide_features(
    mode: str,
    reasons: Callable[[], list[str]],
    find: Callable[[], Rows],
    compute: bool = True,
    why: str = "",
) -> Decision:
    """
    Decide about `cache_features`. All processes call it together.

    Args:
        mode (`str`): `"auto"`, `"on"` or `"off"`.
        reasons (`Callable`): what speaks against features whatever there is of them.
        find (`Callable`): looks at what there is, which takes a digest of the weights; called where no reason speaks.
        compute (`bool`, *optional*, defaults to `True`):
            Whether `"auto"` computes what is missing. Without it, it takes features only if all are there.
        why (`str`, *optional*): why `"auto"` may take features, for the sentence.

    Returns:
        [`Decision`].

    Raises:
        `ValueError`: an unknown mode, or `"on"` and something that needs the pixels.
        `FeatureError`: `"on"` and no room.
    """
    if mode not in MODES:
        raise ValueError(f"cache_features must be one of {', '.join(MODES)}, got {mode!r}.")
    if mode == "off":
        return Decision(None, [], None)
    if against := reasons():
        if mode == "on":
            lines = "\n".join(f"  {reason}" for reason in against)
            raise ValueError(f"cache_features=on is not possible here:\n{lines}")
        return _off("; ".join(against))
    rows = find()
    keys = list(rows.keys)
    store, missing = rows.store, rows.store.missing(keys)
    if mode == "auto" and missing and not compute:
        return _off(f"{store.root} lacks the features of {len(missing)} rows with this model")
    need, total = rows.need(missing), rows.need(keys)
    free = everywhere(store.free() if process_rank() == 0 else 0)[0]
    if need > free:
        message = (
            f"there is no room for features: {need:,} bytes are needed in {store.folder} and {free:,} can be "
            "written; set cache_dir to another disk"
        )
        if mode == "on":
            raise FeatureError(f"cache_features=on: {message}.")
        return _off(message)
    size = f"{total / 2**20:,.1f} MiB for {len(keys)} rows ({total / max(len(keys), 1):,.0f} bytes each)"
    state = "all there" if not missing else f"{len(missing)} to compute, {need / 2**20:,.1f} MiB to write"
    reason = f"{why}; " if why and mode == "auto" else ""
    return Decision(rows, missing, f"cache_features={mode}: on, {reason}{size} in {store.folder}; {state}.")


def _off(reason: str) -> Decision:
    return Decision(None, [], f"cache_features=auto: off, {reason}.")
