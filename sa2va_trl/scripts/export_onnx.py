"""
Write the two halves that draw masks as ONNX files, checked against torch: SAM 2's image encoder, and the mask decoder,
which takes an image's pyramid and prompts. The language model, which prompts come from, is in neither; with --input
and --prompt the mean of its prompts for a question on pictures is stored beside them, as prompts.npy.

    sa2va-trl export_onnx --model_name_or_path MODEL --output_dir outputs/onnx
    sa2va-trl export_onnx --model_name_or_path BASE --adapter ADAPTER \\
        --input IMAGES --prompt "the blood vessel" --output_dir outputs/onnx
"""

from dataclasses import dataclass, field

import numpy as np
import torch

from ..adapters.peft_model import merge_adapter
from ..files import written_beside
from ..media.clips import read_media
from ..models import Sa2VAForConditionalGeneration, Sa2VAProcessor
from ..models.onnx import OPSET, export_onnx
from ..models.outputs import SegFeatures
from ..tokens import SEG_TOKEN
from .arguments import ModelArguments, RecipeParser
from .loading import load_model
from .output import check_new
from .screen import finish


PROMPTS = "prompts.npy"


@dataclass
class ExportArguments:
    output_dir: str = field(metadata={"help": "New folder for the files."})
    input: str | None = field(
        default=None, metadata={"help": "A picture or a folder of them, whose mean prompt is stored as prompts.npy."}
    )
    prompt: str | None = field(default=None, metadata={"help": "What input is asked, as in predict."})

    def __post_init__(self):
        if (self.input is None) != (self.prompt is None):
            raise ValueError("input and prompt belong together: give both, or neither.")
        check_new(self.output_dir)


def make_parser() -> RecipeParser:
    """What reads the options of the task, and prints them for `--help`."""
    return RecipeParser((ExportArguments, ModelArguments), prog="sa2va-trl export_onnx", description=__doc__)


def mean_prompt(model: Sa2VAForConditionalGeneration, processor: Sa2VAProcessor, path: str, text: str) -> np.ndarray:
    """
    The mean over pictures of the embedding that the language model prompts SAM 2 with, its answer given.

    Args:
        model ([`Sa2VAForConditionalGeneration`]): in evaluation mode.
        processor ([`Sa2VAProcessor`]): of it.
        path (`str`): a picture or a folder of them.
        text (`str`): the question.

    Returns:
        `np.ndarray` of shape `(1, C)`, float32.
    """
    prompts = []

    def decode(features: SegFeatures) -> tuple[torch.Tensor, torch.Tensor]:
        prompts.append(model.mask_prompts(features.seg_states))
        return model.decode_masks(features)

    for _, image in read_media(path):
        model.segment(image=image, text=text, answer=f"Sure, {SEG_TOKEN}.", processor=processor, decode=decode)
    return torch.cat(prompts).mean(dim=0, keepdim=True).float().numpy()


def main() -> None:
    args, model_args = make_parser().parse_args_and_config()
    if model_args.dtype != "float32" or model_args.quantization is not None:
        raise ValueError("ONNX files are of float32: leave out dtype and quantization.")
    model, processor = load_model(model_args)
    if model_args.adapter is not None:
        model = merge_adapter(model)
    model = model.eval().cpu()
    with written_beside(args.output_dir) as folder:
        differences = export_onnx(model, folder)
        if args.input is not None:
            np.save(folder / PROMPTS, mean_prompt(model, processor, args.input, args.prompt))
        sizes = {name: (folder / name).stat().st_size / 2**20 for name in differences}
    side = model.config.grounding_config.image_size
    finish(
        f"opset {OPSET}, {side} x {side} pixels",
        *(f"{name}: {sizes[name]:.1f} MiB, {value:.1e} from torch" for name, value in differences.items()),
        f"written to {args.output_dir}",
    )
