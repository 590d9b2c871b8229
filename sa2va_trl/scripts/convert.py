"""
Convert checkpoints: the layout that Sa2VA publishes to the native one and back, and what the official trainer saves
(`iter_N.pth`) to an adapter or, merged, to a model.

    sa2va-trl convert --source ByteDance/Sa2VA-InternVL3-8B --output_dir outputs/sa2va --dtype bfloat16
    sa2va-trl convert --source outputs/sa2va --layout published --output_dir outputs/for_other_tools
    sa2va-trl convert --source iter_3672.pth --model_name_or_path BASE --output_dir outputs/adapter
"""

from dataclasses import dataclass, field

import torch

from ..adapters.official_trainer import apply_delta, read_delta
from ..adapters.peft_model import SegPeftModel, merge_adapter
from ..files import written_beside
from ..models import Sa2VAForConditionalGeneration, Sa2VAProcessor
from ..models.checkpoints import checkpoint_folder, stored_dtype
from .arguments import RecipeParser
from .commands import command
from .output import check_new
from .screen import finish


@dataclass
class ConvertArguments:
    source: str = field(metadata={"help": "A checkpoint (folder or Hub id), or a .pth of the official trainer."})
    output_dir: str = field(metadata={"help": "Where the result goes; must not hold anything yet."})
    model_name_or_path: str | None = field(default=None, metadata={"help": "The base that a .pth was trained on."})
    layout: str = field(default="native", metadata={"help": "Layout of a model that is written: native or published."})
    dtype: str = field(
        default="auto",
        metadata={"help": "Type of the model's weights: auto (as stored), float32, bfloat16 or float16."},
    )
    merge: bool = field(default=False, metadata={"help": "Fold a .pth into its base instead of writing an adapter."})
    lora_alpha: float | None = field(
        default=None, metadata={"help": "LoRA alpha of a .pth; twice its rank by default."}
    )

    def __post_init__(self):
        self.is_delta = self.source.endswith((".pth", ".pt"))  # DeepSpeed's states are in a folder, as .pt
        if self.layout not in ("native", "published"):
            raise ValueError(f"layout must be native or published, got {self.layout!r}.")
        if self.dtype not in ("auto", "float32", "bfloat16", "float16"):
            raise ValueError(f"dtype must be auto, float32, bfloat16 or float16, got {self.dtype!r}.")
        if self.is_delta and self.model_name_or_path is None:
            raise ValueError("A .pth holds changes only: give the base that it was trained on as model_name_or_path.")
        if not self.is_delta and (self.model_name_or_path or self.merge or self.lora_alpha is not None):
            raise ValueError("model_name_or_path, merge and lora_alpha have a meaning only where source is a .pth.")
        if self.is_delta and not self.merge and self.layout == "published":
            raise ValueError("An adapter has no published layout: add --merge true, or leave layout out.")
        if self.is_delta and not self.merge and self.dtype != "auto":
            raise ValueError("dtype has no effect on an adapter, which keeps its float32: add --merge true.")
        check_new(self.output_dir)


def make_parser() -> RecipeParser:
    """What reads the options of the task, and prints them for `--help`."""
    kinds = (ConvertArguments,)
    return RecipeParser(kinds, prog="sa2va-trl convert", description=__doc__)


def main() -> None:
    (args,) = make_parser().parse_args_and_config()
    delta = read_delta(args.source) if args.is_delta else None
    name = args.model_name_or_path or args.source
    dtype = args.dtype
    if delta is not None:
        dtype = "float32"  # trained copies take the base's dtype, and merging is done in full precision
    elif dtype == "auto":
        dtype = stored_dtype(checkpoint_folder(name)[0])
    model = Sa2VAForConditionalGeneration.from_pretrained(name, dtype=dtype)
    processor = Sa2VAProcessor.from_pretrained(name)
    if delta is not None:
        model = SegPeftModel.adopt(apply_delta(model, delta, args.lora_alpha))
    if args.merge:
        model = merge_adapter(model, None if args.dtype == "auto" else getattr(torch, args.dtype))
    with written_beside(args.output_dir) as folder:
        if delta is not None and not args.merge:
            model.save_pretrained(folder)
            processor.save_pretrained(folder)
        else:
            model.save_pretrained(folder, layout=args.layout)
            processor.save_pretrained(folder, layout=args.layout)
    options, then = {"model_name_or_path": args.output_dir}, None
    if delta is not None and not args.merge:
        options = {"model_name_or_path": name, "adapter": args.output_dir}
    if args.layout == "native":
        then = f"try it: {command('predict', **options)}"
    count = sum(parameter.numel() for parameter in model.parameters())
    finish(f"{args.source}: {count:,} parameters", f"written to {args.output_dir}", then)
