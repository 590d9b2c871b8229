"""
Rows a second on one core on the way from files to a batch, with what takes the time; the collator's share of a step of
a large model; and what processes that read ahead give, and take of memory.

    python recipes/benchmarks/data.py
    python recipes/benchmarks/data.py --sizes 512 --tiles 13 --tflops 300

Pixels are those of a published InternVL model: a grid of tiles of 448 pixels with the whole beside it, and SAM 2's
square of 1024. The step's operations are counted (`FlopCounterMode`), and its seconds are what a GPU that reaches
`--tflops` would take: no GPU is timed here.
"""

import argparse
import cProfile
import pstats
import runpy
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from torch.utils.data import DataLoader, Dataset

from sa2va_trl import Sa2VAProcessor
from sa2va_trl.data import synthetic_dataset
from sa2va_trl.data.augment import Augmentation
from sa2va_trl.data.collator import SegCollator, stack_masks
from sa2va_trl.data.layout import normalize_row
from sa2va_trl.data.stored import iter_undecoded, plain_rows
from sa2va_trl.files import write_json
from sa2va_trl.models.pixels import published_image_processor
from sa2va_trl.models.tiny import tiny_tokenizer
from sa2va_trl.trainers.step_bytes import Batch, step_flops


_sizes, _clocks = (runpy.run_path(str(Path(__file__).with_name(name))) for name in ("memory.py", "inference.py"))
published, skeleton = _sizes["published"], _sizes["skeleton"]
peak_memory = _clocks["memory"]
AUGMENTATION = {"flip": 0.5, "rotation": 15, "scale": 0.1, "shift": 0.05, "gamma": 0.3, "contrast": 0.2}
ANSWERS = 10  # tokens


class Rows(Dataset):
    """Rows of a dataset over and over."""

    def __init__(self, rows, length: int):
        self.rows, self.length = rows, length

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        return self.rows[index % len(self.rows)]


def processor_of(tiles: int, side: int) -> Sa2VAProcessor:
    """Of a published InternVL model, with so many tiles of every picture."""
    images = published_image_processor(published()["Sa2VA-InternVL3-8B"])
    images.min_patches = images.max_patches = max(1, tiles - 1)
    return Sa2VAProcessor(images, tiny_tokenizer(), grounding_image_size=side)


def taken(call: Callable[[], object], repeats: int) -> dict[str, float]:
    """Median of processor time, in which other processes do not count, and the most that is added to this one."""
    call()
    found, extra = [], []
    for _ in range(repeats):
        before, _ = peak_memory(reset=True)
        start = time.process_time()
        call()
        found.append(time.process_time() - start)
        extra.append(peak_memory()[1] - before)
    return {"seconds": median(found), "extra_bytes": max(extra)}


def parts(size: int, processor: Sa2VAProcessor, repeats: int) -> dict[str, dict[str, float]]:
    """Seconds and bytes of a row on one core: whole, and each part by itself."""
    data = synthetic_dataset(num_videos=1, frames_per_video=1, size=size)
    stored = next(iter_undecoded(data))[0]
    plain, collator = plain_rows(data), SegCollator(processor)
    moving = SegCollator(processor, augmentation=Augmentation(**AUGMENTATION))
    row = normalize_row(plain[0])
    blocks = processor.tiles(row["images"])[1]
    chat = [
        {"role": "user", "content": "Please segment the blood vessels."},
        {"role": "assistant", "content": "[SEG]"},
    ]
    calls = {
        "whole": lambda: collator([plain[0]]),
        "whole, augmented": lambda: moving([plain[0]]),
        "decode picture and mask": lambda: normalize_row(stored),
        "augment": lambda: moving.augment(stored, row["images"], row["masks"]),
        "tiles": lambda: processor.tiles(row["images"]),
        "pixels of SAM 2": lambda: processor.grounding_inputs(row["images"]),
        "masks": lambda: (stack_masks(row["masks"], None), stack_masks(row["masks"], collator.mask_size)),
        "prompt": lambda: processor.encode_chat(chat, blocks),
    }
    return {name: taken(call, repeats) for name, call in calls.items()}


def profile(size: int, processor: Sa2VAProcessor, repeats: int, most: int = 8) -> list[dict]:
    """The functions that a row spends most time in themselves."""
    plain, collator = (
        plain_rows(synthetic_dataset(num_videos=1, frames_per_video=1, size=size)),
        SegCollator(processor),
    )
    watch = cProfile.Profile()
    with watch:
        for _ in range(repeats):
            collator([plain[0]])
    stats = pstats.Stats(watch).stats
    own = sorted(((value[2] / repeats, key) for key, value in stats.items()), reverse=True)[:most]
    return [{"seconds": each, "function": f"{Path(file).name}: {name}"} for each, (file, _, name) in own]


def _memory(pid: int) -> int:
    """Bytes of a process that it shares with no other."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith(("Private_Clean", "Private_Dirty")))


def reading(size: int, processor: Sa2VAProcessor, workers: int, rows: int) -> dict[str, float]:
    """Rows a second by the clock from a loader with so many processes, and what one of them takes."""
    plain = plain_rows(synthetic_dataset(num_videos=2, frames_per_video=1, size=size))
    loader = DataLoader(Rows(plain, rows), collate_fn=SegCollator(processor), num_workers=workers)
    batches = iter(loader)
    next(batches)
    start, count, taken = time.perf_counter(), 0, 0
    for _ in batches:
        count += 1
        if count == rows // 2 and workers and Path("/proc/self/smaps_rollup").exists():
            taken = max(_memory(process.pid) for process in batches._workers)
    return {"rows_per_second": count / (time.perf_counter() - start), "bytes_of_a_worker": taken}


def share(args: argparse.Namespace, tile_tokens: int, row: float) -> dict:
    """How many cores keep up with steps of the large model, where a row takes one of them `row` seconds."""
    tokens = args.tiles * tile_tokens + 60
    config = published()[args.model]
    batch = Batch(1, tokens, args.tiles * tile_tokens, answers=ANSWERS)
    tflop = step_flops(skeleton(config, "stage1"), batch, autocast=torch.bfloat16) / 1e12
    print(f"\nA row of {tokens} tokens is {tflop:.1f} TFLOP for {args.model} with LoRA, without recomputation:")
    cores = {}
    for reached in args.tflops:
        second = tflop / reached
        cores[f"{reached:g}"] = row / second
        print(
            f"  at {reached:g} TFLOP/s {1 / second:.1f} rows a second: {row / second:.2f} cores keep up; "
            f"without workers the GPU waits {100 * row / (row + second):.0f} % of the time"
        )
    return {"tokens": tokens, "tflop": tflop, "cores": cores}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/data"))
    parser.add_argument("--sizes", type=int, nargs="+", default=[512, 1024], help="sides of pictures, in pixels")
    parser.add_argument("--tiles", type=int, default=7)
    parser.add_argument("--grounding_image_size", type=int, default=1024, help="side of SAM 2's square, in pixels")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--workers", type=int, nargs="*", default=[0, 1, 2], help="processes that read ahead")
    parser.add_argument("--rows", type=int, default=40, help="that each of these reads")
    parser.add_argument(
        "--model", default="Sa2VA-InternVL3-8B", help="an InternVL model of docs/memory.md; none leaves it out"
    )
    parser.add_argument("--tflops", type=float, nargs="+", default=[100, 200, 400], help="that a GPU reaches")
    args = parser.parse_args()
    torch.set_num_threads(1)
    processor = processor_of(args.tiles, args.grounding_image_size)
    result = {"about": {name: value for name, value in vars(args).items() if name != "output_dir"}}
    result["about"]["torch"] = torch.__version__
    for size in args.sizes:
        found = parts(size, processor, args.repeats)
        rate = 1 / found["whole"]["seconds"]
        result[str(size)] = {
            key: {name: part[key] for name, part in found.items()} for key in ("seconds", "extra_bytes")
        }
        result[str(size)]["rows_per_second_a_core"] = rate
        result[str(size)]["profile"] = profile(size, processor, args.repeats)
        result[str(size)]["loaders"] = {
            str(workers): reading(size, processor, workers, args.rows) for workers in args.workers
        }
        print(f"\n{size} x {size} pixels, {args.tiles} tiles, {rate:.1f} rows a second and core:")
        for name, part in found.items():
            print(f"  {1e3 * part['seconds']:8.1f} ms{part['extra_bytes'] / 2**20:8.0f} MiB  {name}")
        print("  most time in")
        for line in result[str(size)]["profile"]:
            print(f"  {1e3 * line['seconds']:8.1f} ms  {line['function']}")
        for workers, read in result[str(size)]["loaders"].items():
            taken = f", {read['bytes_of_a_worker'] / 2**20:.0f} MiB each" if int(workers) else ""
            print(f"  {read['rows_per_second']:8.1f} rows a second with {workers} workers{taken}")
    if args.model != "none":
        slowest = max(result[str(size)]["seconds"]["whole"] for size in args.sizes)
        result["step"] = share(args, processor.image_seq_length, slowest)
    write_json(args.output_dir / "data.json", result)


if __name__ == "__main__":
    main()
