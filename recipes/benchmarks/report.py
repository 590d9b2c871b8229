"""
How large a report of many samples is, how long it takes to draw, and how long a browser takes to open it, sort its
table and move its threshold (Debian's chromium, with Playwright). The samples are made up: no model runs.

    python recipes/benchmarks/report.py --samples 1000 --size 512 --output_dir outputs/report
"""

import argparse
import resource
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import numpy as np
import pandas as pd
from PIL import Image
from playwright.sync_api import Page, sync_playwright
from scipy import ndimage

from sa2va_trl.evaluation.gallery import KeptExtremes
from sa2va_trl.evaluation.page import REPORT
from sa2va_trl.evaluation.report import evaluation_report
from sa2va_trl.evaluation.results import aggregate, score
from sa2va_trl.files import write_json
from sa2va_trl.scripts.reporting import about, hard_runs, save_report


# From a click or a move until all that it sets off is done and the next frame is out.
SORT = "document.querySelector('#samples thead th:nth-child(5) button').click()"
MOVE = """{
    const slider = document.querySelector('input[type=range]');
    slider.value = slider.value < 0.5 ? 0.7 : 0.3;
    slider.dispatchEvent(new Event('input', { bubbles: true }));
}"""
TIMED = "() => new Promise(done => {{ const start = performance.now(); {}; requestAnimationFrame(() => setTimeout(() => done(performance.now() - start))) }})"  # noqa: E501


def made_up(count: int, size: int) -> Iterator[tuple[dict, np.ndarray]]:
    """Rows of 60 frames a patient and 20 a clip, with a curved line to find, and probabilities of all kinds."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:size, :size] / size
    noises = [ndimage.gaussian_filter(rng.normal(0, 1, (size, size)), 3) * 3 for _ in range(8)]
    for number in range(count):
        target = np.abs(y - 0.5 - 0.2 * np.sin(6 * x + number)) < 0.01 + 0.005 * (number % 4)
        soft, quality = ndimage.gaussian_filter(target.astype(np.float32), 2), rng.random()
        noise = noises[number % len(noises)]
        probabilities = np.clip(1.4 * quality * soft + 0.3 * (1 - quality) * noise + 0.05, 0, 1)
        grey = np.clip(120 + 25 * np.roll(noise, number, 0) - 60 * soft, 0, 255).astype(np.uint8)
        yield (
            {
                "sample_id": f"clip{number // 20:03}_{number % 20:02}",
                "patient_id": f"patient{number // 60:02}",
                "video_id": f"clip{number // 20:03}",
                "frame_index": number % 20,
                "image": Image.fromarray(grey),
                "mask": Image.fromarray(255 * target.astype(np.uint8)),
                "phrase": "line",
            },
            probabilities[None].astype(np.float32),
        )


def timed(page: Page, action: str, times: int = 5) -> float:
    """Milliseconds of an action in the page, the median of several."""
    return median(page.evaluate(TIMED.format(action)) for _ in range(times))


def browse(file: Path) -> dict[str, float]:
    """Seconds until the page is there and can be used, and milliseconds of what one does in it."""
    options = {"executable_path": shutil.which("chromium"), "args": ["--no-sandbox"]}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(**options)
        # Playwright waits with `eval`, which the page forbids.
        page = browser.new_page(viewport={"width": 1280, "height": 900}, bypass_csp=True)
        start = time.perf_counter()
        page.goto(file.resolve().as_uri())
        page.evaluate("() => new Promise(requestAnimationFrame)")
        found = {"open_seconds": time.perf_counter() - start}
        page.wait_for_function("document.querySelectorAll('.picture output:empty').length === 0")
        found["all_drawn_seconds"] = time.perf_counter() - start
        found["sort_milliseconds"] = timed(page, SORT)
        page.locator(".gallery").scroll_into_view_if_needed()
        found["threshold_milliseconds"] = timed(page, MOVE)
        browser.close()
    return found


def seconds_of(call: Callable[[], None]) -> tuple[float, float]:
    """Seconds on the clock and of the processor."""
    clock, processor = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - clock, time.process_time() - processor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/report"))
    args = parser.parse_args()

    extremes, samples = KeptExtremes(12), []
    for row, probabilities in made_up(args.samples, args.size):
        samples.append(score(row, probabilities, 0.5))
        extremes(row, probabilities, samples[-1])
    samples = pd.DataFrame(samples)
    results = {}
    for how in ("embedded", "beside"):
        folder = args.output_dir / how

        def draw(folder: Path = folder, how: str = how) -> None:
            gallery = {"Worst": extremes.worst, "Best": extremes.best}
            report = evaluation_report(aggregate(samples), samples, gallery, 0.5, hard_runs(samples))
            save_report(folder, "Evaluation", "made up", report, about([]), pictures=how)

        clock, processor = seconds_of(draw)
        results[how] = {
            "megabytes": (folder / REPORT).stat().st_size / 1e6,
            "draw_seconds": clock,
            "draw_processor_seconds": processor,
            **browse(folder / REPORT),
        }
    results["peak_megabytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    write_json(args.output_dir / "report.json", {"samples": args.samples, "size": args.size, "results": results})
    for how in ("embedded", "beside"):
        print(how, ", ".join(f"{name} {value:.2f}" for name, value in results[how].items()))


if __name__ == "__main__":
    main()
