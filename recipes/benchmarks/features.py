"""
What frozen features save: an epoch of `trainable: head` from the cache and without it, of training on all rows and on
hard samples, and the mask head's forward and backward passes alone, in turn, on the tiny model; how fast one process
reads; then what the features of a large model take, from its sizes. Seconds are of this process's processor time,
which a busy machine changes less than the clock on the wall; with workers, whose time it does not see, of the latter.
Bytes are what an epoch adds to the process at its peak.

    python recipes/benchmarks/features.py --output_dir outputs/features
"""

import argparse
import runpy
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import InternVLConfig, InternVLVisionConfig, Qwen2Config, TrainerCallback

from sa2va_trl import (
    HardSampleConfig,
    HardSampleTrainer,
    Sa2VAConfig,
    Sa2VAForConditionalGeneration,
    SegSFTConfig,
    SegSFTTrainer,
    tiny_sa2va,
)
from sa2va_trl.data import synthetic_dataset
from sa2va_trl.features.rows import feature_bytes
from sa2va_trl.features.store import FeatureStore
from sa2va_trl.files import write_json
from sa2va_trl.models.checkpoints import checkpoint_folder, read_config
from sa2va_trl.models.grounding import whole_weights
from sa2va_trl.models.outputs import SegFeatures


memory = runpy.run_path(str(Path(__file__).with_name("inference.py")))["memory"]


class Epochs(TrainerCallback):
    """Seconds of each epoch, without what is before the first and after the last step, and the bytes that it adds."""

    def __init__(self, clock: Callable[[], float]):
        self.clock, self.seconds, self.extra_bytes = clock, [], []

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.before, _ = memory(reset=True)
        self.start = self.clock()

    def on_epoch_end(self, args, state, control, **kwargs):
        self.seconds.append(self.clock() - self.start)
        self.extra_bytes.append(memory()[1] - self.before)


def epoch(
    mode: str, data, size: int, tiles: int, batch_size: int, workers: int, folder: Path, hard: bool = False
) -> tuple[float, float, int]:
    """
    Seconds of the second epoch of a run, and of reading its batches alone, and bytes of the former. (The first warms
    up; features are computed before it.) On hard samples, every other row is hard, so that an epoch has as many rows
    as the data set.
    """
    model, processor = tiny_sa2va(image_size=size, max_patches=tiles)
    clock = time.perf_counter if workers else time.process_time
    epochs = Epochs(clock)
    trainer, config, given = SegSFTTrainer, SegSFTConfig, {}
    if hard:
        trainer, config = HardSampleTrainer, HardSampleConfig
        dice = [0.9 if row % 2 else 0.5 for row in range(len(data))]
        given = {"scores": pd.DataFrame({"sample_id": data["sample_id"], "dice": dice})}
    run = trainer(
        model=model,
        args=config(
            str(folder / mode),
            trainable="head",
            lm_weight=0.0,
            num_points=0,
            num_train_epochs=2,
            per_device_train_batch_size=batch_size,
            gradient_checkpointing=False,
            dataloader_num_workers=workers,
            dataloader_persistent_workers=workers > 0,
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            cache_features=mode,
            cache_dir=None if mode == "off" else str(folder / "cache"),
        ),
        train_dataset=data,
        processing_class=processor,
        callbacks=[epochs],
        **given,
    )
    run.train()
    start = clock()
    for _ in run.get_train_dataloader():
        pass
    return epochs.seconds[-1], clock() - start, epochs.extra_bytes[-1]


def head_alone(rows: int, size: int, batch_size: int, clock: Callable[[], float]) -> tuple[float, int]:
    """Seconds and bytes of the mask head's passes forward and backward over as many rows, of features in memory."""
    model, _ = tiny_sa2va(image_size=size)
    model.requires_grad_(False).train()
    for part in (model.text_hidden_fcs, model.grounding_encoder.mask_decoder):
        part.requires_grad_(True)
    features = made_up(model, batch_size)

    def step():
        model.decode_masks(features)[0].sum().backward()
        model.zero_grad()

    step()
    before, _ = memory(reset=True)
    start = clock()
    for _ in range(rows // batch_size):
        step()
    return clock() - start, memory()[1] - before


def large_rows(config: Sa2VAConfig, folder: Path, count: int = 8) -> float:
    """Rows a second that one process reads of a large model's in bfloat16, from the page cache, in batches of one."""
    side, width = config.grounding_config.image_size, config.grounding_config.hidden_dim
    one, kinds = torch.zeros(1, dtype=torch.long), (torch.bfloat16, torch.bfloat16, torch.float32)
    levels = [
        torch.ones(1, width, side // s, side // s, dtype=kind) for s, kind in zip((4, 8, 16), kinds, strict=True)
    ]
    state = torch.ones(1, config.text_config.hidden_size, dtype=torch.bfloat16)
    store = FeatureStore(folder, {"rows": "made up"})
    keys = {str(row): ([{}], 0) for row in range(count)}
    store.build(keys, lambda rows: (SegFeatures(state, one, one, one, tuple(levels)), [1], [1]), 1, progress=False)
    rates = []
    for _ in range(3):
        start = time.process_time()
        for key in keys:
            store.read([key])
        rates.append(count / (time.process_time() - start))
    return statistics.median(rates)


def internvl3_8b() -> Sa2VAConfig:
    """The sizes of Sa2VA-InternVL3-8B: InternViT-300M, Qwen2.5-7B and SAM 2 with Hiera-Large."""
    text = {"hidden_size": 3584, "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4}
    vision = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
    return Sa2VAConfig(
        vlm_config=InternVLConfig(
            vision_config=InternVLVisionConfig(**vision, image_size=448, attention_bias=True),
            text_config=Qwen2Config(**text, intermediate_size=18944, vocab_size=151679),
        )
    )


def made_up(model: Sa2VAForConditionalGeneration, count: int) -> SegFeatures:
    """Features of `count` images with one object each, on the model's device."""
    config, device = model.config, model.device
    side, width = config.grounding_config.image_size, config.grounding_config.hidden_dim
    index = torch.arange(count, device=device)
    pyramid = [torch.rand(count, width, side // stride, side // stride, device=device) for stride in (4, 8, 16)]
    return SegFeatures(
        torch.rand(count, config.text_config.hidden_size, device=device), index, index, index, tuple(pyramid)
    )


def operations(config: Sa2VAConfig, tokens: int, tiles: int) -> dict[str, float]:
    """
    Floating-point operations of one row, counted on the meta device: what the cache saves, and what is left.

    Args:
        config (`Sa2VAConfig`): of an InternVL model.
        tokens (`int`): of the whole conversation, the image's among them.
        tiles (`int`): that the VLM sees.
    """
    with whole_weights(), torch.device("meta"):
        model = Sa2VAForConditionalGeneration(config).eval()
    counts = {}
    size, vlm = config.grounding_config.image_size, model.vlm.model

    def count(name, call):
        with FlopCounterMode(display=False) as counter, torch.device("meta"):
            call()
        counts[name] = float(counter.get_total_flops())

    with torch.no_grad():
        count("language model", lambda: vlm.language_model(torch.zeros(1, tokens, dtype=torch.long)))
        pixels = (tiles, 3, *config.vlm_config.vision_config.image_size)
        count("vision tower", lambda: vlm.vision_tower(torch.zeros(pixels)))
        model.grounding_encoder.to("meta")
        count("SAM 2's image encoder", lambda: model.grounding_encoder.encode(torch.zeros(1, 3, size, size)))
    head = made_up(model.float(), 1)
    count("mask head, forward and backward", lambda: model.decode_candidates(head)[0].sum().backward())
    return counts


def estimate(config: Sa2VAConfig, rows: int, tokens: int, tiles: int) -> dict:
    """What the features of a large model take in bfloat16, one image and one object a row."""
    size = feature_bytes(config, images=1, segs=1, itemsize=2)
    return {
        "bytes_per_row": size,
        "rows": rows,
        "disk_gb": size * rows / 1e9,
        "rows_per_second": {f"{speed} GB/s": speed * 1e9 / size for speed in (1, 3)},
        "operations_per_row": operations(config, tokens, tiles),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", required=True, type=Path)
    parser.add_argument("--rows", type=int, default=1220, help="of the large estimate")
    parser.add_argument("--config", help="checkpoint of the large estimate; Sa2VA-InternVL3-8B's sizes by default")
    parser.add_argument("--tokens", type=int, default=1900, help="of a conversation, for the large estimate")
    parser.add_argument("--tiles", type=int, default=7, help="of an image, for the large estimate")
    parser.add_argument("--image_size", type=int, default=256, help="side of SAM 2's square on the tiny model")
    parser.add_argument("--max_patches", type=int, default=12, help="tiles of an image; 12 as in published models")
    parser.add_argument("--data_size", type=int, default=512, help="side of the generated images, in pixels")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument(
        "--workers", type=int, default=0, help="processes that read batches, with and without features"
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--cache_only", action="store_true", help="leave out all epochs but those from the cache")
    args = parser.parse_args()

    data = synthetic_dataset(num_videos=16, frames_per_video=4, size=args.data_size)
    runs = {
        "without": ("off", False),
        "cache": ("on", False),
        "hard samples, without": ("off", True),
        "hard samples, cache": ("on", True),
    }
    if args.cache_only:
        runs = {"cache": runs["cache"]}
    reads = [f"reading, {name}" for name in runs if "hard" not in name]
    seconds = {name: [] for name in (*runs, "head alone", *reads)}
    extra = {name: 0 for name in (*runs, "head alone")}
    clock = time.perf_counter if args.workers else time.process_time
    with tempfile.TemporaryDirectory() as folder:
        # In turn, so that a busy machine is busy for all of them.
        for _ in range(args.repeats):
            for name, (mode, hard) in runs.items():
                sizes = (args.image_size, args.max_patches, args.batch_size, args.workers)
                whole, reading, taken = epoch(mode, data, *sizes, Path(folder), hard)
                seconds[name].append(whole)
                extra[name] = max(extra[name], taken)
                if not hard:
                    seconds[f"reading, {name}"].append(reading)
                if name == "cache":
                    alone, taken = head_alone(len(data), args.image_size, args.batch_size, clock)
                    seconds["head alone"].append(alone)
                    extra["head alone"] = max(extra["head alone"], taken)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    overheads = [cache / alone for cache, alone in zip(seconds["cache"], seconds["head alone"], strict=True)]
    rates = {name: len(data) / value for name, value in median.items()}
    result = {
        "seconds": median,
        "rows_per_second": rates,
        "extra_bytes": extra,
        "runs": seconds,
        "overhead": statistics.median(overheads),
    }
    print(f"\nAn epoch of {len(data)} rows, tiny model at {args.image_size} pixels, median of {args.repeats}:")
    for name, value in median.items():
        taken = f"{extra[name] / 2**30:10.3f} GiB" if name in extra else ""
        print(f"  {name:<22}{value:8.3f} s{rates[name]:10.1f} rows a second{taken}")
    if not args.cache_only:
        ratios = [without / cache for without, cache in zip(seconds["without"], seconds["cache"], strict=True)]
        result["speed_up"] = statistics.median(ratios)
        print(f"  without / cache: {result['speed_up']:.2f}   (from {min(ratios):.2f} to {max(ratios):.2f})")
    print(f"  cache / head alone: {result['overhead']:.2f}   (from {min(overheads):.2f} to {max(overheads):.2f})")

    config = internvl3_8b() if args.config is None else read_config(checkpoint_folder(args.config)[0])
    result["large"] = large = estimate(config, args.rows, args.tokens, args.tiles)
    with tempfile.TemporaryDirectory() as folder:
        large["read_rows_per_second"] = large_rows(config, Path(folder))
    print(f"\n{args.config or 'Sa2VA-InternVL3-8B'}, bfloat16, one image and one object a row:")
    print(f"  {large['bytes_per_row']:,} bytes a row, {large['disk_gb']:.1f} GB for {args.rows} rows")
    rate = large["read_rows_per_second"]
    print(
        f"  {rate:.1f} rows a second ({rate * large['bytes_per_row'] / 1e9:.2f} GB/s) from the page cache by one core"
    )
    for speed, value in large["rows_per_second"].items():
        print(f"  {value:.1f} rows a second at {speed}")
    for name, value in large["operations_per_row"].items():
        print(f"  {value / 1e12:8.3f} TFLOP a row: {name}")
    write_json(args.output_dir / "features.json", result)


if __name__ == "__main__":
    main()
