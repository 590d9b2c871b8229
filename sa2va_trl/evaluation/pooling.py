"""The evaluations of a cross-validation's folds, taken together: every row once, and a table by fold."""

from collections.abc import Mapping, Sequence

import pandas as pd

from ..metrics import LOWER_IS_BETTER
from . import plots
from .comparison import some
from .page import Plot, Section, Table, Words


FOLD = "fold"
CAUTION = (
    "Every image is scored by a model that has not been trained on it. The folds' models share most of their training "
    "rows: intervals and tests are for these models, and that others would be trained on other data is not in them."
)


def pool(tables: Mapping[str, pd.DataFrame], expected: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    """
    The rows of all folds in one table.

    Args:
        tables (`Mapping[str, pandas.DataFrame]`): by name of the fold, one row a sample that it has held out, from
            [`~evaluation.evaluate`].
        expected (`Mapping[str, Sequence[str]]`): by name of the fold, the `sample_id` of those samples.

    Returns:
        `pandas.DataFrame`: each sample once, with its fold in the column `fold`.

    Raises:
        `ValueError`: a fold was scored on other samples, or a sample is in several folds.

    Example:

        ```python
        >>> import pandas as pd
        >>> from sa2va_trl.evaluation.pooling import pool

        >>> tables = {name: pd.DataFrame({"sample_id": [name], "dice": [0.5]}) for name in ("fold0", "fold1")}
        >>> pool(tables, {"fold0": ["fold0"], "fold1": ["fold1"]})["fold"].tolist()
        ['fold0', 'fold1']

        ```
    """
    for name, table in tables.items():
        found, wanted = sorted(table["sample_id"]), sorted(expected[name])
        if found != wanted:
            other = sorted(set(found) ^ set(wanted)) or [own for own in set(found) if found.count(own) > 1]
            raise ValueError(f"{name} was scored on other samples than it has held out: {some(other)}.")
    pooled = pd.concat([table.assign(**{FOLD: name}) for name, table in tables.items()], ignore_index=True)
    twice = pooled["sample_id"][pooled["sample_id"].duplicated()]
    if len(twice):
        raise ValueError(f"Samples are held out in several folds: {some(twice)}.")
    return pooled


def fold_table(pooled: Mapping[str, pd.DataFrame], metric: str, counts: Sequence[Mapping[str, int]]) -> pd.DataFrame:
    """
    A metric by fold.

    Args:
        pooled (`Mapping[str, pandas.DataFrame]`): by name of the run, from [`pool`].
        metric (`str`): column of which means are taken, over the images that it is defined of.
        counts (`Sequence[Mapping[str, int]]`): the rows of each fold's splits, in order, those held out last.

    Returns:
        `pandas.DataFrame`: a row a fold, then `"all"` (over all images; of the counts the last one's sum): `fold`, the
        counts, the mean of each run, and of two or more the last one's difference from the first. None where
        nothing is to be said.
    """
    means = pd.DataFrame({name: table.groupby(FOLD, sort=False)[metric].mean() for name, table in pooled.items()})
    table = pd.concat([pd.DataFrame(list(counts), index=means.index), means], axis=1).reset_index(names=FOLD)
    *_, held_out = counts[0]  # of the others, rows count in several folds
    everything = {name: own[metric].mean() for name, own in pooled.items()}
    table.loc[len(table)] = {FOLD: "all", held_out: table[held_out].sum(), **everything}
    if len(pooled) > 1:
        first, *_, last = pooled
        table[f"{last} − {first}"] = table[last] - table[first]
    table = table.astype(dict.fromkeys(counts[0], "Int64"))
    return table.astype(object).where(table.notna(), None)


def fold_section(
    pooled: Mapping[str, pd.DataFrame], metric: str, table: pd.DataFrame, words: Sequence[str]
) -> Section:
    """
    What a page shows of the folds: how they were made, the metric of every image by fold, and its means.

    Args:
        pooled (`Mapping[str, pandas.DataFrame]`), metric (`str`): as in [`fold_table`].
        table (`pandas.DataFrame`): from there.
        words (`Sequence[str]`): how the folds were made, a paragraph each.
    """
    values = {
        name if len(pooled) == 1 else f"{name}, {run}": own[metric]
        for name in table[FOLD][:-1]
        for run, samples in pooled.items()
        for _, own in [(name, samples[samples[FOLD] == name])]
    }
    better = "lower" if metric in LOWER_IS_BETTER else "higher"
    caption = f"{metric} of every image, by the fold that held it out; {better} is better."
    return Section(
        "Folds",
        [
            *map(Words, words),
            Plot(plots.to_svg(plots.boxes(values, metric), "folds"), caption),
            Table.of_frame(table, f"Means of {metric} by fold; all: over all images. Counts are of images."),
        ],
    )
