"""The page in a real browser."""

import io
import json
import zipfile

import numpy as np
import pytest
from PIL import Image
from served import chromium, files_below, served, wait_for

from sa2va_trl import Sa2VAForConditionalGeneration, tiny_sa2va
from sa2va_trl.app.page import FIRST_CLIP, said
from sa2va_trl.app.results import Asked, legend, levels, painted, predictions


TWO = "The <p> catheter </p> [SEG] and the <p> vessel </p> [SEG]."


def test_a_message_is_one_line_and_no_html():
    assert said("<b> & so\non") == "<p>&lt;b&gt; &amp; so</p>"
    assert "alert" in said(ValueError("No.\nMore.")) and "More" not in said(ValueError("No.\nMore."))
    assert "KeyError" not in said(ValueError()) and ">ValueError<" in said(ValueError())


@pytest.fixture(scope="module")
def browser():
    pytest.importorskip("gradio")
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def server(browser, network, tmp_path_factory):
    folder = tmp_path_factory.mktemp("uploads")
    with served([Asked("tiny", *network)], folder, max_frames=3) as (address, views, asked):
        yield address, views, asked, folder


@pytest.fixture
def calls(monkeypatch):
    """What `segment` and `chat` are called with."""
    calls = []

    def watch(name):
        method = getattr(Sa2VAForConditionalGeneration, name)

        def watched(self, *args, **given):
            calls.append("image" if "image" in given else "video")
            return method(self, *args, **given)

        monkeypatch.setattr(Sa2VAForConditionalGeneration, name, watched)

    watch("segment")
    watch("chat")
    return calls


def opened(browser, address, **options):
    """A page with the clip that it opens first."""
    page = browser.new_page(**{"viewport": {"width": 1280, "height": 900}, **options})
    page.set_default_timeout(90_000)
    page.wrong, page.requests = [], []
    page.on("pageerror", lambda error: page.wrong.append(str(error)))
    page.on("console", lambda message: page.wrong.append(message.text) if message.type == "error" else None)
    page.on("request", lambda request: page.requests.append(request.url))
    page.goto(address)
    page.get_by_role("heading", name=f"h1_v{FIRST_CLIP:04d}").wait_for()
    return page


def check_closed(page, address, asked):
    """Nothing went wrong in the page, and nothing on it is from elsewhere."""
    addresses = page.evaluate("[...document.querySelectorAll('link, script, img, iframe')].map(e => e.href || e.src)")
    page.close()
    assert not page.wrong and len(page.requests) > 10 and len(addresses) > 3
    for url in (*page.requests, *filter(None, addresses)):
        assert url.startswith((address, "data:", "blob:")), url
    assert not asked, "the server has asked for something elsewhere"


@pytest.fixture
def page(browser, server):
    page = opened(browser, server[0])
    yield page
    check_closed(page, server[0], server[2])


def segment(page, prompt="Please segment the vessel.", answer="Sure, [SEG]."):
    page.get_by_label("Prompt").fill(prompt)
    more = page.get_by_role("button", name="More")
    if not page.get_by_label("Answer").is_visible():
        more.click()
    page.get_by_label("Answer").fill(answer)
    page.get_by_role("button", name="Segment", exact=True).click()


def status(page, text):
    page.locator("#status").get_by_text(text).wait_for()


def drawn(page, number=0):
    """The pixels of a canvas, which is named as soon as something is drawn."""
    read = """canvas => {
        const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
        return [canvas.width, canvas.height, ...data];
    }"""
    width, height, *values = page.locator("sa2va-viewer canvas[aria-label]").nth(number).evaluate(read)
    return np.array(values, dtype=np.uint8).reshape(height, width, 4)[..., :3]


def download(page, name, number=0):
    with page.expect_download() as found:
        page.get_by_role("link", name=name).nth(number).click()
    with open(found.value.path(), "rb") as file:
        return found.value.suggested_filename, file.read()


def test_the_first_thing_asked_needs_no_other_click(page, calls):
    """The closed part of the page, whose fields Gradio has not made yet, takes nothing away."""
    page.get_by_role("button", name="Segment", exact=True).click()
    status(page, "Done in")
    assert calls == 16 * ["image"]


def test_a_clip_is_asked_about_and_the_threshold_needs_no_model(page, server, calls):
    _, views, _, _ = server
    page.get_by_label("2", exact=True).check()
    page.get_by_label("Number").fill("3")
    page.get_by_role("button", name="Open this clip").click()
    page.get_by_role("heading", name="h2_v0003").wait_for()
    plain = drawn(page)
    segment(page, answer=TWO)
    status(page, "Done in")
    threshold = page.get_by_role("slider", name="Threshold")
    threshold.wait_for()
    assert calls == 16 * ["image"]  # frame by frame, as a tiny model is asked
    answer = page.locator("sa2va-viewer .answer", has_text="[SEG]")
    answer.wait_for()
    assert answer.inner_text() == "The catheter [SEG] and the vessel [SEG]."
    (view,) = (view for _, view in views._of_page.values() if view.clip.name == "h2_v0003")
    result, colours = view.results["tiny"][8], legend(view)
    page.get_by_text("Frame 9 / 16").wait_for()
    first = drawn(page)
    assert np.array_equal(first, painted(view.clip.frames[8], result, 100, colours)) and (first != plain).any()

    # The slider, by keyboard: another picture, and nobody is asked for it.
    before = len(page.requests)
    threshold.focus()
    for _ in range(6):
        threshold.press("ArrowRight")
    page.get_by_text("0.530").wait_for()
    second = drawn(page)
    assert np.array_equal(second, painted(view.clip.frames[8], result, 106, colours)) and (second != first).any()
    assert len(calls) == 16 and page.requests[before:] == []
    share = 100 * (levels(result)[0] >= 106).mean()
    assert f"{share:.1f} % of the picture" in page.get_by_role("listitem").first.inner_text()

    # What is given out is what is seen.
    name, content = download(page, "Overlay (PNG)")
    assert name == "h2_v0003_frame8_overlay.png"
    assert np.array_equal(Image.open(io.BytesIO(content)), second)
    name, content = download(page, "Mask (PNG)", 1)
    mask = Image.open(io.BytesIO(content))
    assert mask.mode == "L" and np.array_equal(np.asarray(mask) > 0, levels(result)[1] >= 106)
    name, content = download(page, "JSON")
    assert name == "h2_v0003_predictions.json" and json.loads(content) == predictions(view, "tiny", 106)
    name, content = download(page, "All frames (ZIP)")
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        assert len(file.namelist()) == 1 + 16 * 3

    # An object is hidden, and the clip plays.
    page.get_by_role("checkbox", name="catheter").uncheck()
    hidden = drawn(page)
    mask = levels(result)[0] >= 106
    assert (hidden != second).any(-1)[mask].all() and not (hidden != second).any(-1)[~mask].any()
    page.get_by_role("button", name="Play").press("Enter")
    page.get_by_text("Frame 12 / 16").wait_for()
    page.get_by_role("button", name="Pause").press("Enter")
    page.get_by_role("slider", name="Frame").press("Home")
    page.get_by_text("Frame 1 / 16").wait_for()
    assert len(calls) == 16

    # Another prompt leaves frame and threshold where they are; as a whole the clip is tracked.
    page.get_by_label("Frame by frame").uncheck()
    segment(page)
    page.get_by_role("checkbox", name="object 1").wait_for()
    assert calls[16:] == ["video"]
    page.get_by_text("Frame 1 / 16").wait_for()
    page.get_by_text("0.530").wait_for()


def upload(page, path):
    page.get_by_role("tab", name="Your file").click()
    page.locator("input[type=file]").set_input_files(path)


def test_a_file_is_read_and_deleted(page, server, calls, image, tmp_path):
    folder = server[3]
    image.save(tmp_path / "one.png")
    upload(page, tmp_path / "one.png")
    page.get_by_role("heading", name="one", exact=True).wait_for()
    status(page, "one.png: 100 × 60.")
    assert np.array_equal(drawn(page), image)
    assert not any(files_below(folder).values())
    segment(page)
    page.get_by_role("checkbox", name="object 1").wait_for()
    assert calls == ["image"] and page.get_by_role("slider", name="Frame").count() == 0
    name, _ = download(page, "Mask (PNG)")
    assert name == "one_frame0_mask0.png"

    turned = [image.rotate(90 * number, expand=False) for number in range(5)]
    turned[0].save(tmp_path / "run.gif", save_all=True, append_images=turned[1:])
    upload(page, tmp_path / "run.gif")
    status(page, "run.gif: 100 × 60, 3 frames (the 2 after them are left out).")
    page.get_by_text("Frame 1 / 3").wait_for()

    (tmp_path / "torn.png").write_bytes((tmp_path / "one.png").read_bytes()[:60])
    upload(page, tmp_path / "torn.png")
    status(page, "torn.png cannot be read")
    assert "/" not in page.locator("#status").inner_text() and "Traceback" not in page.content()
    page.get_by_role("heading", name="run").wait_for()  # what was there stays
    assert not any(files_below(folder).values())


def ask_further(page, question, answer):
    page.get_by_label("Answer").fill(answer)
    page.get_by_label("Further question").fill(question)
    page.get_by_role("button", name="Ask further").click()


def test_further_questions_follow_the_first(page, server, calls, image, tmp_path):
    _, views, _, _ = server
    image.save(tmp_path / "run.gif", save_all=True, append_images=[image.rotate(90)])
    upload(page, tmp_path / "run.gif")
    page.get_by_role("heading", name="run", exact=True).wait_for()
    segment(page, answer="[SEG]")  # frame by frame
    page.get_by_role("slider", name="Threshold").wait_for()
    ask_further(page, "And the catheter?", "[SEG]")
    status(page, "Frame by frame there are no further questions: segment the clip as a whole.")
    image.save(tmp_path / "talk.png")
    upload(page, tmp_path / "talk.png")
    page.get_by_role("heading", name="talk", exact=True).wait_for()
    ask_further(page, "And the catheter?", "[SEG]")
    status(page, "Segment something first: further questions follow that one.")

    segment(page, prompt="What is this?", answer="A picture.")
    status(page, "The answer holds no [SEG], so there is no mask.")
    ask_further(page, "Segment <both>.", TWO)
    page.get_by_role("checkbox", name="catheter").wait_for()
    turns = ["What is this?", "A picture.", "Segment <both>.", "The catheter [SEG] and the vessel [SEG]."]
    page.locator("#talk").get_by_text("Segment <both>.").wait_for()
    assert [" ".join(line.split()) for line in page.locator("#talk p").all_inner_texts()] == turns
    (view,) = (view for _, view in views._of_page.values() if view.clip.name == "talk")
    expected = painted(image, view.chats["tiny"].result, 100, legend(view))
    assert np.array_equal(drawn(page), expected) and (np.asarray(expected) != np.asarray(image)).any()

    ask_further(page, "What is <image>?", "No.")
    status(page, "All images of this conversation have their places in earlier turns")
    assert page.locator("#talk p").count() == 4
    ask_further(page, "And now?", "One more: [SEG].")
    page.get_by_role("checkbox", name="object 1").wait_for()
    assert page.locator("#talk p").count() == 6 and calls == 3 * ["image"]
    page.get_by_role("tab", name="Generated clip").click()
    page.get_by_role("button", name="Open this clip").click()
    page.get_by_role("heading", name=f"h1_v{FIRST_CLIP:04d}").wait_for()
    assert page.locator("#talk p").count() == 0


def test_faults_are_lines_in_the_page(page, calls):
    segment(page, prompt=" ")
    status(page, "There is no prompt: write what to segment.")
    segment(page, prompt="What is <IMG_CONTEXT>?")
    page.locator("#status .fault").get_by_text("<IMG_CONTEXT>").wait_for()
    segment(page, answer="There is <b>none</b>.")
    status(page, "The answer holds no [SEG], so there is no mask.")
    page.get_by_text("There is <b>none</b>.").last.wait_for()
    page.get_by_text("No mask: the answer holds no [SEG].").wait_for()
    page.get_by_label("Number").fill("-2")
    page.get_by_role("button", name="Open this clip").click()
    page.locator("#status .fault").wait_for()
    assert "Traceback" not in page.content() and len(calls) == 1 + 16


def test_a_page_that_is_closed_is_forgotten(browser, server):
    address, views, _, _ = server
    wait_for(lambda: not len(views))
    page = opened(browser, address)
    source = page.locator("sa2va-viewer").get_attribute("src")
    assert len(views) == 1 and page.request.get(f"{address}{source}").ok
    page.close()
    wait_for(lambda: not len(views))
    other = opened(browser, address)
    gone = other.request.get(f"{address}{source}")
    assert gone.status == 404 and gone.json() == {"detail": "This is shown no more: open it again."}
    other.close()


def test_nothing_can_be_loaded_from_elsewhere(browser, server):
    """By a policy that the browser enforces; and a request would be seen."""
    page = opened(browser, server[0])
    fetch = "url => fetch(url).then(() => 'loaded', () => 'refused')"
    with page.expect_event("console", lambda message: "Content Security Policy" in message.text):
        assert page.evaluate(fetch, "http://example.invalid/a") == "refused"
    assert page.evaluate(fetch, server[0] + "config") == "loaded"
    page.close()
    other, seen = browser.new_page(), []
    other.on("request", lambda request: seen.append(request.url))
    other.set_content('<img src="http://example.invalid/b.png">')
    wait_for(lambda: other.evaluate("document.images[0].complete"))
    assert seen == ["http://example.invalid/b.png"]
    # A site elsewhere whose name points here is not served.
    assert other.request.get(server[0], headers={"Host": "elsewhere.example"}).status == 400
    other.close()


def test_two_models_stand_side_by_side_on_a_phone_below_each_other(browser, network, tmp_path, calls):
    models = [Asked("tiny", *network), Asked("other", tiny_sa2va(image_size=128, seed=1)[0].eval(), network[1])]
    with served(models, tmp_path) as (address, views, asked):
        page = opened(browser, address)
        segment(page, answer=TWO)
        page.get_by_role("heading", name="other").wait_for()
        page.get_by_role("checkbox", name="catheter").last.wait_for()
        assert len(calls) == 32
        (view,) = (view for _, view in views._of_page.values())
        colours = legend(view)
        places = [page.locator("sa2va-viewer canvas").nth(number).bounding_box() for number in range(2)]
        assert places[0]["y"] == places[1]["y"] and places[0]["x"] + places[0]["width"] < places[1]["x"]
        page.get_by_role("slider", name="Threshold").press("ArrowLeft")
        pictures = [drawn(page, number) for number in range(2)]
        for picture, found in zip(pictures, view.results.values(), strict=True):
            assert np.array_equal(picture, painted(view.clip.frames[8], found[8], 99, colours))
        assert (pictures[0] != pictures[1]).any()
        for width in (400, 320):
            page.set_viewport_size({"width": width, "height": 800})
            assert page.evaluate("document.documentElement.scrollWidth") <= width
        places = [page.locator("sa2va-viewer canvas").nth(number).bounding_box() for number in range(2)]
        assert places[0]["x"] == places[1]["x"] and places[0]["y"] + places[0]["height"] < places[1]["y"]
        check_closed(page, address, asked)
