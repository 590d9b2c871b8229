"""What is hard, and what may be a faulty label."""

import math

import numpy as np
import pandas as pd

from ..errors import MiningError
from .hardness import HARD_BELOW, check_hardness, takes_threshold, what_is_hard, with_record
from .runs import check_options, on_the_grid, temporal_clusters, videos


#: Lower bounds of the buckets, each of which ends just before the next: [0, 0.5), [0.5, 0.65), [0.65, 0.75) and the
#: rest, [0.75, 1].
BUCKETS = (0.0, 0.5, 0.65, 0.75)
#: What a measurement says of a run, and which values of it make a frame hard: low (-1) or high (1) ones.
CAUSES = {
    "contrast": ("faint contrast", -1),
    "area": ("little filling", -1),
    "sharpness": ("blur", -1),
    "motion": ("motion", 1),
    "thickness": ("thin vessels", -1),
    "border_distance": ("near the border", -1),
}
UNCLEAR = "unclear"
#: With its neighbours, from which on a mask agrees with them.
AGREEMENT = 0.8


@takes_threshold
def hard_limit(
    scores: pd.DataFrame, hard_below: float | None = None, worst: float | None = None, by: str = "dice"
) -> float:
    """
    The score below which samples are hard.

    Args:
        scores (`pandas.DataFrame`): from [`score_dataset`].
        hard_below (`float`, *optional*):
            The limit itself; 0.75 where neither it nor `worst` is given. (`threshold=` means it too.)
        worst (`float`, *optional*):
            In its place, the share of the samples that is to be hard, in (0, 1). Samples that tie with the last of
            them are hard, too.
        by (`str`, *optional*, defaults to `"dice"`): column to judge by; higher is easier, NaN is never hard.

    Returns:
        `float`.

    Raises:
        `MiningError`: no sample, or every sample, would be hard; the message says which limits select what.
        `ValueError`: both options, or one out of its range.
    """
    check_hardness(hard_below, worst)
    if by not in scores:
        raise ValueError(f"by={by!r}: the scores have no such column, only {', '.join(scores)}.")
    values = np.sort(scores[by].dropna().to_numpy(dtype=np.float64))
    if not len(values):
        raise MiningError(f"No sample has a {by}, so none can be hard.")
    if worst is not None:
        count = round(worst * len(values))
        if count == 0:
            raise MiningError(
                f"worst={worst:g} of {len(values)} samples is none: give {1 / len(values):.2g}, or hard_below."
            )
        limit, option = float(np.nextafter(values[count - 1], np.inf)), f"worst={worst:g}"
    else:
        limit = HARD_BELOW if hard_below is None else hard_below
        option = f"hard_below={limit:g}"
    hard = int(np.count_nonzero(values < limit))
    if 0 < hard < len(values):
        return limit
    what = "selects none" if hard == 0 else "selects all"
    raise MiningError(f"{option} {what} of {len(values)} samples. {_what_would(values, by)}")


hard_threshold = hard_limit  # its earlier name


def _what_would(values: np.ndarray, by: str) -> str:
    """Which limits select some samples and not all; `values` are sorted."""
    found = f"Their {by} goes from {values[0]:.4f} to {values[-1]:.4f}."
    if values[0] == values[-1]:
        return f"{found} As it is the same everywhere, no limit tells hard from easy."
    offers = {}
    for share in (0.05, 0.1, 0.2, 0.3, 0.5):
        # Rounded up, so that the value as it is printed does select its sample.
        value = math.floor(np.quantile(values, share) * 1e4 + 1) / 1e4
        selected = int(np.count_nonzero(values < value))
        if 0 < selected < len(values):
            offers[selected] = f"{value:.4f} selects {selected}"
    if not offers:
        offers[1] = f"{float(np.nextafter(values[0], np.inf))!r} selects {np.count_nonzero(values == values[0])}"
    return f"{found} A limit of {', '.join(offers.values())}."


@takes_threshold
def select_hard(
    scores: pd.DataFrame, hard_below: float | None = None, worst: float | None = None, by: str = "dice"
) -> pd.Series:
    """
    Which samples are hard.

    Args:
        scores, hard_below, worst, by: see [`hard_limit`].

    Returns:
        `pandas.Series` of bool, like `scores`: some are `True` and some are not.

    Raises:
        `MiningError`, `ValueError`: see [`hard_limit`].
    """
    limit = hard_limit(scores, hard_below, worst, by)
    return (scores[by] < limit).rename("hard")


@takes_threshold
def buckets(scores: pd.DataFrame, hard_below: float = HARD_BELOW, by: str = "dice") -> list[dict]:
    """
    How the samples are distributed over `BUCKETS`.

    Args:
        scores (`pandas.DataFrame`): from [`score_dataset`].
        hard_below (`float`, *optional*, defaults to 0.75): limit of the hard samples.
        by (`str`, *optional*, defaults to `"dice"`): in [0, 1]; samples without a value are in no bucket.

    Returns:
        `list[dict]`, a bucket each, from the hardest: `from` (inclusive), `to` (exclusive, but for the last), `count`,
        and the `sample_id` and score of the `hardest` sample and of the `borderline` one, which is nearest to the
        limit; `None` in an empty bucket.
    """
    ends = [*BUCKETS[1:], math.inf]
    found = []
    for low, high in zip(BUCKETS, ends, strict=True):
        own = scores[(scores[by] >= low) & (scores[by] < high)]
        own = own.sort_values([by, "sample_id"], kind="stable")
        picked = {"hardest": None, "borderline": None}
        if len(own):
            rows = {"hardest": own.iloc[0], "borderline": own.iloc[int((own[by] - hard_below).abs().argmin())]}
            picked = {name: {"sample_id": row["sample_id"], by: float(row[by])} for name, row in rows.items()}
        found.append({"from": low, "to": min(high, 1.0), "count": len(own), **picked})
    return found


@takes_threshold
def mark_clusters(
    scores: pd.DataFrame,
    hard_below: float = HARD_BELOW,
    max_gap: int = 0,
    min_length: int = 2,
    smoothing: int = 1,
    by: str = "dice",
) -> pd.Series:
    """
    The run of hard frames that every sample belongs to, see [`temporal_clusters`].

    Frames are put in the order of their `frame_index`. Where it jumps by more than the video's usual step, frames are
    missing: each counts as one without a score, so a run goes over at most `max_gap` of them.

    Args:
        scores (`pandas.DataFrame`): from [`score_dataset`].
        hard_below, max_gap, min_length, smoothing: see [`temporal_clusters`].
        by (`str`, *optional*, defaults to `"dice"`): column to judge by; higher is easier.

    Returns:
        `pandas.Series` of str, like `scores`: video and number of the run (`"v0003/0"`); `None` outside of runs.

    Raises:
        `MiningError`: see [`check_frames`].
        `ValueError`: see [`temporal_clusters`].
    """
    check_options(hard_below, None, max_gap, min_length, smoothing)
    marks = _none_of(scores, "cluster")
    for video, rows in videos(scores):
        # A gap that is too long for a run and for the window needs no more room than that.
        grid = on_the_grid(rows["frame_index"], max(max_gap, smoothing) + 1)
        values = np.full(grid[-1] + 1, np.nan)
        values[grid] = rows[by]
        for number, (first, last) in enumerate(temporal_clusters(values, hard_below, max_gap, min_length, smoothing)):
            marks[rows.index[(grid >= first) & (grid <= last)]] = f"{video}/{number}"
    return marks


def _none_of(scores: pd.DataFrame, name: str) -> pd.Series:
    return pd.Series([None] * len(scores), index=scores.index, dtype=object, name=name)


def describe_clusters(scores: pd.DataFrame, by: str = "dice") -> pd.DataFrame:
    """
    The runs, each with its likely cause.

    Args:
        scores (`pandas.DataFrame`): with `cluster` from [`mark_clusters`] and the measurements.
        by (`str`, *optional*, defaults to `"dice"`): column they were judged by.

    Returns:
        `pandas.DataFrame`, one row a run, the hardest first: `cluster`, `video_id`, `first_frame`, `last_frame`
        (`frame_index`, inclusive), `frames`, the mean (`mean`) and the lowest score (`lowest`), `hardest` (the
        `sample_id` of the latter), `sample_ids`, `cause` and `cause_ratio` (see [`likely_cause`]).
    """
    found = []
    for video, rows in videos(scores):
        for cluster, own in rows.dropna(subset=["cluster"]).groupby("cluster", sort=False):
            cause, ratio = likely_cause(own, rows[rows["cluster"].isna()])
            hardest = own.loc[own[by].idxmin()]
            found.append(
                {
                    "cluster": cluster,
                    "video_id": video,
                    "first_frame": int(own["frame_index"].min()),
                    "last_frame": int(own["frame_index"].max()),
                    "frames": len(own),
                    "mean": float(own[by].mean()),
                    "lowest": float(hardest[by]),
                    "hardest": hardest["sample_id"],
                    "sample_ids": own["sample_id"].tolist(),
                    "cause": cause,
                    "cause_ratio": ratio,
                }
            )
    columns = ["cluster", "video_id", "first_frame", "last_frame", "frames", "mean", "lowest", "hardest", "sample_ids"]
    return pd.DataFrame(found, columns=[*columns, "cause", "cause_ratio"]).sort_values("mean", ignore_index=True)


def likely_cause(own: pd.DataFrame, others: pd.DataFrame) -> tuple[str, float]:
    """
    What a run of hard frames differs in most from the other frames of its video.

    A measurement counts if its median in the run is worse than that of the others by a factor of 1.2, and by two
    robust standard deviations (1.4826 x the median absolute deviation, of logarithms, and at least 0.05) of the
    others. Of those that count, the one with the most standard deviations is named; but blur only where the contrast
    does not count, as over a structured background faint vessels alone lower the sharpness.

    It is a hint, not a finding: what differs need not be what the model fails at.

    Args:
        own (`pandas.DataFrame`): rows of the run, with the measurements that `CAUSES` names.
        others (`pandas.DataFrame`): rows of the same video in no run.

    Returns:
        `str` from `CAUSES`, and the ratio of the two medians; `"unclear"` and NaN where nothing counts, or fewer than
        three other frames can be compared with.
    """
    found = {}
    for name, (_, sign) in CAUSES.items():
        if name not in own:
            continue
        near, far = (np.log(table[name][table[name] > 0].to_numpy(dtype=np.float64)) for table in (own, others))
        if not len(near) or len(far) < 3:
            continue
        change = float(np.median(near) - np.median(far))
        deviation = 1.4826 * float(np.median(np.abs(far - np.median(far))))
        effect = sign * change / max(deviation, 0.05)
        if sign * change > math.log(1.2) and effect > 2:
            found[name] = (effect, math.exp(change))
    if "contrast" in found:
        found.pop("sharpness", None)
    if not found:
        return UNCLEAR, math.nan
    name = max(found, key=found.get)
    return CAUSES[name][0], found[name][1]


def review_reasons(scores: pd.DataFrame, tau_low: float = 0.3) -> pd.Series:
    """
    Rows whose label may be wrong, and why. They are for a person to look at, and not to be trained on until then.

    - No candidate explains the mask: `best_dice < tau_low`. (A model that fails everywhere lists everything here.)
    - The mask disagrees with both neighbours' (`mask_agreement` below 0.8) while the model's mask agrees with them
      (`prediction_agreement` of 0.8 or more), and better by 0.1. A vessel that moves by less than the tolerance of
      [`score_dataset`] still agrees.

    Args:
        scores (`pandas.DataFrame`): from [`score_dataset`].
        tau_low (`float`, *optional*, defaults to 0.3): in [0, 1]; 0 turns the first rule off.

    Returns:
        `pandas.Series` of str, like `scores`; `None` for rows that nothing speaks against.

    Raises:
        `ValueError`: `tau_low` is out of its range.
    """
    check_options(tau_low=tau_low)
    unexplained = scores["best_dice"] < tau_low
    own, model = scores["mask_agreement"], scores["prediction_agreement"]
    alone = (own < AGREEMENT) & (model >= AGREEMENT) & (model - own >= 0.1)
    reasons = _none_of(scores, "review_reason")
    reasons[alone] = "the mask disagrees with both neighbours', the model's mask agrees with them"
    reasons[unexplained] = f"no candidate has a Dice of {tau_low:g}"
    return reasons


@takes_threshold
def mine(
    scores: pd.DataFrame,
    hard_below: float | None = None,
    worst: float | None = None,
    max_gap: int = 0,
    min_length: int = 2,
    smoothing: int = 1,
    tau_low: float = 0.3,
    by: str = "dice",
) -> pd.DataFrame:
    """
    Scores with what follows from them.

    Args:
        scores (`pandas.DataFrame`): from [`score_dataset`] or [`score_unlabelled`].
        hard_below, worst, by: see [`hard_limit`].
        max_gap, min_length, smoothing: see [`mark_clusters`].
        tau_low (`float`, *optional*, defaults to 0.3): see [`review_reasons`]; without labels there is no review.

    Returns:
        `pandas.DataFrame`: a copy with `hard` (bool), `cluster` (str or `None`), `review` (bool) and `review_reason`
        (str or `None`). A row can be both hard and for review. It carries what was decided, see
        [`~mining.hardness.decided`], from where a trainer knows it.

    Raises:
        `MiningError`, `ValueError`: see there.
    """
    limit = hard_limit(scores, hard_below, worst, by)
    reasons = review_reasons(scores, tau_low) if "best_dice" in scores else _none_of(scores, "review_reason")
    mined = scores.assign(
        hard=scores[by] < limit,
        cluster=mark_clusters(scores, limit, max_gap, min_length, smoothing, by),
        review=reasons.notna(),
        review_reason=reasons,
    )
    return with_record(mined, {"by": by, **what_is_hard(hard_below, worst)})


@takes_threshold
def summary(mined: pd.DataFrame, hard_below: float, by: str = "dice") -> dict:
    """
    What mining has found, for people and for JSON.

    Args:
        mined (`pandas.DataFrame`): from [`mine`].
        hard_below (`float`): limit of the hard samples, see [`hard_limit`].
        by (`str`, *optional*, defaults to `"dice"`): column they were judged by.

    Returns:
        `dict` with `samples` (their number), `hard` (`sample_id`s), `buckets` (see [`buckets`]), `clusters` (see
        [`describe_clusters`]; no ratio is `None`) and `review` (`sample_id` and `review_reason` of each row).
    """
    clusters = describe_clusters(mined, by).to_dict("records")
    for cluster in clusters:
        cluster["cause_ratio"] = None if math.isnan(cluster["cause_ratio"]) else cluster["cause_ratio"]
    return {
        "samples": len(mined),
        "hard": mined["sample_id"][mined["hard"]].tolist(),
        "buckets": buckets(mined, hard_below, by),
        "clusters": clusters,
        "review": mined[mined["review"]][["sample_id", "review_reason"]].to_dict("records"),
    }
