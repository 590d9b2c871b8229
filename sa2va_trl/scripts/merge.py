"""
Merge an adapter into its base model: a model of its own, checked against the adapter on an image before it is written.

    sa2va-trl merge --model_name_or_path BASE --adapter ADAPTER --output_dir MERGED --result_dtype bfloat16
"""

import logging
from dataclasses import dataclass, field

import torch
from PIL import Image

from ..adapters.peft_model import merge_adapter
from ..data import SegCollator
from ..data.collator import TARGETS
from ..data.synthetic import synthetic_dataset
from ..files import written_beside
from ..media.clips import read_media
from ..model_card import model_card, public_name, write_card
from ..models import Sa2VAProcessor
from .arguments import ModelArguments, RecipeParser
from .commands import command
from .loading import Model, load_model
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

    def __post_init__(self):
        if self.result_dtype not in ("float32", "bfloat16", "float16"):
            raise ValueError(f"result_dtype must be float32, bfloat16 or float16, got {self.result_dtype!r}.")
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
    if model_args.adapter is None:
        raise ValueError("Merging needs --adapter.")
    if model_args.dtype != "float32" or model_args.grounding_image_size is not None:
        raise ValueError("Merging runs in float32 at the model's own size: leave out dtype and grounding_image_size.")
    if args.image is None:
        image = synthetic_dataset(num_videos=1, frames_per_video=1)[0]["image"]
    else:
        _, image = next(read_media(args.image))

    # Merge and compare
    model, processor = load_model(model_args)
    base, adapter = public_name(model.config._name_or_path), public_name(model_args.adapter)
    expected = logits(model, processor, image)
    model = merge_adapter(model)
    found = logits(model, processor, image)
    for name, value in expected.items():
        difference = ((found[name] - value).abs().max() / value.abs().max()).item()
        logger.info(f"{name} logits of merged model and adapter differ by {difference:.1e} of the largest")
        if not difference <= TOLERANCE:  # NaN is refused too
            raise ValueError(
                f"The merged model's {name} logits differ by {difference:.1e}, more than {TOLERANCE:.0e}: nothing was "
                "written."
            )

    # Save
    stage = f"merged with [{adapter}](https://huggingface.co/{adapter})" if adapter else "merged with an adapter"
    with written_beside(args.output_dir) as folder:
        model.to(getattr(torch, args.result_dtype)).save_pretrained(folder)
        processor.save_pretrained(folder)
        write_card(folder, model_card("Sa2VA, merged", base, stage=stage))
    finish(
        "adapter merged into its base",
        f"merged model in {args.output_dir}",
        f"try it: {command('predict', model_name_or_path=args.output_dir)}",
    )
