"""
Segment an image, a folder of images or a video: masks, probability maps, overlays and a JSON.

    python recipes/predict.py --model_name_or_path outputs/tiny/sft --input IMAGE --prompt "Please segment the blood
    vessel."
"""

from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm.auto import tqdm

from sa2va_trl.arguments import ModelArguments, RecipeParser, RouterArguments, load_model, load_router
from sa2va_trl.data.media import VIDEO_SUFFIXES, read_media
from sa2va_trl.evaluation import overlay
from sa2va_trl.evaluation.evaluator import write_json
from sa2va_trl.evaluation.overlays import file_name
from sa2va_trl.routing import routing_report


@dataclass
class PredictArguments:
    input: str = field(metadata={"help": "An image, a folder of images (each on its own) or a video."})
    prompt: str = field(default="Please segment the blood vessel.", metadata={"help": "What to segment."})
    answer: str | None = field(
        default=None, metadata={"help": 'Take this answer as given ("Sure, [SEG].") instead of generating one.'}
    )
    threshold: float | None = field(default=None, metadata={"help": "Probability; the model's own by default."})
    output_dir: str = field(default="outputs/predictions", metadata={"help": "Where the results go."})
    max_new_tokens: int | None = field(default=None, metadata={"help": "Longest answer; 256 by default."})
    per_frame: bool = field(default=False, metadata={"help": "Take each frame of a video as an image of its own."})
    frame_policy: str | None = field(
        default=None, metadata={"help": "Frames of a video to prompt: uniform or first; the model's own by default."}
    )
    num_frames: int | None = field(default=None, metadata={"help": "How many of them."})
    tracking: str | None = field(
        default=None, metadata={"help": "How they reach the others: soft or mask_prompt; the model's own by default."}
    )

    @property
    def is_video(self) -> bool:
        return Path(self.input).suffix.lower() in VIDEO_SUFFIXES

    @property
    def tracking_options(self) -> dict:
        return {"frame_policy": self.frame_policy, "num_frames": self.num_frames, "tracking": self.tracking}

    def __post_init__(self):
        if self.answer is not None and self.max_new_tokens is not None:
            raise ValueError("max_new_tokens has no effect with an answer, since nothing is generated.")
        if self.per_frame and not self.is_video:
            raise ValueError(f"per_frame is for a video; input {self.input} is none.")
        given = [name for name, value in self.tracking_options.items() if value is not None]
        if given and (self.per_frame or not self.is_video):
            raise ValueError(f"{', '.join(given)} is for a video whose frames are not taken one by one (per_frame).")
        if self.threshold is not None and not 0 < self.threshold < 1:
            raise ValueError(f"threshold must lie between 0 and 1, got {self.threshold}.")


def check_router(args: PredictArguments, router_args: RouterArguments) -> None:
    if router_args.has_router and router_args.route_threshold is None:
        raise ValueError("A router needs route_threshold; recipes/evaluate.py can choose one (route_split).")
    if router_args.has_router and args.is_video and not args.per_frame:
        raise ValueError("A router sends frames, and a video is tracked as a whole: add per_frame.")


def segmentations(args, model, processor, pictures, router=None):
    """The name, the picture, the result and the route of every image or frame."""
    request = {
        "text": args.prompt,
        "processor": processor,
        "threshold": args.threshold,
        "answer": args.answer,
    }
    if args.answer is None:
        request["max_new_tokens"] = args.max_new_tokens or 256
    if args.is_video and not args.per_frame:
        result = model.segment(video=args.input, **args.tracking_options, **request)
        warn(args.input, result)
        for index, (name, image) in enumerate(pictures):
            yield name, image, result.frame(index), {}
    else:
        for name, image in pictures:
            if router is None:
                result, route = model.segment(image=image, **request), {}
            else:
                result, route = router.segment(model, image=image, **request)
            warn(name, result)
            yield name, image, result, route


def warn(name, result):
    if not len(result.iou_scores):
        tqdm.write(f"{name}: the answer holds no [SEG], so there is no mask: {result.text[:100]!r}")


def main():
    parser = RecipeParser((PredictArguments, ModelArguments, RouterArguments))
    args, model_args, router_args = parser.parse_args_and_config()
    check_router(args, router_args)
    pictures = read_media(args.input)
    first = next(pictures)  # a bad input is reported before a model is loaded
    model, processor = load_model(model_args)
    model = model.eval().to("cuda" if torch.cuda.is_available() else "cpu")
    router = load_router(router_args, model_args, model, processor) if router_args.has_router else None

    output = Path(args.output_dir)
    for name in ("masks", "probabilities", "overlays"):
        (output / name).mkdir(parents=True, exist_ok=True)
    predictions = []
    results = segmentations(args, model, processor, chain([first], pictures), router)
    for name, image, result, route in tqdm(results, desc="predict"):
        objects, probabilities = [], result.probabilities.cpu().numpy()
        masks = probabilities > result.threshold
        for index, (phrase, score) in enumerate(zip(result.phrases, result.iou_scores.tolist(), strict=True)):
            stem = file_name(name) if len(result.phrases) == 1 else f"{file_name(name)}.object{index}"
            Image.fromarray(masks[index].astype(np.uint8) * 255).save(output / "masks" / f"{stem}.png")
            np.save(output / "probabilities" / f"{stem}.npy", probabilities[index])
            overlay(image, masks[index]).save(output / "overlays" / f"{stem}.png")
            objects.append({"phrase": phrase, "mask": f"masks/{stem}.png", "predicted_iou": score})
        predictions.append({"name": name, "text": result.text, "objects": objects, **route})
    write_json(output / "predictions.json", {"prompt": args.prompt, "predictions": predictions})
    if router is not None:
        print(routing_report(router, predictions))
    print(f"{len(predictions)} images; results in {output}")


if __name__ == "__main__":
    main()
