"""
How long one waits with `sa2va-trl app`, in a real browser (Debian's chromium, with Playwright): from the command to
the page and to the first masks of a generated clip, and from a move of the threshold to the picture that is drawn
anew, on a picture of 512 x 512 pixels. Options that are not known here go to `sa2va-trl app`.

    python recipes/benchmarks/app.py --output_dir outputs/app
    python recipes/benchmarks/app.py --model_name_or_path BASE --answer "Sure, [SEG]."
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from playwright.sync_api import Page, sync_playwright

from sa2va_trl.app.clips import generated_clip
from sa2va_trl.files import write_json


# Of each `input` event of the slider: until it has been dealt with, and until the frame with the new picture is out.
WATCH = """slider => {
    window.redraws = [];
    slider.addEventListener("input", event => {
        const after = new MessageChannel();
        const handled = performance.now() - event.timeStamp;
        after.port1.onmessage = () => window.redraws.push([handled, performance.now() - event.timeStamp]);
        requestAnimationFrame(() => after.port2.postMessage(null));
    });
}"""


def segment(page: Page, answer: str) -> None:
    """Ask what the page asks for by itself, and wait for masks."""
    page.get_by_role("button", name="More").click()
    page.get_by_label("Answer").fill(answer)
    page.get_by_role("button", name="Segment", exact=True).click()
    page.get_by_role("link", name="Mask (PNG)").first.wait_for()


def wait_times(page: Page, address: str, start: float, answer: str) -> dict[str, float]:
    """Seconds from the command on."""
    found = {"served": time.perf_counter() - start}
    page.goto(address)
    page.locator("sa2va-viewer canvas[aria-label]").wait_for()
    found["page"] = time.perf_counter() - start
    segment(page, answer)
    page.get_by_role("slider", name="Threshold").wait_for()
    found["masks"] = time.perf_counter() - start
    return found


def redraw_times(page: Page, address: str, size: int, moves: int, answer: str, folder: Path) -> dict[str, float]:
    """Milliseconds from a move of the slider."""
    generated_clip(hospital=1, number=0, size=size).frames[8].save(folder / "picture.png")
    page.goto(address)
    page.get_by_role("tab", name="Your file").click()
    page.locator("input[type=file]").set_input_files(folder / "picture.png")
    page.get_by_role("heading", name="picture").wait_for()
    segment(page, answer)
    slider = page.get_by_role("slider", name="Threshold")
    slider.evaluate(WATCH)
    for number in range(moves):
        slider.press("ArrowRight" if number % 20 < 10 else "ArrowLeft")
        page.wait_for_function("count => window.redraws.length > count", arg=number)
    handled, drawn = zip(*page.evaluate("window.redraws"), strict=True)
    return {
        "size": size,
        "moves": moves,
        "handled_median": median(handled),
        "handled_max": max(handled),
        "drawn_median": median(drawn),
        "drawn_max": max(drawn),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/app"), help="where app.json goes")
    parser.add_argument("--answer", default="", help="taken as given, where the model does not write one with [SEG]")
    parser.add_argument("--size", type=int, default=512, help="side of the picture")
    parser.add_argument("--moves", type=int, default=60, help="of the slider")
    args, others = parser.parse_known_args()

    start = time.perf_counter()
    line = [sys.executable, "-m", "sa2va_trl.cli", "app", "--port", "0", *others]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as process, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        try:
            address = next(filter(None, (re.match(r"http://\S+", line) for line in process.stdout)))[0]
            page = browser.new_page(viewport={"width": 1280, "height": 900})
            page.set_default_timeout(120_000)
            seconds = wait_times(page, address, start, args.answer)
            with tempfile.TemporaryDirectory() as folder:
                milliseconds = redraw_times(page, address, args.size, args.moves, args.answer, Path(folder))
        finally:
            browser.close()
            process.terminate()
    write_json(args.output_dir / "app.json", {"seconds": seconds, "redraw_milliseconds": milliseconds})
    for name, value in {**seconds, **milliseconds}.items():
        print(f"{name:<16}{value:8.2f}")


if __name__ == "__main__":
    main()
