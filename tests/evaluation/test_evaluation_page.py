import re

import html5lib
import pytest
from jinja2 import UndefinedError
from samples_to_report import MARKUP, scored

from sa2va_trl.evaluation.gallery import KeptExtremes
from sa2va_trl.evaluation.page import Numbers, Section, Sheet, Table, Words, raw, shown, write_page
from sa2va_trl.evaluation.report import comparison_report, evaluation_report, training_report
from sa2va_trl.evaluation.statistics import compare


def valid(text):
    """The page by the HTML standard's own algorithm, which names what is wrong with it."""
    return html5lib.HTMLParser(strict=True, namespaceHTMLElements=False).parse(text)


@pytest.fixture(scope="module")
def evaluation():
    extremes = KeptExtremes(3)
    metrics, samples = scored(on_row=extremes)
    gallery = {"Worst": extremes.worst, "Best": extremes.best}
    return evaluation_report(metrics, samples, gallery, 0.5, {"clip5": [(0, 3)]})


def test_pages_are_valid_and_show_what_users_wrote_as_it_is(tmp_path, evaluation):
    write_page(tmp_path, MARKUP, evaluation[0], subtitle=MARKUP, files=evaluation[1])
    text = (tmp_path / "report.html").read_text()
    tree = valid(text)
    assert MARKUP not in text and text.count("<script>") == 1
    assert tree.findtext(".//h1") == MARKUP
    assert any(cell.text == MARKUP for cell in tree.iter("td"))
    assert any(heading.text == "p & <b>" for heading in tree.iter("th"))
    identifiers = re.findall(r'\bid="([^"]+)"', text)
    assert len(identifiers) == len(set(identifiers)) > 50
    assert {path.name for path in tmp_path.iterdir()} == {"report.html", "metrics_distribution.png"}


def test_nothing_is_loaded_from_elsewhere(tmp_path, evaluation):
    write_page(tmp_path, "Title", evaluation[0])
    text = (tmp_path / "report.html").read_text()
    addresses = re.findall(r'\b(?:src|href|action|url)\s*=\s*"([^"]*)"', text) + re.findall(r"url\(([^)]*)\)", text)
    assert len(addresses) > 20
    assert {address[:5] for address in addresses if not address.startswith("#")} == {"data:"}
    assert "default-src 'none'" in text


def test_images_lie_beside_the_page_by_choice(tmp_path, evaluation):
    write_page(tmp_path / "in", "Title", evaluation[0])
    write_page(tmp_path / "out", "Title", evaluation[0], pictures="beside")
    text = (tmp_path / "out" / "report.html").read_text()
    valid(text)
    files = sorted(f"report_pictures/{file.name}" for file in (tmp_path / "out" / "report_pictures").iterdir())
    assert files == sorted(set(re.findall(r'src="(report_pictures/[^"]+)"', text))) and len(files) == 6
    assert len(text) < (tmp_path / "in" / "report.html").stat().st_size
    with pytest.raises(ValueError, match="embedded or beside, got 'none'"):
        write_page(tmp_path, "Title", [], pictures="none")


def test_an_earlier_page_stays_where_the_new_one_cannot_be_written(tmp_path):
    write_page(tmp_path, "first", [])
    with pytest.raises(UndefinedError):
        write_page(tmp_path, "second", [Section("Broken", [None])])
    assert "<h1>first</h1>" in (tmp_path / "report.html").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    write_page(tmp_path, "second", [])
    assert "<h1>second</h1>" in (tmp_path / "report.html").read_text()


def test_comparisons_and_trainings_are_valid_pages(tmp_path):
    tables = {name: scored(seed)[1] for seed, name in enumerate(("a", "<b>", "$c$ _d$"))}
    sections, files = comparison_report(compare(tables), tables, {})
    log = [{"step": step, "loss": 1 / step, "learning_rate": 0.1} for step in (1, 2, 3)]
    trained, curves = training_report({"<b>": log, "$c$": log[:1]})
    parts = [Words("x  y\n1  2", plain=True), Numbers([("a", "1", MARKUP)]), Sheet([(b"\x89PNG", "<i>")])]
    sections += [*trained, Section("More", parts)]
    write_page(tmp_path, "Title", sections, files={**files, **curves})
    text = (tmp_path / "report.html").read_text()
    tree = valid(text)
    assert [heading.text for heading in tree.iter("h2")] == [
        *("Verdict", "Pairs", "Distribution", "Patients", "Clips", "Samples", "Training", "More")
    ]
    assert "x  y\n1  2" in [entry.text for entry in tree.iter("pre")]
    assert MARKUP not in text and "<i>" not in text
    assert all((tmp_path / name).read_bytes()[:4] == b"\x89PNG" for name in ("training_curves.png", *files))


def test_cells_are_shown_to_four_digits_and_sorted_by_all():
    values = [0.123456, 3, None, float("nan"), True, "<x>"]
    assert [shown(value) for value in values] == ["0.1235", "3", "–", "–", "True", "<x>"]
    assert [raw(value) for value in values] == ["0.123456", "3", None, None, None, None]


def test_choices_come_in_the_order_of_the_rows():
    table = Table(["name", "range", "n"], [["a", "low", None], ["b", "high", 1], ["c", "low", 2]], "", choices="range")
    assert table.options() == ["low", "high"]
    assert [table.is_number(place) for place in range(3)] == [False, False, True]
