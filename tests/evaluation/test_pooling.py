"""The evaluations of folds, taken together."""

import pandas as pd
import pytest

from sa2va_trl.evaluation.pooling import fold_section, fold_table, pool


TABLES = {
    "fold0": pd.DataFrame({"sample_id": ["b", "a"], "dice": [0.2, 0.4]}),
    "fold1": pd.DataFrame({"sample_id": ["c"], "dice": [0.9]}),
}
EXPECTED = {"fold0": ["a", "b"], "fold1": ["c"]}
COUNTS = [{"train": 1, "test": 2}, {"train": 2, "test": 1}]


def test_every_row_is_there_once_with_its_fold():
    pooled = pool(TABLES, EXPECTED)
    assert pooled[["sample_id", "fold", "dice"]].to_numpy().tolist() == [
        ["b", "fold0", 0.2],
        ["a", "fold0", 0.4],
        ["c", "fold1", 0.9],
    ]


def test_rows_that_lack_or_come_twice_are_refused():
    with pytest.raises(ValueError, match="fold1 was scored on other samples than it has held out: c, d"):
        pool(TABLES, {**EXPECTED, "fold1": ["d"]})
    double = pd.DataFrame({"sample_id": ["c", "c"], "dice": [0.1, 0.2]})
    with pytest.raises(ValueError, match="fold1 was scored on other samples than it has held out: c"):
        pool({**TABLES, "fold1": double}, EXPECTED)
    with pytest.raises(ValueError, match="held out in several folds: a"):
        pool({**TABLES, "fold1": TABLES["fold0"].iloc[1:]}, {**EXPECTED, "fold1": ["a"]})


def test_means_by_fold_and_over_all_images():
    before = pool(TABLES, EXPECTED)
    after = before.assign(dice=[0.4, 0.4, 0.6])
    table = fold_table({"A": before, "B": after}, "dice", COUNTS)
    assert list(table) == ["fold", "train", "test", "A", "B", "B − A"]
    assert table["fold"].tolist() == ["fold0", "fold1", "all"]
    assert table["train"].tolist() == [1, 2, None] and table["test"].tolist() == [2, 1, 3]
    assert table["A"].tolist() == pytest.approx([0.3, 0.9, 0.5])  # over images, not over folds
    assert table["B − A"].tolist() == pytest.approx([0.1, -0.3, -0.1 / 3])
    assert list(fold_table({"A": before}, "dice", COUNTS)) == ["fold", "train", "test", "A"]


def test_the_page_shows_each_run_of_each_fold():
    runs = {"A": pool(TABLES, EXPECTED), "B": pool(TABLES, EXPECTED)}
    words, plot, table = fold_section(runs, "dice", fold_table(runs, "dice", COUNTS), ["Divided by videos."]).parts
    assert words.text == "Divided by videos." and "higher is better" in plot.caption
    assert all(f">{name}<" in plot.svg for name in ("fold0, A", "fold0, B", "fold1, A", "fold1, B"))
    assert table.rows[-1][0] == "all"
    (_, alone, _) = fold_section({"A": runs["A"]}, "dice", fold_table({"A": runs["A"]}, "dice", COUNTS), [""]).parts
    assert ">fold0<" in alone.svg
