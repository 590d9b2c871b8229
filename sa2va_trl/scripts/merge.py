"""
Merge an adapter into its base model: a model of its own, checked against the adapter on an image before it is written.
With --quantize the layers of its language model are stored in 8 or 4 bits (bitsandbytes); then no adapter is needed.

    sa2va-trl merge --model_name_or_path BASE --adapter ADAPTER --output_dir MERGED --result_dtype bfloat16
    sa2va-trl merge --model_name_or_path MERGED --quantize int8 --output_dir QUANTISED
"""

import logging
import math
from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image

from ..adapters.peft_model import merge_adapter
from ..data import SegCollator
from ..data.collator import TARGETS
from ..data.synthetic import synthetic_dataset
from ..files import written_beside
from ..media.clips import read_media
from ..model_card import model_card, public_name, write_card
from ..models import Sa2VAForConditionalGeneration, Sa2VAProcessor
from ..models.checkpoints import weight_files
from ..models.quantization import quantised_layers
from .arguments import QUANTISED, ModelArguments, RecipeParser
from .commands import command
from .loading import Model, cast, load_model, quantization_config
from .output import check_new
from .screen import finish


logger = logging.getLogger(__name__)

# Largest difference of a logit, relative to the largest logit.
TOLERANCE = 1e-5


@dataclass
class MergeArguments:
    output_dir: str = field(metadata={"help": "New folder for the merged model and its processor."})
    image: str | None = field(default=None, metadata={"help": "Image to compare on; a generated one by default."})
    result_dtype: str = field(
        default="float32", metadata={"help": "Type of the merged weights: float32, bfloat16 or float16."}
    )
    quantize: str | None = field(
        default=None,
        metadata={"help": "Store the language model's layers in int8 or int4; --adapter may then be left out."},
    )

    def __post_init__(self):
        if self.result_dtype not in ("float32", "bfloat16", "float16"):
            raise ValueError(f"result_dtype must be float32, bfloat16 or float16, got {self.result_dtype!r}.")
        if self.quantize not in (None, *QUANTISED):
            raise ValueError(f"quantize must be int8 or int4, got {self.quantize!r}.")
        check_new(self.output_dir)


@torch.no_grad()
def logits(model: Model, processor: Sa2VAProcessor, image: Image.Image) -> dict[str, torch.Tensor]:
    """Language and mask logits of a question and an answer about an image."""
    row = {"image": image, "masks": [Image.new("L", image.size)], "phrases": ["blood vessel"], "sample_id": "sample"}
    batch = SegCollator(processor)([row])
    inputs = {name: batch[name] for name in batch if name not in TARGETS}
    outputs = model.eval()(**inputs)
    return {"language": outputs.logits, "mask": outputs.mask_logits}


def make_parser() -> RecipeParser:
    """What reads the options of the task, and prints them for `--help`."""
    kinds = (MergeArguments, ModelArguments)
    return RecipeParser(kinds, prog="sa2va-trl merge", description=__doc__)


def main() -> None:
    args, model_args = make_parser().parse_args_and_config()
    if model_args.adapter is None and args.quantize is None:
        raise ValueError("Merging needs --adapter (and --quantize works without one).")
    if model_args.dtype != "float32" or model_args.grounding_image_size is not None:
        raise ValueError("Merging runs in float32 at the model's own size: leave out dtype and grounding_image_size.")
    if model_args.quantization is not None:
        raise ValueError("Merging runs on the plain base: in place of quantization, say how to store it: quantize.")
    if args.image is None:
        image = synthetic_dataset(num_videos=1, frames_per_video=1)[0]["image"]
    else:
        _, image = next(read_media(args.image))

    model, processor = load_model(model_args)
    if quantised_layers(model):
        raise ValueError(f"{model_args.model_name_or_path} is quantised already: give the plain model.")
    base, adapter = public_name(model.config._name_or_path), public_name(model_args.adapter)
    expected = logits(model, processor, image)
    stage = f"quantised ({args.quantize})"
    if model_args.adapter is not None:
        model = merge_adapter(model)
        differences = _differences(logits(model, processor, image), expected)
        for name, difference in differences.items():
            logger.info(f"{name} logits of merged model and adapter differ by {difference:.1e} of the largest")
            if not difference <= TOLERANCE:  # NaN is refused too
                raise ValueError(
                    f"The merged model's {name} logits differ by {difference:.1e}, more than {TOLERANCE:.0e}: nothing "
                    "was written."
                )
        stage = f"merged with [{adapter}](https://huggingface.co/{adapter})" if adapter else "merged with an adapter"
        stage += f", quantised ({args.quantize})" if args.quantize else ""

    with written_beside(args.output_dir) as folder:
        cast(model, args.result_dtype)
        model.save_pretrained(folder)
        if args.quantize is not None:
            del model
            model = _quantise(folder, args)
            differences = _differences(logits(model, processor, image), expected)
            logger.info(", ".join(f"{name} logits differ by {value:.1e}" for name, value in differences.items()))
            if not all(math.isfinite(difference) for difference in differences.values()):
                raise ValueError("The quantised model's logits are not finite: nothing was written.")
        processor.save_pretrained(folder)
        write_card(
            folder, model_card("Sa2VA, merged" if model_args.adapter else "Sa2VA, quantised", base, stage=stage)
        )
        size = sum(file.stat().st_size for file in weight_files(folder)) / 2**20
    finish(
        "adapter merged into its base" if model_args.adapter is not None else "quantised",
        f"model of {size:,.0f} MiB in {args.output_dir}",
        f"try it: {command('predict', model_name_or_path=args.output_dir)}",
    )


def _differences(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> dict[str, float]:
    """Largest difference of each kind of logits, relative to the largest logit."""
    return {name: ((found[name] - value).abs().max() / value.abs().max()).item() for name, value in expected.items()}


def _quantise(folder: Path, args: MergeArguments) -> Sa2VAForConditionalGeneration:
    """Put quantised weights in place of the plain ones in a folder, and load them from there."""
    config = quantization_config(QUANTISED[args.quantize], args.result_dtype)
    model = Sa2VAForConditionalGeneration.from_pretrained(folder, quantization_config=config)
    # (Before it computes anything: on CPUs bitsandbytes packs 4-bit weights anew for that, and rounds scales.)
    model.save_pretrained(folder)
    return Sa2VAForConditionalGeneration.from_pretrained(folder)
