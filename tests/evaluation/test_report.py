import numpy as np
import pandas as pd
import pytest
from samples_to_report import scored

from sa2va_trl.evaluation.gallery import KeptExtremes
from sa2va_trl.evaluation.page import Gallery, Plot, Table, Words
from sa2va_trl.evaluation.report import (
    about_section,
    buckets,
    comparison_report,
    evaluation_report,
    gallery_section,
    sample_table,
    training_report,
)
from sa2va_trl.evaluation.statistics import compare


def parts(sections, title, kind):
    (section,) = [section for section in sections if section.title == title]
    return [part for part in section.parts if isinstance(part, kind)]


def test_a_score_at_a_limit_belongs_above_it():
    scores = pd.Series([0.0, 0.4999, 0.5, 0.65, 0.7499, 0.75, 1.0])
    assert buckets(scores).tolist() == [
        *("< 0.50", "< 0.50", "0.50–0.65", "0.65–0.75", "0.65–0.75", "≥ 0.75", "≥ 0.75")
    ]


def test_every_metric_is_in_the_table_and_what_a_mean_leaves_out_is_counted():
    metrics, samples = scored()
    samples["hd95"] = np.where(np.arange(len(samples)) < 3, np.nan, 2.0)
    metrics["hd95"] = {"mean": 2.0, "std": 0.0, "ci95": [None, None], "n": len(samples) - 3}
    samples["routed"] = True
    sections, files = evaluation_report(metrics, samples, {}, 0.5, {})
    assert [section.title for section in sections] == ["Result", "Distribution", "Patients", "Clips", "Samples"]
    (table,) = parts(sections, "Result", Table)
    rows = {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}
    assert set(rows) == set(metrics)
    assert rows["dice"]["mean"] == metrics["dice"]["mean"] and rows["dice"]["left out"] == 0
    assert rows["hd95"]["left out"] == 3 and rows["hd95"]["95 % from"] is None
    assert list(files) == ["metrics_distribution.png"]
    plots = parts(sections, "Distribution", Plot)
    assert len(plots) == 1 + len(metrics)  # the ranges of Dice, and each metric


def test_lower_is_better_where_it_is_said():
    tables = {}
    for name, shift in (("a", 0.0), ("b", -1.0)):
        values = 5 + shift + np.arange(8) % 3
        tables[name] = pd.DataFrame({"sample_id": list("abcdefgh"), "hd95": values, "patient_id": list("ppqqrrss")})
    sections, _ = comparison_report(compare(tables, "hd95"), tables, {})
    assert "lower is better" in parts(sections, "Verdict", Words)[0].text
    (plot,) = parts(sections, "Pairs", Plot)
    assert "better: 8" in plot.svg and "worse: 0" in plot.svg


def test_hard_runs_are_named_and_clips_come_from_the_worst_on():
    metrics, samples = scored()
    sections, _ = evaluation_report(metrics, samples, {}, 0.5, {"clip5": [(0, 1), (3, 3)]})
    captions = [plot.caption for plot in parts(sections, "Clips", Plot)]
    means = samples.groupby("video_id")["dice"].mean().sort_values()
    assert [caption.split(":")[0] for caption in captions] == list(means.index)
    (own,) = [caption for caption in captions if caption.startswith("clip5")]
    assert own.endswith("Runs of hard frames: 0–1, 3–3.")


def test_samples_without_patients_and_clips_have_no_such_sections():
    metrics, samples = scored()
    sections, _ = evaluation_report(metrics, samples.drop(columns=["patient_id", "video_id"]), {}, 0.5, {})
    assert [section.title for section in sections] == ["Result", "Distribution", "Samples"]
    unknown = samples.assign(patient_id=None, frame_index=None)
    sections, _ = evaluation_report(metrics, unknown, {}, 0.5, {})
    assert [section.title for section in sections] == ["Result", "Distribution", "Clips", "Samples"]


def test_samples_are_listed_from_the_worst_on_with_their_range():
    _, samples = scored()
    table = sample_table(samples)
    dice = [row[list(table.columns).index("dice")] for row in table.rows]
    assert dice == sorted(samples["dice"]) and list(table.columns)[-1] == table.choices == "range"


def test_changes_of_every_pair_are_listed():
    tables = {name: scored(seed)[1] for seed, name in enumerate("abc")}
    tables["b"] = tables["b"].sample(frac=1, random_state=0)  # rows are paired by their names
    sections, _ = comparison_report(compare(tables), tables, {})
    (table,) = parts(sections, "Samples", Table)
    rows = pd.DataFrame(table.rows, columns=list(table.columns)).set_index("sample_id")
    expected = tables["b"].set_index("sample_id")["dice"] - tables["a"].set_index("sample_id")["dice"]
    for name, change in expected.items():
        assert rows.loc[name, "b − a"] == pytest.approx(change)
    assert len(parts(sections, "Pairs", Plot)) == 2


def test_a_threshold_can_be_moved_where_it_changes_something():
    kept = KeptExtremes(2)
    scored(on_row=kept)
    (section,) = gallery_section({"Worst": kept.worst}, 0.4)
    assert section.parts[-1].threshold == 0.4
    binary = [picture._replace(is_binary=True) for picture in kept.worst]
    (section,) = gallery_section({"Worst": binary}, 0.4)
    assert section.parts[-1].threshold is None and "0 or 1" in section.parts[0].text
    assert isinstance(section.parts[-1], Gallery)
    assert gallery_section({"Worst": []}, 0.4) == []


def test_nothing_logged_is_no_section():
    assert training_report({}) == ([], {}) == training_report({"a": [{"step": 1, "train_loss": 0.1}]})


def test_what_is_empty_is_not_shown():
    section = about_section({"Options": {"a": 1, "b": [2]}, "Digests": {}})
    assert [(table.caption, table.rows) for table in section.parts] == [("Options", [["a", "1"], ["b", "[2]"]])]
