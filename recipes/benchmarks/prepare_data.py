"""
What preparing a data set takes: seconds, and the peak of the memory of all its processes together, of frames that are
generated, run as a user runs it.

    python recipes/benchmarks/prepare_data.py --frames 20000 --num_proc 2 --output_dir outputs/preparing
"""

import argparse
import io
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from sa2va_trl.data.angiography import generate_video
from sa2va_trl.data.masks import encode_mask
from sa2va_trl.files import write_json


def write_frames(folder: Path, frames: int, size: int) -> None:
    """Folders of images (JPEG) and masks: runs of 20 frames of generated vessels, each frame with its own noise."""
    rng = np.random.default_rng(0)
    runs = [generate_video(0, video, num_frames=20, size=size) for video in range(4)]
    for name in ("image", "mask"):
        (folder / name).mkdir(parents=True)
    masks = [[encode_mask(np.asarray(mask) > 0)["bytes"] for mask in run.masks] for run in runs]
    for number in range(frames):
        run, frame = number // 20, number % 20
        picture = np.asarray(runs[run % 4].frames[frame], dtype=np.int16)
        shifted = np.roll(picture, run, axis=1) + rng.integers(-3, 4, picture.shape, dtype=np.int16)
        name = f"P{run:04d}_{frame:02d}"
        buffer = io.BytesIO()
        Image.fromarray(shifted.clip(0, 255).astype(np.uint8)).save(buffer, format="JPEG", quality=90)
        (folder / "image" / f"{name}.jpg").write_bytes(buffer.getvalue())
        (folder / "mask" / f"{name}.png").write_bytes(masks[run % 4][frame])


def memory(process: int) -> np.ndarray:
    """Bytes of a process and those that it has started: anonymous and resident ones."""
    found = np.zeros(2, dtype=np.int64)
    try:
        status = Path(f"/proc/{process}/status").read_text()
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except OSError:  # it has ended
        return found
    values = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    if "VmRSS" in values:
        found += [int(values[name].split()[0]) * 1024 for name in ("RssAnon", "VmRSS")]
    return found + sum((memory(int(child)) for child in children), np.zeros(2, dtype=np.int64))


def measured(line: list[str]) -> dict:
    """Seconds and peaks of a task."""
    start, peaks = time.monotonic(), np.zeros(2, dtype=np.int64)
    with subprocess.Popen([sys.executable, "-m", "sa2va_trl.cli", *line]) as process:
        while process.poll() is None:
            peaks = np.maximum(peaks, memory(process.pid))
            time.sleep(0.2)
    if process.returncode:
        raise SystemExit(f"it ended with status {process.returncode}")
    anonymous, resident = (round(int(peak) / 1e9, 3) for peak in peaks)
    seconds = time.monotonic() - start
    return {"seconds": round(seconds, 1), "peak_anonymous_gb": anonymous, "peak_resident_gb": resident}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=20_000, help="Number of frames.")
    parser.add_argument("--size", type=int, default=256, help="Their side in pixels.")
    parser.add_argument("--num_proc", type=int, default=2, help="Processes that decode and write.")
    parser.add_argument("--output_dir", required=True, help="Folder for preparing.json.")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        source, output = Path(temporary) / "source", Path(temporary) / "data"
        write_frames(source, args.frames, args.size)
        line = ["prepare_data", "--source", str(source), "--output_dir", str(output)]
        line += ["--key_file", f"{temporary}/key", "--num_proc", str(args.num_proc)]
        line += ["--patient_pattern", "(P[0-9]+)_", "--splits", '{"train": 0.8, "test": 0.2}']
        found = measured(line)
        found["written_gb"] = round(sum(file.stat().st_size for file in output.rglob("*.parquet")) / 1e9, 3)
    found |= {"frames": args.frames, "size": args.size, "num_proc": args.num_proc, "cores": os.cpu_count()}
    found["frames_per_second"] = round(args.frames / found["seconds"], 1)
    print(found)
    write_json(Path(args.output_dir) / "preparing.json", found)


if __name__ == "__main__":
    main()
