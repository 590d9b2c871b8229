"""
Seconds and peak memory of inference: 1 and 5 objects on an image and on a clip, answers of two lengths, answers
that the model writes and draws from, with and without a second pass over prompt and answer, and the turns of a
dialogue.

Weights may be random, as the tiny models' are: speed does not depend on them. But SAM 2 has the published size even
there unless told otherwise, because next to a tiny image encoder the mask decoder's share says nothing.

    python recipes/benchmarks/inference.py --model_name_or_path ByteDance/Sa2VA-InternVL3-8B --dtype bfloat16
    python recipes/benchmarks/inference.py --cases written --vlm whole
    python recipes/benchmarks/inference.py --cases dialogue --vlm language
    python recipes/benchmarks/inference.py --cases image clip --grounding_image_size 256 --torch_compile true
"""

import copy
import ctypes
import json
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from unittest.mock import patch

import numpy as np
import torch
from peft import PeftModel
from PIL import Image
from transformers import InternVLVisionConfig, LogitsProcessor, LogitsProcessorList, Qwen2Config
from trl import TrlParser

from sa2va_trl import Sa2VAForConditionalGeneration
from sa2va_trl.files import write_json
from sa2va_trl.models.compiling import compile_sam2
from sa2va_trl.models.configuration import Sa2VAGroundingConfig
from sa2va_trl.models.written_states import WrittenStates
from sa2va_trl.scripts.arguments import TINY, ModelArguments
from sa2va_trl.scripts.loading import load_model


TEXT = "Please segment the blood vessels."
# The model's methods that the two halves of an image's time are spent in.
HALVES = {"encode": ("states_to_segment", "with_pyramid"), "decode": ("decode_masks",)}
CASES = ("image", "clip", "answer", "written", "dialogue")
# Of Qwen2.5-0.5B, the language model of Sa2VA-1B.
LANGUAGE = {"hidden_size": 896, "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2}
LANGUAGE |= {"intermediate_size": 4864, "vocab_size": 151679, "max_position_embeddings": 32768}


@dataclass
class InferenceArguments:
    output_dir: str = field(default="outputs/inference", metadata={"help": "Where inference.json goes."})
    grounding: str | None = field(
        default=None,
        metadata={"help": "real: SAM 2.0 Hiera-L, with random weights (tiny models' default); own: the model's."},
    )
    vlm: str = field(
        default="own",
        metadata={
            "help": "own: the model's. For the tiny model, with random weights, language: Qwen2.5-0.5B behind the "
            "tiny vision tower; whole: that and InternViT-300M, as in Sa2VA-1B."
        },
    )
    cases: list[str] = field(default_factory=lambda: list(CASES), metadata={"help": f"Which of {', '.join(CASES)}."})
    objects: list[int] = field(default_factory=lambda: [1, 5, 20], metadata={"help": "In written answers."})
    prompt_tokens: int = field(default=2000, metadata={"help": "Tokens of the prompt of written answers, at least."})
    turns: int = field(default=10, metadata={"help": "Of the dialogue, at least 2."})
    dialogue_tokens: int = field(default=1000, metadata={"help": "Tokens of picture and first question, at least."})
    image_size: int = field(default=512, metadata={"help": "Side of the image and of the clip, in pixels."})
    num_frames: int = field(default=50, metadata={"help": "Length of the clip."})
    new_tokens: list[int] = field(default_factory=lambda: [16, 256], metadata={"help": "Lengths of two answers."})
    repeats: int = field(default=5, metadata={"help": "Timed runs of an image and of an answer."})
    clip_repeats: int = field(default=3, metadata={"help": "Timed runs of a clip."})
    torch_compile: bool = field(
        default=False, metadata={"help": "Compile SAM 2; what the first runs take is in start_up."}
    )

    def __post_init__(self):
        if self.grounding not in (None, "real", "own"):
            raise ValueError(f"grounding must be real or own, got {self.grounding!r}.")
        if self.vlm not in ("own", "language", "whole"):
            raise ValueError(f"vlm must be own, language or whole, got {self.vlm!r}.")
        if not self.objects or min(self.objects) < 1:
            raise ValueError(f"objects must be numbers of at least 1, got {self.objects}.")
        if not self.cases or set(self.cases) - set(CASES):
            raise ValueError(f"cases must be some of {', '.join(CASES)}, got {', '.join(self.cases) or 'none'}.")
        if len(self.new_tokens) != 2 or not 0 < self.new_tokens[0] < self.new_tokens[1]:
            raise ValueError(f"new_tokens must be two lengths, the shorter first, got {self.new_tokens}.")
        if self.turns < 2:
            raise ValueError(f"turns must be at least 2, got {self.turns}.")
        for name in ("prompt_tokens", "dialogue_tokens", "image_size", "num_frames", "repeats", "clip_repeats"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")


def benchmark_model(args: InferenceArguments, model_args: ModelArguments):
    tiny = model_args.model_name_or_path in TINY
    args.grounding = args.grounding or ("real" if tiny else "own")
    if args.grounding == "real" and (not tiny or model_args.adapter):
        raise ValueError("grounding=real gives a tiny model without an adapter a SAM 2 of the published size.")
    if args.vlm != "own" and (model_args.model_name_or_path != "tiny" or model_args.adapter):
        raise ValueError(f"vlm={args.vlm} gives the tiny model without an adapter a VLM of a published size.")
    model, processor = load_model(model_args)
    if args.grounding == "real" or args.vlm != "own":
        config = copy.deepcopy(model.config)
        if args.grounding == "real":
            config.grounding_config = Sa2VAGroundingConfig(image_size=model_args.grounding_image_size or 1024)
            processor.grounding_image_size = config.grounding_config.image_size
        if args.vlm != "own":
            config.vlm_config.text_config = Qwen2Config(**LANGUAGE)
        if args.vlm == "whole":
            config.vlm_config.vision_config = InternVLVisionConfig(attention_bias=True)
            config.vlm_config.image_seq_length = processor.image_seq_length = 256
            processor.image_processor.size = {"height": 448, "width": 448}
            processor.image_processor.max_patches = 12
        model = Sa2VAForConditionalGeneration(config).to(model.dtype)
        model.set_attn_implementation(model_args.attn_implementation)
    if isinstance(model, PeftModel):
        model = model.get_base_model()  # with the adapter's layers in it
    model = model.eval().to("cuda" if torch.cuda.is_available() else "cpu")
    if args.torch_compile:
        compile_sam2(model.grounding_encoder.sam2_model)
    return model, processor


def now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def memory(reset: bool = False) -> tuple[int, int]:
    """
    Bytes held now and at most since the last reset: by tensors on the GPU, or else by the whole process.

    Linux can reset the peak of a process, so each run has its own. (A process for each would have the peak of loading
    the model.) Freed memory goes back to the system first, or an earlier run would hide what this one takes.
    """
    if torch.cuda.is_available():
        if reset:
            torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated()
    if reset:
        if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
            libc.malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return tuple(1024 * int(lines[name].split()[0]) for name in ("VmRSS", "VmHWM"))


def segment(model, processor, objects: int, **media):
    """Until the masks are there at the image's own size; of a clip one frame after the other."""
    answer = "Sure, " + ", ".join(["[SEG]"] * objects) + "."
    result = model.segment(**media, text=TEXT, processor=processor, answer=answer)
    frames = [result] if "image" in media else map(result.frame, range(len(media["video"])))
    if any(len(frame.masks) != objects for frame in frames):
        raise RuntimeError(f"There are not {objects} masks.")


def answer(model, processor, tokens: int, image: Image.Image):
    # Stop strings would end an answer before its shortest length; end tokens cannot.
    length = {"min_new_tokens": tokens, "max_new_tokens": tokens, "stop_strings": None}
    model.answer([[{"role": "user", "content": TEXT}]], [[image]], processor, **length)


class Script(LogitsProcessor):
    """Makes `generate` write these tokens, one a step."""

    def __init__(self, ids: list[int]):
        self.ids = iter(ids)

    def __call__(self, input_ids: torch.LongTensor, scores: torch.Tensor) -> torch.Tensor:
        forced = torch.full_like(scores, -torch.inf)
        forced[:, next(self.ids)] = 0
        return forced


def script(processor, objects: int) -> LogitsProcessorList:
    """An answer of twenty tokens, or of as many as objects need."""
    ids = processor.tokenizer("Sure" + " vessel" * max(18 - objects, 0) + "[SEG]" * objects).input_ids
    return LogitsProcessorList([Script(ids + processor.answer_ids(""))])


def question(processor, image: Image.Image, tokens: int) -> str:
    """The request, with words behind it until a prompt has as many tokens."""
    _, blocks = processor.tiles([image])
    length = len(processor.encode_chat([{"role": "user", "content": TEXT}], blocks)[0])
    return TEXT + " vessel" * max(tokens - length, 0)  # a word is a token


def written(model, processor, objects: int, image: Image.Image, text: str, passes: int):
    """As `segment`, but of an answer that the model writes."""
    # The second pass is made wherever generation leaves no states.
    left = patch.object(WrittenStates, "of", lambda *_: None) if passes == 2 else nullcontext()
    with left:
        result = model.segment(
            image=image, text=text, processor=processor, logits_processor=script(processor, objects)
        )
    if len(result.masks) != objects:
        raise RuntimeError(f"There are not {objects} masks.")


def timed(function, seconds: dict, name: str, *args, **kwargs):
    start = now()
    result = function(*args, **kwargs)
    seconds[name] = now() - start
    return result


def measure(model, cases: dict, repeats: int, parts: tuple[str, ...] = ()) -> dict:
    """Median seconds, also of the model's methods `parts`, and highest memory of each case, and every run's."""
    runs, seconds = {case: defaultdict(list) for case in cases}, {}
    for part in parts:
        setattr(model, part, partial(timed, getattr(model, part), seconds, f"{part}_seconds"))
    for repeat in range(repeats):
        # In turns and back again, so that a machine that warms up or slows down does it to all alike.
        for case in list(cases)[:: 1 if repeat % 2 == 0 else -1]:
            measure_once(cases[case], runs[case], seconds)
    for part in parts:
        delattr(model, part)
    return summaries(runs)


def measure_once(function, run: dict[str, list], seconds: dict[str, float]) -> None:
    """Add what one call takes to a run; `seconds` may hold those of parts by then."""
    before, _ = memory(reset=True)
    processors = time.process_time()
    timed(function, seconds, "seconds")
    seconds["processor_seconds"] = time.process_time() - processors
    _, peak = memory()
    for name, value in {**seconds, "peak_bytes": peak, "extra_bytes": peak - before}.items():
        run[name].append(value)


def summaries(runs: dict) -> dict:
    return {
        case: {name: (max if name.endswith("bytes") else median)(values) for name, values in run.items()}
        | {"runs": run}
        for case, run in runs.items()
    }


def dialogue(model, processor, image: Image.Image, text: str) -> Iterator[None]:
    """The turns of a dialogue: each asks for one object, whose mask is drawn at the image's own size."""
    chat = model.chat(text, image=image, processor=processor, logits_processor=script(processor, objects=1))
    while True:
        if len(chat.result.masks) != 1:
            raise RuntimeError("There is no mask.")
        yield
        chat.ask(TEXT, logits_processor=script(processor, objects=1))


def measure_dialogues(turns: int, repeats: int, *request) -> dict:
    """As `measure`, of the turns of dialogues."""
    runs = {turn: defaultdict(list) for turn in range(1, turns + 1)}
    for _ in range(repeats):
        told = dialogue(*request)
        for run in runs.values():
            measure_once(partial(next, told), run, {})
    return summaries(runs)


def ratios(results: dict, args: InferenceArguments, model) -> dict:
    """The price of four more objects, and of one more token in bytes, beside what can explain it."""
    found, config = {}, model.config.text_config
    if image := results.get("image"):
        found["image_5_to_1"] = image[5]["seconds"] / image[1]["seconds"]
        for half, parts in HALVES.items():
            found[f"image_{half}_share"] = {
                n: sum(case[f"{part}_seconds"] for part in parts) / case["seconds"] for n, case in image.items()
            }
    if clip := results.get("clip"):
        found["clip_5_to_1"] = clip[5]["seconds"] / clip[1]["seconds"]
        found["clip_seconds_per_frame"] = {n: case["seconds"] / args.num_frames for n, case in clip.items()}
    if answer := results.get("answer"):
        short, long = args.new_tokens
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        cache = 2 * config.num_hidden_layers * config.num_key_value_heads * head_dim
        hidden_states = (config.num_hidden_layers + 1) * config.hidden_size
        found["bytes_per_token"] = (answer[long]["extra_bytes"] - answer[short]["extra_bytes"]) / (long - short)
        found["bytes_per_token_of_cache"] = cache * model.dtype.itemsize
        # If every step's were kept.
        found["bytes_per_token_of_hidden_states"] = hidden_states * model.dtype.itemsize
    if dialogue := results.get("dialogue"):
        last = max(dialogue)
        for name in ("seconds", "processor_seconds", "peak_bytes", "extra_bytes"):
            found[f"dialogue_{last}_to_2_{name}"] = dialogue[last][name] / dialogue[2][name]
    if "one_pass" in results:
        # Run by run, beside each other; on a CPU that others use too, the processors' time says more.
        for key in ("seconds", "processor_seconds"):
            for n in args.objects:
                one, two = (results[name][n]["runs"][key] for name in ("one_pass", "two_passes"))
                pairs = [first / second for first, second in zip(one, two, strict=True)]
                found.setdefault(f"one_pass_to_two_{key}", {})[n] = median(pairs)
    return found


def main():
    args, model_args = TrlParser((InferenceArguments, ModelArguments)).parse_args_and_config()
    if not torch.cuda.is_available() and not Path("/proc/self/clear_refs").exists():
        raise RuntimeError("Peak memory can be measured on a GPU or under Linux; this machine is neither.")
    model, processor = benchmark_model(args, model_args)
    shape = (args.num_frames, args.image_size, args.image_size, 3)
    frames = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    image = Image.fromarray(frames[0])
    results, first = {}, {}
    # Compiled, every number of memories (seven at most) may be a new shape.
    short = frames[: 8 if args.torch_compile else 2]
    for name, function, numbers, media, warm_up, repeats in (
        ("image", segment, (1, 5), {"image": image}, {"image": image}, args.repeats),
        ("clip", segment, (1, 5), {"video": frames}, {"video": short}, args.clip_repeats),
        ("answer", answer, args.new_tokens, {"image": image}, {"image": image}, args.repeats),
    ):
        if name not in args.cases:
            continue
        for number in numbers:
            timed(function, first, f"{name} {number}", model, processor, number, **warm_up)
        cases = {number: partial(function, model, processor, number, **media) for number in numbers}
        # The encoder's part of a clip lies elsewhere, in `track`.
        results[name] = measure(model, cases, repeats, sum(HALVES.values(), ()) if name == "image" else ())
    if "written" in args.cases:
        written(model, processor, 1, image, TEXT, passes=1)
        wide = Image.fromarray(np.concatenate([frames[0], frames[0, :, ::2]], axis=1))  # six tiles and the whole
        request = {"image": wide, "text": question(processor, wide, args.prompt_tokens)}
        cases = {
            (name, number): partial(written, model, processor, number, **request, passes=passes)
            for number in args.objects
            for passes, name in enumerate(("one_pass", "two_passes"), start=1)
        }
        for (name, number), case in measure(model, cases, args.repeats).items():
            results.setdefault(name, {})[number] = case
    if "dialogue" in args.cases:
        request = (model, processor, image, question(processor, image, args.dialogue_tokens))
        measure_dialogues(2, 1, *request)
        results["dialogue"] = measure_dialogues(args.turns, args.repeats, *request)
    for name, cases in results.items():
        for number, case in cases.items():
            unit = {"answer": "tokens", "dialogue": "turn"}.get(name, "objects")
            peak, extra = (case[key] / 2**30 for key in ("peak_bytes", "extra_bytes"))
            seconds = f"{case['seconds']:10.3f} s ({case['processor_seconds']:.3f} of processors)"
            print(f"{name:<11}{unit:>8}{number:>5}{seconds}, peak {peak:.3f} GiB, {extra:.3f} for the run")
    found, name = ratios(results, args, model), model_args.model_name_or_path
    about = {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
        "cpu_threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "model": Path(name).name if Path(name).exists() else name,  # no folders
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "grounding_parameters": sum(parameter.numel() for parameter in model.grounding_encoder.parameters()),
        "grounding_image_size": model.config.grounding_config.image_size,
        **{key: getattr(model_args, key) for key in ("dtype", "quantization", "attn_implementation")},
        **{key: value for key, value in asdict(args).items() if key != "output_dir"},
    }
    write_json(
        Path(args.output_dir) / "inference.json",
        {"about": about, "start_up": first, "results": results, "ratios": found},
    )
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
