"""
Put a trained tiny model into the package as the weights of `tiny`, as one bfloat16 file:

    python -m sa2va_trl.scripts.ship_tiny outputs/tiny/pretrain_answers
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from ..models import Sa2VAForConditionalGeneration
from ..models.tiny import WEIGHTS


# Of the random matrix behind SAM 2's position encoding half of the bits would move every coordinate.
EXACT = "positional_encoding_gaussian_matrix"


def ship(source: str, target: Path = WEIGHTS) -> None:
    """
    Args:
        source (`str`): folder of the trained model.
        target (`Path`, *optional*, defaults to `WEIGHTS`): the file.
    """
    states = Sa2VAForConditionalGeneration.from_pretrained(source).state_dict()
    weights = {name: value if EXACT in name else value.to(torch.bfloat16) for name, value in states.items()}
    target.parent.mkdir(exist_ok=True)
    save_file({name: value.contiguous() for name, value in weights.items()}, target, metadata={"format": "pt"})
    target.chmod(0o644)  # safetensors makes it for its owner alone
    print(f"{target}: {target.stat().st_size:,} bytes, {sum(value.numel() for value in states.values()):,} values")


if __name__ == "__main__":
    ship(sys.argv[1])
