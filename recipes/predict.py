"""
Segment an image, a folder of images or a video: masks, probability maps, overlays and a JSON.

    python recipes/predict.py --model_name_or_path outputs/tiny/sft --input IMAGE --prompt "Please segment the blood
    vessel."
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm.auto import tqdm
from trl import TrlParser

from sa2va_trl.arguments import ModelArguments, load_model
from sa2va_trl.data.media import read_media
from sa2va_trl.evaluation import overlay
from sa2va_trl.evaluation.evaluator import write_json
from sa2va_trl.evaluation.overlays import file_name


@dataclass
class PredictArguments:
    input: str = field(metadata={"help": "An image, a folder of images or a video (each frame on its own)."})
    prompt: str = field(default="Please segment the blood vessel.", metadata={"help": "What to segment."})
    answer: str | None = field(
        default=None, metadata={"help": 'Take this answer as given ("Sure, [SEG].") instead of generating one.'}
    )
    threshold: float | None = field(default=None, metadata={"help": "Probability; the model's own by default."})
    output_dir: str = field(default="outputs/predictions", metadata={"help": "Where the results go."})
    max_new_tokens: int = field(default=256, metadata={"help": "Longest answer."})

    def __post_init__(self):
        if self.threshold is not None and not 0 < self.threshold < 1:
            raise ValueError(f"threshold must lie between 0 and 1, got {self.threshold}.")


def main():
    args, model_args = TrlParser((PredictArguments, ModelArguments)).parse_args_and_config()
    inputs = read_media(args.input)
    first = next(inputs)  # a bad input is reported before a model is loaded
    model, processor = load_model(model_args)
    model = model.eval().to("cuda" if torch.cuda.is_available() else "cpu")

    output = Path(args.output_dir)
    for name in ("masks", "probabilities", "overlays"):
        (output / name).mkdir(parents=True, exist_ok=True)
    predictions = []
    for name, image in tqdm((pair for source in ([first], inputs) for pair in source), desc="predict"):
        result = model.segment(
            image=image,
            text=args.prompt,
            processor=processor,
            threshold=args.threshold,
            answer=args.answer,
            max_new_tokens=args.max_new_tokens,
        )
        objects = []
        for index, (phrase, score) in enumerate(zip(result.phrases, result.iou_scores.tolist(), strict=True)):
            stem = file_name(name) if len(result.phrases) == 1 else f"{file_name(name)}.object{index}"
            mask = result.masks[index].cpu().numpy()
            Image.fromarray(mask.astype(np.uint8) * 255).save(output / "masks" / f"{stem}.png")
            np.save(output / "probabilities" / f"{stem}.npy", result.probabilities[index].cpu().numpy())
            overlay(image, mask).save(output / "overlays" / f"{stem}.png")
            objects.append({"phrase": phrase, "mask": f"masks/{stem}.png", "predicted_iou": score})
        if not objects:
            tqdm.write(f"{name}: the answer holds no [SEG], so there is no mask: {result.text[:100]!r}")
        predictions.append({"name": name, "text": result.text, "objects": objects})
    write_json(output / "predictions.json", {"prompt": args.prompt, "predictions": predictions})
    print(f"{len(predictions)} images; results in {output}")


if __name__ == "__main__":
    main()
