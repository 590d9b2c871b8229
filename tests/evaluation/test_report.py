import xml.etree.ElementTree as ET

from sa2va_trl.evaluation.report import Section, write_report


def test_the_page_shows_texts_as_they_are_and_points_to_its_pictures(tmp_path):
    page = tmp_path / "sub" / "report.html"
    page.parent.mkdir()
    pictures = [("overlays/a b#1.png", '<b>worst</b> & "best"')]
    write_report(page, "Dice < 0.5 & more", [Section("One", "a < b", "x  y\n1  2"), Section("Two", pictures=pictures)])
    text = page.read_text()
    assert "<b>worst</b>" not in text and "<script" not in text
    tree = ET.fromstring(
        text.replace("<!doctype html>", "")
        .replace('<meta charset="utf-8">', "")
        .replace('<meta name="viewport" content="width=device-width, initial-scale=1">', "")
        .replace('loading="lazy">', "/>")
    )
    assert [entry.text for entry in tree.iter("h2")] == ["One", "Two"]
    assert tree.find(".//pre").text == "x  y\n1  2"
    assert tree.find(".//img").attrib == {"src": "overlays/a%20b%231.png", "alt": '<b>worst</b> & "best"'}
    assert tree.find(".//figcaption").text == '<b>worst</b> & "best"'
    assert [path.name for path in page.parent.iterdir()] == ["report.html"]


def test_an_earlier_page_is_replaced(tmp_path):
    for title in ("first", "second"):
        write_report(tmp_path / "report.html", title, [])
    assert "<h1>second</h1>" in (tmp_path / "report.html").read_text()
