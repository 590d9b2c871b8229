"""What a model makes of rows, for what goes on from there."""

import torch

from sa2va_trl.data import SegCollator
from sa2va_trl.metrics import confusion_counts, dice


def encode(model, processor, rows):
    batch = SegCollator(processor)(list(rows))
    inputs = {name: batch[name] for name in batch if name not in ("original_masks", "masks", "labels")}
    with torch.no_grad():
        return model.encode(**inputs), batch["masks"]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def true_dice(mask, target):
    return dice(confusion_counts(mask, target))
