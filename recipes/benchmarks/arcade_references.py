"""References that a trained model is compared with on a one-object data set (written for ARCADE):

* `sato`, `frangi`: a vesselness filter, a threshold and a minimum component size, all tuned on the validation split;
* `unet`: a U-Net of at most 0.5 M parameters, trained from random weights for a budget of time. Weights and threshold
  are chosen on the validation split;
* `unet_pretrained`: the same, from what `--pretrain_minutes` on the vessels of the generated angiograms left that the
  weights of `tiny` come from. `--pretrained FILE` keeps them for the next call.

Minutes are of processor time on one thread, so that what else the machine does changes nothing.

Each is measured per image at the image's own size on the test split, and nothing is chosen there.

    python recipes/benchmarks/arcade_references.py --dataset_name DIR --output_dir outputs/references --minutes 20
"""

import argparse
import copy
import json
import math
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from scipy import ndimage
from skimage.filters import frangi, sato
from torch import nn

from sa2va_trl.data import structure_dataset
from sa2va_trl.data.loading import load_dataset_dict
from sa2va_trl.evaluation.statistics import summarize
from sa2va_trl.metrics import confusion_counts, dice, iou


SCALES = {"thin": (1, 2, 3), "medium": (2, 3, 4, 5), "wide": (3, 5, 7)}  # Gaussian sigmas in pixels of a 512 image
SCORE_CUTS = np.linspace(0.05, 0.6, 12)  # fractions of the image's own 99.5th percentile of the filter
MIN_SIZES = (0, 100, 300, 1000, 2000, 4000)  # pixels in a connected component
PROBABILITIES = np.linspace(0.2, 0.8, 13)


def read_split(rows):
    """Returns the images as float32 (H, W) in [0, 1], the union of each row's masks as bool (H, W), and the ids."""
    images, masks = [], []
    for row in rows:
        images.append(np.asarray(row["image"].convert("L"), np.float32) / 255)
        union = np.zeros(images[-1].shape, bool)
        for mask in row["masks"]:
            union |= np.asarray(mask) > 0
        masks.append(union)
    return images, masks, list(rows["sample_id"])


def dice_of(prediction, target):
    return dice(confusion_counts(prediction, target))


# -------------------------------------------------------------------------------------------------- vesselness filters
def vesselness(name, image, sigmas):
    response = (sato if name == "sato" else frangi)(image, sigmas=sigmas, black_ridges=True)
    return response / max(np.percentile(response, 99.5), 1e-12)


def keep_large(mask, minimum):
    labels, _ = ndimage.label(mask, structure=np.ones((3, 3)))
    large = np.bincount(labels.ravel()) >= minimum
    large[0] = False
    return large[labels]


def tune_filter(name, images, masks):
    """The (scale, cut, minimum size) with the highest mean Dice, and that Dice."""
    best = (-1.0, None)
    for scale, sigmas in SCALES.items():
        table = np.zeros((len(SCORE_CUTS), len(MIN_SIZES)))
        for image, mask in zip(images, masks, strict=True):
            response = vesselness(name, image, sigmas)
            for i, cut in enumerate(SCORE_CUTS):
                binary = response > cut
                for j, minimum in enumerate(MIN_SIZES):
                    binary = keep_large(binary, minimum)  # sizes ascend, so each filter may continue from the last
                    table[i, j] += dice_of(binary, mask) / len(images)
        i, j = np.unravel_index(table.argmax(), table.shape)
        if table[i, j] > best[0]:
            best = (table[i, j], {"scale": scale, "cut": float(SCORE_CUTS[i]), "min_size": MIN_SIZES[j]})
    return best


# --------------------------------------------------------------------------------------------------------------- U-Net
def double_conv(inputs, outputs):
    layers = []
    for channels in (inputs, outputs):
        layers += [nn.Conv2d(channels, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(True)]
    return nn.Sequential(*layers)


class UNet(nn.Module):
    """Ronneberger et al. 2015 with batch normalisation and bilinear upsampling: (N, 1, H, W) -> logits (N, 1, H, W);
    H and W are multiples of 16."""

    def __init__(self, widths=(16, 32, 48, 64, 80)):
        super().__init__()
        self.down = nn.ModuleList(double_conv(a, b) for a, b in zip((1, *widths[:-1]), widths, strict=True))
        self.up = nn.ModuleList(double_conv(a + b, a) for a, b in zip(widths[-2::-1], widths[:0:-1], strict=True))
        self.head = nn.Conv2d(widths[0], 1, 1)

    def forward(self, x):
        skips = []
        for i, block in enumerate(self.down):
            x = block(F.max_pool2d(x, 2) if i else x)
            skips.append(x)
        for block, skip in zip(self.up, skips[-2::-1], strict=True):
            x = block(torch.cat([skip, F.interpolate(x, scale_factor=2, mode="bilinear")], dim=1))
        return self.head(x)


def augment(images, masks, generator):
    """Flips, rotation within 25 degrees, scale 0.8-1.25, shift within 10 %, gamma and contrast, one draw an image."""

    def uniform(low, high):
        return torch.rand(len(images), generator=generator) * (high - low) + low

    angle, scale = torch.deg2rad(uniform(-25, 25)), torch.exp(uniform(math.log(0.8), math.log(1.25)))
    flip_x, flip_y = uniform(-1, 1).sign(), uniform(-1, 1).sign()
    cos, sin = angle.cos() / scale, angle.sin() / scale
    theta = torch.stack([cos * flip_x, -sin, uniform(-0.1, 0.1), sin, cos * flip_y, uniform(-0.1, 0.1)], dim=1)
    grid = F.affine_grid(theta.view(-1, 2, 3), list(images.shape), align_corners=False)
    images = F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
    masks = F.grid_sample(masks, grid, padding_mode="reflection", align_corners=False)
    gamma = torch.exp(uniform(-0.4, 0.4)).view(-1, 1, 1, 1)
    contrast = torch.exp(uniform(-0.25, 0.25)).view(-1, 1, 1, 1)
    return images.clamp(1e-4, 1).pow(gamma) * contrast, masks


def to_tensor(arrays, size):
    """Area-averaged to (N, 1, size, size): images keep [0, 1], masks become coverage."""
    tensors = [torch.from_numpy(np.asarray(a, np.float32))[None, None] for a in arrays]
    return torch.cat([F.interpolate(t, (size, size), mode="area") for t in tensors])


@torch.no_grad()
def predict(model, image, size):
    """Probabilities of a float (H, W) image at its own size."""
    logits = model((to_tensor([image], size) - 0.5) / 0.25)
    return F.interpolate(logits, image.shape, mode="bilinear")[0, 0].sigmoid().numpy()


def sweep_unet(model, images, masks, size):
    model.eval()
    probabilities = [predict(model, image, size) for image in images]
    means = [np.mean([dice_of(p > t, m) for p, m in zip(probabilities, masks, strict=True)]) for t in PROBABILITIES]
    return float(max(means)), float(PROBABILITIES[int(np.argmax(means))])


def train_unet(train, validation, args, minutes, start_from=None):
    """Trains for `minutes` of processor time, validation included; the learning rate follows the clock (warm-up for
    5 %, then a cosine to 0). Returns the model with the best validation Dice, that Dice and its threshold."""
    torch.manual_seed(args.seed)
    generator = torch.Generator().manual_seed(args.seed)
    images, masks = to_tensor(train[0], args.image_size), to_tensor(train[1], args.image_size)
    model = UNet()
    if start_from is not None:
        model.load_state_dict(start_from)
    model = model.to(memory_format=torch.channels_last)  # a quarter faster on a CPU
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.learning_rate, weight_decay=1e-2)
    best, best_state, history = (-1.0, 0.5), None, []
    start, budget, next_validation = time.process_time(), minutes * 60, 0.1
    order = torch.empty(0, dtype=torch.long)
    while (progress := (time.process_time() - start) / budget) < 1:
        optimizer.param_groups[0]["lr"] = args.learning_rate * min(
            progress / 0.05 + 1e-2, (1 + math.cos(math.pi * progress)) / 2
        )
        if len(order) < args.batch_size:
            order = torch.randperm(len(images), generator=generator)
        rows, order = order[: args.batch_size], order[args.batch_size :]
        x, y = augment(images[rows], masks[rows], generator)
        logits = model.train()((x - 0.5) / 0.25)
        probability = logits.sigmoid()
        overlap, total = (probability * y).sum((1, 2, 3)), (probability + y).sum((1, 2, 3))
        loss = F.binary_cross_entropy_with_logits(logits, y) + (1 - (2 * overlap + 1) / (total + 1)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if (time.process_time() - start) / budget >= next_validation:
            score = sweep_unet(model, *validation[:2], args.image_size)
            history.append(
                {"minutes": (time.process_time() - start) / 60, "val_dice": score[0], "threshold": score[1]}
            )
            print(json.dumps(history[-1]), flush=True)
            next_validation = min(next_validation + 0.1, 0.98)  # the last ones, at the lowest rate, fit in too
            if score[0] > best[0]:
                best, best_state = score, copy.deepcopy(model.state_dict())
    model.load_state_dict(best_state)
    return model.eval(), best, history


def generated(first_video, num_videos):
    """Vessels of generated runs, as `read_split` gives them; numbered as in recipes/configs/tiny/pretrain.yaml."""
    rows = structure_dataset(num_videos, 8, first_video=first_video, structures=["blood vessel"])
    images = [np.asarray(row["image"].convert("L"), np.float32) / 255 for row in rows]
    return images, [np.asarray(row["mask"]) > 0 for row in rows]


def pretrained_unet(args):
    """Weights of the U-Net after the generated angiograms: those of the file, or else trained and put there."""
    if args.pretrained is not None and args.pretrained.exists():
        return load_file(args.pretrained)
    model, _, history = train_unet(generated(16, 400), generated(12, 4), args, args.pretrain_minutes)
    print("pretrained", json.dumps(history[-1]), flush=True)
    if args.pretrained is not None:
        args.pretrained.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: value.contiguous() for name, value in model.state_dict().items()}, args.pretrained)
    return model.state_dict()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_name", required=True, help="a folder with train, val and test")
    parser.add_argument("--output_dir", required=True, type=Path)
    parser.add_argument("--methods", nargs="+", default=["sato", "frangi", "unet"])
    parser.add_argument("--minutes", default=20.0, type=float, help="of the U-Net on the training split")
    parser.add_argument("--pretrain_minutes", default=39.0, type=float, help="of the U-Net on generated angiograms")
    parser.add_argument("--pretrained", type=Path, help="safetensors file that keeps the pretrained U-Net")
    parser.add_argument("--image_size", default=256, type=int, help="side of the U-Net's input; a multiple of 16")
    parser.add_argument("--batch_size", default=8, type=int)
    parser.add_argument("--learning_rate", default=3e-3, type=float)
    parser.add_argument("--seed", default=0, type=int)
    args = parser.parse_args()
    torch.set_num_threads(1)

    splits = load_dataset_dict(args.dataset_name)
    train, validation, test = (read_split(splits[name]) for name in ("train", "validation", "test"))
    samples, metrics = [], {}

    def record(method, predictions, how):
        counts = [confusion_counts(prediction, mask) for prediction, mask in zip(predictions, test[1], strict=True)]
        rows = [
            {"sample_id": sample_id, "method": method, "dice": dice(c), "iou": iou(c)}
            for sample_id, c in zip(test[2], counts, strict=True)
        ]
        metrics[method] = {key: summarize([row[key] for row in rows]) for key in ("dice", "iou")} | how
        samples.extend(rows)
        print(method, json.dumps(metrics[method]), flush=True)

    for name in (name for name in ("sato", "frangi") if name in args.methods):
        val_dice, how = tune_filter(name, *validation[:2])
        responses = (vesselness(name, image, SCALES[how["scale"]]) for image in test[0])
        record(name, [keep_large(r > how["cut"], how["min_size"]) for r in responses], how | {"val_dice": val_dice})
    for name in (name for name in ("unet", "unet_pretrained") if name in args.methods):
        start = pretrained_unet(args) if name == "unet_pretrained" else None
        model, (val_dice, threshold), history = train_unet(train, validation, args, args.minutes, start)
        how = {"val_dice": val_dice, "threshold": threshold, "minutes": args.minutes, "history": history}
        how["parameters"] = sum(p.numel() for p in model.parameters())
        record(name, [predict(model, image, args.image_size) > threshold for image in test[0]], how)

    args.output_dir.mkdir(parents=True, exist_ok=True)
    (args.output_dir / "metrics.json").write_text(json.dumps(metrics, indent=2))
    pd.DataFrame(samples).to_parquet(args.output_dir / "per_sample.parquet")


if __name__ == "__main__":
    main()
