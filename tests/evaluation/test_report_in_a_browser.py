"""A report in a real browser: what is sorted, filtered, moved, enlarged, with the keyboard too."""

import numpy as np
import pytest
from browser import chromium
from samples_to_report import MARKUP, rows_with_probabilities, scored

from sa2va_trl.evaluation.gallery import KeptExtremes, make_picture
from sa2va_trl.evaluation.page import write_page
from sa2va_trl.evaluation.report import evaluation_report, gallery_section


THRESHOLD = 0.505  # between two steps of the slider


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The page, the table of samples, and by name the probabilities and targets of its pictures."""
    folder, extremes, known = tmp_path_factory.mktemp("report"), KeptExtremes(3), {}
    metrics, samples = scored(on_row=extremes)
    for row, probabilities in rows_with_probabilities():
        known[row["sample_id"]] = (probabilities[0], np.asarray(row["mask"]) > 0)
    sections, _ = evaluation_report(
        metrics, samples, {"Worst": extremes.worst, "Best": extremes.best}, THRESHOLD, {"clip5": [(0, 3)]}
    )
    write_page(folder, "Report", sections, pictures="beside")
    return folder / "report.html", samples, known


@pytest.fixture
def page(browser, report):
    # (Playwright waits with `eval`, which the page forbids; that of the phone keeps to what it forbids.)
    page = browser.new_page(viewport={"width": 1280, "height": 900}, bypass_csp=True)
    page.set_default_timeout(60_000)
    wrong, asked = [], []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    page.on("request", lambda request: asked.append(request.url))
    page.goto(report[0].as_uri())
    page.wait_for_function("document.querySelectorAll('.picture output:empty').length === 0")
    yield page
    page.close()
    assert not wrong
    assert all(url.startswith((report[0].parent.as_uri(), "data:")) for url in asked) and len(asked) > 3


def column(page, name):
    table = page.locator("#samples table")
    place = table.locator("thead th").all_inner_texts().index(name)
    rows = table.locator("tbody tr:not([hidden])").all()
    return [row.locator("th, td").nth(place).inner_text() for row in rows]


def test_a_table_is_sorted_by_a_click_and_by_the_keyboard(page, report):
    _, samples, _ = report
    head = page.locator("#samples thead").get_by_role("button", name="iou")
    head.click()
    expected = [f"{value:.4f}" for value in sorted(samples["iou"])]
    assert column(page, "iou") == expected
    assert head.locator("xpath=..").get_attribute("aria-sort") == "ascending"
    head.press("Enter")
    assert column(page, "iou") == expected[::-1]
    assert head.locator("xpath=..").get_attribute("aria-sort") == "descending"


def test_rows_are_filtered_by_words_and_by_the_range_of_dice(page, report):
    _, samples, _ = report
    section = page.locator("#samples")
    section.get_by_role("searchbox").fill("CLIP3_")
    assert sorted(column(page, "sample_id")) == [f"clip3_{number}" for number in range(4)]
    assert section.locator("output").inner_text() == f"4 of {len(samples)} rows"
    section.get_by_role("searchbox").fill(MARKUP.lower())
    assert len(column(page, "sample_id")) == len(samples) // 2
    section.get_by_role("searchbox").fill("")
    section.get_by_label("range").select_option("< 0.50")
    assert len(column(page, "dice")) == (samples["dice"] < 0.5).sum() > 0


def colours(page, name):
    """Where a picture's canvas is drawn in which colour: found, invented, missed."""
    read = """canvas => [...canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data]"""
    values = page.locator(f'.picture[data-name="{name}"] canvas').evaluate(read)
    pixels = np.array(values).reshape(32, 32, 4).astype(int)
    drawn = pixels[..., 3] > 0
    # (What is half transparent comes back with rounded colours.)
    order = np.array([(60, 200, 90), (235, 90, 40), (70, 130, 255)])
    nearest = np.abs(pixels[..., None, :3] - order).sum(-1).argmin(-1)
    return [drawn & (nearest == number) for number in range(3)]


def dice(predicted, target):
    return 2 * (predicted & target).sum() / (predicted.sum() + target.sum())


def check_drawn(page, known, name, threshold):
    probabilities, target = known[name]
    predicted = np.rint(255 * probabilities) > 255 * threshold
    found, invented, missed = colours(page, name)
    np.testing.assert_array_equal(found, predicted & target)
    np.testing.assert_array_equal(invented, predicted & ~target)
    np.testing.assert_array_equal(missed, ~predicted & target)
    said = page.locator(f'.picture[data-name="{name}"] output').inner_text()
    assert said.startswith(f"Dice {dice(predicted, target):.3f} at {threshold:g}: found {(predicted & target).sum()},")


def test_the_threshold_draws_masks_anew_and_goes_back_to_that_of_the_evaluation(page, report):
    _, _, known = report
    names = page.locator(".picture").evaluate_all("figures => figures.map(figure => figure.dataset.name)")
    assert len(names) == 6
    page.locator(".gallery").scroll_into_view_if_needed()
    check_drawn(page, known, names[0], THRESHOLD)
    slider = page.get_by_role("slider", name="Threshold")
    before = float(slider.input_value())
    slider.focus()
    for _ in range(12):
        page.keyboard.press("ArrowRight")
    moved = float(slider.input_value())
    assert moved == pytest.approx(before + 0.12) and page.locator(".threshold output").inner_text() == f"{moved:.2f}"
    page.wait_for_function("document.querySelector('.picture output').textContent.includes(' at ' + arguments)"
                           .replace("arguments", repr(f"{moved:g}")))  # fmt: skip
    check_drawn(page, known, names[0], moved)
    page.get_by_role("button", name="as evaluated").click()
    page.wait_for_function(f"document.querySelector('.picture output').textContent.includes(' at {THRESHOLD}')")
    check_drawn(page, known, names[0], THRESHOLD)


def test_what_is_shown_can_be_chosen(page, report):
    _, _, known = report
    (name, *_) = page.locator(".picture").evaluate_all("figures => figures.map(figure => figure.dataset.name)")
    probabilities, target = known[name]
    predicted = np.rint(255 * probabilities) > 255 * THRESHOLD
    page.locator(".gallery").scroll_into_view_if_needed()
    for label, expected in {"target": target, "prediction": predicted, "image alone": np.zeros_like(target)}.items():
        page.get_by_role("radio", name=label).check()
        np.testing.assert_array_equal(np.any(colours(page, name), axis=0), expected)


def test_a_picture_is_enlarged_and_left_with_the_keyboard(page):
    names = page.locator(".picture").evaluate_all("figures => figures.map(figure => figure.dataset.name)")
    page.get_by_role("button", name=f"Enlarge {names[0]}").press("Enter")
    dialog = page.get_by_role("dialog")
    about = dialog.locator(".about")
    page.wait_for_function("document.querySelector('dialog .about').textContent !== ''")
    assert about.inner_text().startswith(f"{names[0]}. Dice")
    width = dialog.locator("canvas").bounding_box()["width"]
    page.keyboard.press("+")
    assert dialog.locator("canvas").bounding_box()["width"] == pytest.approx(1.25 * width, rel=0.01)
    for key, name in (("ArrowRight", names[1]), ("ArrowLeft", names[0]), ("ArrowLeft", names[-1])):
        page.keyboard.press(key)
        page.wait_for_function(f"document.querySelector('dialog .about').textContent.startsWith('{name}.')")
    page.keyboard.press("3")
    assert page.get_by_role("radio", name="target").is_checked()
    page.keyboard.press("Escape")
    page.wait_for_function("!document.querySelector('dialog').open")
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == f"Enlarge {names[-1]}"
    assert page.locator(".gallery .controls").is_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_wider_than_a_phone(browser, report, scheme):
    page = browser.new_page(viewport={"width": 400, "height": 800}, color_scheme=scheme)
    page.goto(report[0].as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    read = "(({ color, backgroundColor }) => [color, backgroundColor])(getComputedStyle(document.body))"
    style = page.evaluate(read)
    ink, paper = (np.array([int(part) for part in text[4:-1].split(",")]).mean() for text in style)
    assert (ink < 60 and paper > 240) if scheme == "light" else (ink > 200 and paper < 40)
    page.close()


def test_two_runs_stand_side_by_side(browser, tmp_path):
    row, probabilities = next(rows_with_probabilities())
    picture = make_picture(row, [probabilities, 1 - probabilities], {"before": 0.9, "after": 0.1})
    write_page(tmp_path, "Two", gallery_section({"Changed": [picture]}, 0.5, ["first", "<b>"]))
    page = browser.new_page(bypass_csp=True)
    page.goto((tmp_path / "report.html").as_uri())
    page.wait_for_function("document.querySelectorAll('.picture output:empty').length === 0")
    assert page.locator(".picture .run").all_inner_texts() == ["first", "<b>"]
    target = np.asarray(row["mask"]) > 0
    said = page.locator(".picture output").inner_text().split("; ")
    for own, text in zip((probabilities[0], 1 - probabilities[0]), said, strict=True):
        assert text.startswith(f"Dice {dice(np.rint(255 * own) > 127.5, target):.3f} at 0.5")
    page.close()
