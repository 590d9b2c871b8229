"""
Samples and tokens a second, peak memory and utilisation of training steps: LoRA, QLoRA, and the mask head without and
with cached features. The package's own trainer takes the steps; the weights are random and made on the device, in the
sizes of published models, so nothing is downloaded.

    python recipes/benchmarks/train.py
    python recipes/benchmarks/train.py --size 8b --batch_size 4 --peak_tflops 989 --dtype bfloat16
    python recipes/benchmarks/train.py --size 8b --cases qlora --memory_gib 24
    python recipes/benchmarks/train.py --size 8b --count_only
    accelerate launch --config_file accelerate_configs/zero3.yaml --num_processes 1 recipes/benchmarks/train.py \
        --size 1b --cases lora

Utilisation is of the model's operations (`FlopCounterMode` over a step on tensors without values; what checkpointing
computes again is not among them) against `--peak_tflops`, which the device's data sheet says for the type.
"""

import argparse
import csv
import gc
import os
import platform
import runpy
import tempfile
import time
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from statistics import median

import bitsandbytes
import torch
from transformers import PrinterCallback, TrainerCallback
from transformers.quantizers import AutoHfQuantizer

from sa2va_trl import Sa2VAConfig, Sa2VAForConditionalGeneration, Sa2VAProcessor, SegSFTConfig, SegSFTTrainer
from sa2va_trl.data import synthetic_dataset
from sa2va_trl.data.collator import SegCollator
from sa2va_trl.data.fit import check_fit
from sa2va_trl.files import whole_file, write_json
from sa2va_trl.models.configuration import official_seg_state
from sa2va_trl.models.grounding import whole_weights
from sa2va_trl.models.pixels import published_image_processor
from sa2va_trl.models.quantization import finish_loading, of_language_model_only, stored_tensors
from sa2va_trl.models.tiny import QWEN_SPECIAL_TOKENS, SPECIAL_TOKENS, tiny_sa2va, tiny_tokenizer
from sa2va_trl.scripts.loading import quantization_config
from sa2va_trl.trainers.memory import GIB, Need, count_bytes, step_of
from sa2va_trl.trainers.step_bytes import Batch, step_flops


_sizes, _clocks = (runpy.run_path(str(Path(__file__).with_name(name))) for name in ("memory.py", "inference.py"))
published, skeleton = _sizes["published"], _sizes["skeleton"]
peak_memory, now = _clocks["memory"], _clocks["now"]
# What is trained, whether in 4 bits, whether from cached features.
CASES = {
    "lora": ("stage1", False, False),
    "qlora": ("stage1", True, False),
    "head": ("head", False, False),
    "cache": ("head", False, True),
}
SHORT = {"1b": "Sa2VA-1B", "2b": "Sa2VA-InternVL3-2B", "4b": "Sa2VA-4B", "8b": "Sa2VA-InternVL3-8B"}
SHORT |= {"14b": "Sa2VA-InternVL3-14B", "26b": "Sa2VA-26B"}
ATTENTION = ("sdpa", "flash_attention_2", "eager")
DTYPES = ("float32", "bfloat16")


class Steps(TrainerCallback):
    """
    Seconds of each step, from the end of the one before, and of these the ones in which it waited for its batch; those
    of this process's processor time, which a busy machine changes less; bytes at the peak of the training. (Features
    are computed before.)
    """

    def __init__(self):
        self.seconds, self.waiting, self.processor, self.before, self.peak = [], [], [], 0, 0
        self.start, self.processor_start = 0.0, 0.0

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.before, _ = peak_memory(reset=True)
        self.start, self.processor_start = now(), time.process_time()

    def on_step_begin(self, args, state, control, **kwargs):
        self.waiting.append(now() - self.start)

    def on_step_end(self, args, state, control, **kwargs):
        self.seconds.append(now() - self.start)
        self.processor.append(time.process_time() - self.processor_start)
        _, self.peak = peak_memory()
        self.start, self.processor_start = now(), time.process_time()


def sized(args: argparse.Namespace) -> tuple[Sa2VAConfig, Sa2VAProcessor]:
    """A published size and its processor, with the tokenizer of the tiny models: words of a few tokens more."""
    vlm = published()[args.size]
    qwen = vlm.model_type != "internvl"
    tokenizer = tiny_tokenizer(QWEN_SPECIAL_TOKENS if qwen else SPECIAL_TOKENS)
    vlm.image_token_id = tokenizer.convert_tokens_to_ids("<|image_pad|>" if qwen else "<IMG_CONTEXT>")
    config = Sa2VAConfig(
        vlm_config=vlm,
        seg_token_id=tokenizer.convert_tokens_to_ids("[SEG]"),
        seg_state=official_seg_state(vlm.model_type),
    )
    processor = Sa2VAProcessor(published_image_processor(vlm), tokenizer)
    if not qwen:
        # So many whatever the picture's sides are: a grid of all but the view of the whole.
        images = processor.image_processor
        images.min_patches = images.max_patches = max(1, args.tiles - 1)
    return config, processor


def dtype_of(args: argparse.Namespace, packed: bool) -> str:
    """TRL trains the adapters of 4-bit models in bfloat16 alone."""
    return "bfloat16" if packed else args.dtype


def made(args: argparse.Namespace, packed: bool) -> tuple[Sa2VAForConditionalGeneration, Sa2VAProcessor]:
    """A model with random weights on its device, in the type that they are frozen in, and its processor."""
    dtype = getattr(torch, dtype_of(args, packed))
    torch.manual_seed(0)
    if args.size == "tiny":
        model, processor = tiny_sa2va()
        model = model.to(args.device, dtype)
    else:
        config, processor = sized(args)
        default = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            with whole_weights(), torch.device(args.device):
                model = Sa2VAForConditionalGeneration(config)
        finally:
            torch.set_default_dtype(default)
    model.set_attn_implementation(args.attn_implementation)
    if packed:
        pack(model)
    release()
    return model, processor


def pack(model: Sa2VAForConditionalGeneration) -> None:
    """Quantise the language model's layers where they lie, as loading with `--quantization 4bit` does from a file."""
    config = of_language_model_only(quantization_config("4bit", "bfloat16"))
    names = [name.removesuffix(".weight") for name in stored_tensors(config, model) if name.endswith(".weight")]
    for name in names:
        layer = model.get_submodule(name)
        packed = bitsandbytes.nn.Linear4bit(
            layer.in_features,
            layer.out_features,
            False,
            config.bnb_4bit_compute_dtype,
            quant_type="nf4",
            device="meta",
        )
        packed.bias = layer.bias
        weight = bitsandbytes.nn.Params4bit(
            layer.weight.data.cpu(), requires_grad=False, compress_statistics=True, quant_type="nf4", module=packed
        )
        packed.weight = weight.to(layer.weight.device)
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, packed)
    finish_loading(model)
    # What PEFT and TRL ask of a model that has been loaded so.
    model.hf_quantizer = AutoHfQuantizer.from_config(config, pre_quantized=False)
    model.config.quantization_config = config
    model.is_loaded_in_4bit, model.quantization_method = True, config.quant_method


def release() -> None:
    """Give back what nothing holds any more, so that one case's memory is not the next one's."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def options(args: argparse.Namespace, case: str, folder: str, rows: int) -> SegSFTConfig:
    trainable, packed, cached = CASES[case]
    steps = args.warm_up + args.steps
    return SegSFTConfig(
        folder,
        trainable=trainable,
        lm_weight=0.0 if trainable == "head" else 1.0,
        cache_features="on" if cached else "off",
        cache_dir=str(Path(folder) / "features") if cached else None,
        max_steps=steps,
        dataset_repeats=-(-steps * args.batch_size // rows),  # all in one epoch
        per_device_train_batch_size=args.batch_size,
        gradient_checkpointing=args.gradient_checkpointing == "on",
        dataloader_num_workers=args.workers,
        bf16=dtype_of(args, packed) == "bfloat16",
        use_cpu=args.device == "cpu",
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


def counted(
    model: Sa2VAForConditionalGeneration, config: SegSFTConfig, batch: Batch, cached: bool, need: Need
) -> dict[str, float]:
    """What a step computes, by a copy of the model without values, and what it is expected to need."""
    dtype = torch.bfloat16 if config.bf16 else None
    return {
        "tflop_per_step": step_flops(model, batch, autocast=dtype, cached=cached) / 1e12,
        "trained_parameters": sum(weight.numel() for weight in model.parameters() if weight.requires_grad),
        "counted_weights_gib": need.weights / GIB,
        "counted_trained_gib": need.trained / GIB,
        "counted_activations_gib": need.activations / GIB,
        "counted_gib": need.total / GIB,
    }


def count(args: argparse.Namespace, case: str) -> dict[str, float]:
    """The same of a published size that is never made: the meta device holds its shapes. As on a GPU, in bfloat16."""
    trainable, packed, cached = CASES[case]
    config, processor = sized(args)
    row = synthetic_dataset(num_videos=1, frames_per_video=1, size=args.image_size)
    largest = check_fit(row, SegCollator(processor), "the row")
    batch = Batch(args.batch_size, largest.tokens, largest.image_tokens)
    with tempfile.TemporaryDirectory() as folder:
        training = options(args, case, folder, args.batch_size)
    model = skeleton(config.vlm_config, trainable, packed)
    need = count_bytes(model, training, step_of(model, batch, training, cached=cached))
    return {"tokens_per_sample": batch.tokens, **counted(model, training, batch, cached, need)}


def measure(args: argparse.Namespace, case: str) -> dict[str, float | dict | None]:
    """One training of a case: what its steps took and what they compute."""
    _, packed, cached = CASES[case]
    model, processor = made(args, packed)
    rows = 2 * args.batch_size
    clock = Steps()
    with tempfile.TemporaryDirectory() as folder:
        trainer = SegSFTTrainer(
            model=model,
            args=options(args, case, folder, rows),
            train_dataset=synthetic_dataset(num_videos=rows, frames_per_video=1, size=args.image_size),
            processing_class=processor,
            callbacks=[clock],
        )
        trainer.remove_callback(PrinterCallback)
        batch = trainer.batch_sizes()
        # (Before DeepSpeed has weights for itself.)
        sizes = counted(model, trainer.args, batch, cached, trainer.tell_needs())
        trainer.tell_needs = lambda: None  # not a second time
        trainer.train()
    if len(clock.seconds) != args.warm_up + args.steps:
        raise RuntimeError(f"{len(clock.seconds)} steps were taken, not {args.warm_up + args.steps}.")
    timed, waited, processor = (each[args.warm_up :] for each in (clock.seconds, clock.waiting, clock.processor))
    step = median(timed)
    tflops = sizes["tflop_per_step"] / step
    return {
        "computed_in": dtype_of(args, packed),
        "seconds_per_step": step,
        "waiting_seconds_per_step": median(waited),
        "processor_seconds_per_step": median(processor),
        "samples_per_second": args.batch_size / step,
        # Features stand in for them.
        "tokens_per_second": None if cached else args.batch_size * batch.tokens / step,
        "tokens_per_sample": batch.tokens,
        "peak_gib": clock.peak / GIB,
        "before_gib": clock.before / GIB,
        "tflops": tflops,
        "utilisation": None if args.peak_tflops is None else tflops / args.peak_tflops,
        **sizes,
        "runs": {
            "seconds_per_step": timed,
            "waiting_seconds_per_step": waited,
            "processor_seconds_per_step": processor,
        },
    }


def environment(args: argparse.Namespace) -> dict:
    given = {name: value for name, value in vars(args).items() if name != "output_dir"}
    names = ("transformers", "trl", "peft", "bitsandbytes")
    return {
        "device_name": torch.cuda.get_device_name() if args.device == "cuda" else "CPU",
        "cpu_threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        **{name: version(name) for name in names},
        "zero": os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE"),
        "operations": "torch.utils.flop_counter.FlopCounterMode, without recomputation",
        **given,
    }


COLUMNS = (
    # Of the file, on the screen, its decimals
    ("seconds_per_step", "s a step", 3),
    ("waiting_seconds_per_step", "waiting", 3),
    ("processor_seconds_per_step", "processor", 3),
    ("samples_per_second", "samples/s", 3),
    ("tokens_per_second", "tokens/s", 0),
    ("peak_gib", "peak GiB", 2),
    ("counted_gib", "counted", 2),
    ("tflop_per_step", "TFLOP", 3),
    ("tflops", "TFLOP/s", 2),
    ("utilisation", "of peak", 3),
)


def show(results: dict[str, dict]) -> None:
    columns = [column for column in COLUMNS if any(case.get(column[0]) is not None for case in results.values())]
    print("\n" + f"{'':<8}" + "".join(f"{title:>11}" for _, title, _ in columns))
    for name, case in results.items():
        cells = ["–" if case.get(key) is None else f"{case[key]:,.{digits}f}" for key, _, digits in columns]
        print(f"{name:<8}" + "".join(f"{cell:>11}" for cell in cells))


def write(folder: Path, about: dict, results: dict[str, dict]) -> None:
    """`train.json` with every step, and `train.csv` with a line for each case."""
    write_json(folder / "train.json", {"about": about, "results": results})
    lines = [
        {"case": name} | {key: value for key, value in case.items() if key != "runs"} for name, case in results.items()
    ]
    constant = {key: value for key, value in about.items() if key not in ("cases", *lines[0])}
    with whole_file(folder / "train.csv") as part, part.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*lines[0], *constant])
        writer.writeheader()
        writer.writerows(line | constant for line in lines)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--output_dir", type=Path, default=Path("outputs/train"), help="where train.json and train.csv go")
    add("--size", default="tiny", help=f"tiny, {', '.join(SHORT)} or a name of docs/memory.md, such as Sa2VA-8B")
    add("--cases", nargs="+", choices=CASES, default=list(CASES))
    add("--batch_size", type=int, default=1)
    add("--steps", type=int, default=5, help="timed steps, of which medians are taken")
    add("--warm_up", type=int, default=2, help="steps before these")
    add("--image_size", type=int, default=512, help="side of the generated pictures, in pixels")
    add("--tiles", type=int, help="that InternVL sees of a picture, 7 by default; tiny and Qwen have none to choose")
    add("--gradient_checkpointing", choices=("on", "off"), default="on")
    add("--attn_implementation", choices=ATTENTION, default="sdpa")
    add("--dtype", choices=DTYPES, help="bfloat16 on a GPU, float32 without one; qlora bfloat16")
    add("--workers", type=int, default=0, help="processes that make batches")
    add("--memory_gib", type=float, help="give torch no more of the GPU's memory than a card of so many GiB has")
    add(
        "--peak_tflops",
        type=float,
        help="of the device in this type, by its data sheet, to say how much of it is used",
    )
    add("--count_only", action="store_true", help="train nothing: operations and memory of a published size alone")
    args = parser.parse_args(arguments)
    try:
        check(args)
    except ValueError as error:
        parser.error(str(error))
    return args


def check(args: argparse.Namespace) -> None:
    """Complete what was not given, and refuse what cannot take effect."""
    sizes = published()
    args.size = SHORT.get(args.size.lower(), args.size)
    args.device = "cuda" if torch.cuda.is_available() else "cpu"
    if args.size != "tiny" and args.size not in sizes:
        raise ValueError(f"size must be tiny, {', '.join(SHORT)} or one of {', '.join(sizes)}, got {args.size}.")
    internvl = args.size != "tiny" and sizes[args.size].model_type == "internvl"
    if args.tiles is not None and not internvl:
        raise ValueError(f"tiles={args.tiles}: {args.size} has none to choose.")
    if internvl:
        args.tiles = 7 if args.tiles is None else args.tiles
        if args.tiles not in (1, *range(3, 14)):
            raise ValueError(f"tiles must be 1, or 3 to 13 (a grid and the whole), got {args.tiles}.")
    for name, least in (("batch_size", 1), ("steps", 1), ("warm_up", 0), ("image_size", 32), ("workers", 0)):
        if getattr(args, name) < least:
            raise ValueError(f"{name} must be at least {least}, got {getattr(args, name)}.")
    if args.count_only and (args.size == "tiny" or args.peak_tflops or args.memory_gib or args.dtype == "float32"):
        raise ValueError("count_only is of a published size in bfloat16, without peak_tflops and memory_gib.")
    if args.dtype is None:
        args.dtype = "bfloat16" if args.device == "cuda" or args.count_only else "float32"
    if args.attn_implementation == "flash_attention_2":
        if args.count_only or args.device == "cpu" or args.dtype == "float32" or find_spec("flash_attn") is None:
            raise ValueError("attn_implementation=flash_attention_2 needs a GPU, bfloat16 and the package flash-attn.")
    if args.peak_tflops is not None and args.peak_tflops <= 0:
        raise ValueError(f"peak_tflops must be positive, got {args.peak_tflops}.")
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true" and (len(args.cases) > 1 or "qlora" in args.cases):
        raise ValueError("DeepSpeed takes one of the cases lora, head and cache in a process: name it with --cases.")
    if args.memory_gib is not None:
        if args.device == "cpu":
            raise ValueError("memory_gib caps the allocator of a GPU, and there is none.")
        total = torch.cuda.get_device_properties(0).total_memory
        if not 0 < args.memory_gib * GIB <= total:
            raise ValueError(f"memory_gib must be within the {total / GIB:.1f} GiB that there are.")
        torch.cuda.set_per_process_memory_fraction(args.memory_gib * GIB / total)


def main():
    args = parse()
    results = {}
    for case in args.cases:
        results[case] = (count if args.count_only else measure)(args, case)
        release()
        print(f"{case}: done", flush=True)
    about = environment(args)
    print(f"\n{args.size}, {about['device_name']}, {args.dtype}, {args.batch_size} a batch")
    show(results)
    write(args.output_dir, about, results)


if __name__ == "__main__":
    main()
