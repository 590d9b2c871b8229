"""
Whether anything got slower: what tasks do most, in this checkout and in an earlier one, in turns. A process of each
stays, and one works at a time. Seconds are of the processor, of which other processes of the machine take less than of
the clock; a ratio is of two runs beside each other, and its median is told, and the ratio of the fastest runs, which
others have disturbed least.

    git worktree add --detach ../before COMMIT
    OMP_NUM_THREADS=1 python recipes/benchmarks/checkouts.py --before ../before

The cases use what both checkouts have.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median


HERE = Path(__file__).resolve().parents[2]
SIDES = ("before", "after")


class Stopwatch:
    """Processor seconds of each training step but the first ones, which warm up."""

    def __init__(self, callback: type, warm_up: int = 2):
        class Steps(callback):
            def on_step_end(_, args, state, control, **kwargs):
                self.ends.append(time.process_time())

        self.kind, self.warm_up, self.ends = Steps, warm_up, []

    def seconds(self) -> float:
        return self.ends[-1] - self.ends[self.warm_up - 1]


def segment(folder: Path) -> Callable[[], float]:
    """Ten answers that are given, on an image of 512 x 512."""
    from sa2va_trl import tiny_sa2va
    from sa2va_trl.data import synthetic_dataset

    model, processor = tiny_sa2va()
    model.eval()
    image = synthetic_dataset(num_videos=1, frames_per_video=1, size=512)[0]["image"]

    def run():
        start = time.process_time()
        for _ in range(10):
            masks = model.segment(image=image, text="Vessels, please.", processor=processor, answer="[SEG]").masks
            assert masks.shape[-2:] == (512, 512)
        return time.process_time() - start

    return run


def training(folder: Path, kind: str, steps: int, pairs: bool, **options) -> Callable[[], float]:
    from transformers import PrinterCallback, TrainerCallback

    import sa2va_trl
    from sa2va_trl.data import synthetic_dataset

    rows = synthetic_dataset(num_videos=4, frames_per_video=4, size=512)
    if pairs:
        model, processor = sa2va_trl.tiny_sa2va()
        rows = sa2va_trl.build_preferences(rows, model, processor, rejected="dilated", progress=False)

    def run():
        model, processor = sa2va_trl.tiny_sa2va()
        watch = Stopwatch(TrainerCallback)
        trainer = getattr(sa2va_trl, f"{kind}Trainer")(
            model=model,
            args=getattr(sa2va_trl, f"{kind}Config")(
                str(folder / kind),
                max_steps=steps + watch.warm_up,
                per_device_train_batch_size=2,
                gradient_checkpointing=False,
                use_cpu=True,
                logging_strategy="no",
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                **options,
            ),
            train_dataset=rows,
            processing_class=processor,
            callbacks=[watch.kind()],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        return watch.seconds()

    return run


def sft(folder: Path) -> Callable[[], float]:
    """Six steps of two rows, LoRA, 512 x 512 pixels."""
    return training(folder, "SegSFT", 6, False, cache_features="off")


def dpo(folder: Path) -> Callable[[], float]:
    """Thirty steps of two pairs from cached features."""
    return training(folder, "SegDPO", 30, True, cache_features="on", cache_dir=str(folder / "features"))


def collator(folder: Path) -> Callable[[], float]:
    """Ten rows of 512 x 512 on their way to a published InternVL model of 1024 pixels."""
    from transformers import InternVLConfig

    from sa2va_trl import Sa2VAProcessor
    from sa2va_trl.data import synthetic_dataset
    from sa2va_trl.data.collator import SegCollator
    from sa2va_trl.data.stored import plain_rows
    from sa2va_trl.models.pixels import published_image_processor
    from sa2va_trl.models.tiny import tiny_tokenizer

    images = published_image_processor(InternVLConfig(vision_config={"image_size": 448}))
    images.min_patches = images.max_patches = 6
    collate = SegCollator(Sa2VAProcessor(images, tiny_tokenizer(), grounding_image_size=1024))
    rows = plain_rows(synthetic_dataset(num_videos=1, frames_per_video=1, size=512))

    def run():
        start = time.process_time()
        for _ in range(10):
            collate([rows[0]])
        return time.process_time() - start

    return run


def metrics(folder: Path) -> Callable[[], float]:
    """All metrics of six pairs of 512 x 512."""
    import numpy as np
    from scipy import ndimage

    from sa2va_trl.data import synthetic_dataset
    from sa2va_trl.metrics import calibration_metrics, mask_metrics

    noise, pairs = np.random.default_rng(0), []
    for row in synthetic_dataset(num_videos=6, frames_per_video=1, size=512):
        target = np.asarray(row["mask"]) > 0
        shaken = ndimage.gaussian_filter(target + 0.5 * noise.normal(size=target.shape), 2)
        pairs.append((shaken.clip(0, 1).astype(np.float32), target))

    def run():
        start = time.process_time()
        for probabilities, target in pairs:
            mask_metrics(probabilities > 0.5, target)
            calibration_metrics(probabilities, target)
        return time.process_time() - start

    return run


def evaluate(folder: Path) -> Callable[[], float]:
    """`sa2va-trl evaluate` of 60 generated rows, report and all."""
    from unittest.mock import patch

    from sa2va_trl.scripts.evaluate import main

    generated = '{"train_videos": 1, "validation_videos": 1, "test_videos": 10, "frames_per_video": 6}'
    line = ["evaluate", "--model_name_or_path", "tiny", "--dataset_name", "synthetic", "--synthetic", generated]

    def run():
        start = time.process_time()
        # (Beside no other evaluation, which it would read.)
        output = Path(tempfile.mkdtemp(dir=folder)) / "evaluation"
        with patch.object(sys, "argv", [*line, "--output_dir", str(output)]):
            main()
        return time.process_time() - start

    return run


CASES = {case.__name__: case for case in (segment, sft, dpo, collator, metrics, evaluate)}


def peak(reset: bool = False) -> int:
    """Bytes that this process held at most since the last reset."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(lines["VmHWM"].split()[0])


def serve(checkout: Path) -> None:
    """Run the cases that are named on lines of the input; what they took goes out, a line each."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print does not come between
    import sa2va_trl

    if not Path(sa2va_trl.__file__).is_relative_to(checkout):
        raise RuntimeError(f"sa2va_trl comes from {sa2va_trl.__file__}, not from {checkout}.")
    with tempfile.TemporaryDirectory() as folder:
        runs = {}
        for line in sys.stdin:
            name = line.strip()
            if name not in runs:
                runs[name] = CASES[name](Path(folder))
                runs[name]()  # warms up
            peak(reset=True)
            seconds = runs[name]()
            print(json.dumps({"seconds": seconds, "peak_bytes": peak()}), file=out, flush=True)


class Checkout:
    """A process that runs cases with the package of a checkout."""

    def __init__(self, folder: Path):
        line = [sys.executable, str(Path(__file__).resolve()), "--serve", str(folder)]
        environment = os.environ | {"PYTHONPATH": str(folder)}
        self.process = subprocess.Popen(
            line, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self.folder = folder

    def run(self, case: str) -> dict[str, float]:
        self.process.stdin.write(case + "\n")
        self.process.stdin.flush()
        if not (answer := self.process.stdout.readline()):
            raise RuntimeError(f"{case} failed in {self.folder}; see: --serve {self.folder} <<< {case}")
        return json.loads(answer)


def compare(before: Callable[[], dict], after: Callable[[], dict], repeats: int) -> dict:
    """Medians of runs in turns and back again, highest memory, and what the later ones take of the earlier ones'."""
    pair, runs = dict(zip(SIDES, (before, after), strict=True)), {name: [] for name in SIDES}
    for repeat in range(repeats):
        for name in SIDES[:: 1 if repeat % 2 == 0 else -1]:
            runs[name].append(pair[name]())
    seconds = {name: [run["seconds"] for run in found] for name, found in runs.items()}
    peaks = {name: max(run["peak_bytes"] for run in found) for name, found in runs.items()}
    ratios = [later / earlier for earlier, later in zip(seconds["before"], seconds["after"], strict=True)]
    return {
        **{name: {"seconds": median(seconds[name]), "peak_bytes": peaks[name]} for name in SIDES},
        "ratio": median(ratios),
        "ratio_of_fastest": min(seconds["after"]) / min(seconds["before"]),
        "ratios": ratios,
        "runs": runs,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, help="the earlier checkout")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--repeats", type=int, default=5, help="pairs of runs")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/checkouts"), help="where checkouts.json goes")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve is not None:
        serve(args.serve.resolve())
        return
    if args.before is None or not (args.before / "sa2va_trl").is_dir():
        parser.error(f"--before must be a checkout of this repository, got {args.before}")
    from sa2va_trl.files import write_json

    checkouts = Checkout(args.before.resolve()), Checkout(HERE)
    results = {}
    for case in args.cases:
        results[case] = found = compare(*(partial(checkout.run, case) for checkout in checkouts), args.repeats)
        sides = (f"{each['seconds']:8.3f} s, {each['peak_bytes'] / 2**30:.2f} GiB" for each in map(found.get, SIDES))
        spread = f"{min(found['ratios']):.3f} to {max(found['ratios']):.3f}"
        print(
            f"{case:<10}{' before, '.join(sides)} after: {found['ratio']:.3f} ({spread}), of the fastest "
            f"{found['ratio_of_fastest']:.3f}",
            flush=True,
        )
        write_json(args.output_dir / "checkouts.json", {"results": results})
    for checkout in checkouts:
        checkout.process.stdin.close()
        checkout.process.wait()


if __name__ == "__main__":
    main()
