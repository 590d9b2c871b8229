import re
import xml.etree.ElementTree as ET

import numpy as np
import pandas as pd

from sa2va_trl.evaluation import plots


def texts(svg):
    return [entry.text for entry in ET.fromstring(svg).iter() if entry.tag.endswith("}text") and entry.text]


def test_colours_are_the_pages_own_and_text_stays_text():
    svg = plots.to_svg(plots.boxes({"<a>": [0.1, 0.5, 0.9], "b": []}, "dice"), "one")
    assert not re.search("#[0-9a-f]{6}", svg.replace("#ffffff", ""))
    assert "var(--blue)" in svg and "var(--orange)" in svg and "currentColor" in svg
    assert {"<a>", "b"} <= set(texts(svg))


def test_the_same_plot_is_the_same_file_and_two_of_a_page_share_no_identifier():
    def draw(name):
        return plots.to_svg(plots.histogram([1, 2, 3], "title", "label"), name)

    assert draw("one") == draw("one")
    found = [set(re.findall(r'\bid="([^"]+)"', draw(name))) for name in ("one", "two")]
    assert len(found[0]) > 10 and found[0].isdisjoint(found[1])


def test_values_that_are_no_numbers_are_left_out():
    samples = pd.DataFrame({"dice": [0.5, np.nan, np.inf, 0.7]})
    assert {"mean 0.6", "median 0.6"} <= set(texts(plots.to_svg(plots.distributions(samples, ["dice"]), "a")))


def test_dollars_are_no_formula():
    assert "$a$ $" in texts(plots.to_svg(plots.boxes({"$a$ $": [1.0]}, "dice"), "a"))


def test_counts_of_ranges_are_written_beside_the_bars():
    counts = pd.DataFrame({"a": [1, 3], "b": [0, 0]}, index=["low", "high"])
    found = texts(plots.to_svg(plots.bucket_bars(counts), "a"))
    assert {"1 (25%)", "3 (75%)", "0 (0%)", "low", "high", "a", "b"} <= set(found)
