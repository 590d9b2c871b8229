"""SAM 2 compiled for inference."""

import os
import shutil

from torch import nn


# What lies between them is a few operations; the last is there in some models only.
_COMPILED = (
    "image_encoder",
    "memory_attention",
    "memory_encoder",
    "sam_mask_decoder",
    "sam_mask_decoder_modified",
)


def compile_sam2(sam2: nn.Module, backend: str = "inductor") -> None:
    """
    Have SAM 2's image encoder, mask decoders and memory modules compiled by `torch.compile` when they are first
    called. They stay what they are in checkpoints and to callers.

    A module is compiled once for one object and once for several (and once more where a first number of several
    equals another of its sizes); the image encoder once for one picture and once or twice for several.

    Args:
        sam2 (`SAM2Base`): `model.grounding_encoder.sam2_model`, in evaluation mode.
        backend (`str`, *optional*, defaults to `"inductor"`): of `torch.compile`.

    Raises:
        `ValueError`: the weights are on a CPU, for which inductor writes C++, and there is no compiler of it.
    """
    if backend == "inductor" and sam2.no_mem_embed.device.type == "cpu" and not has_cxx():
        raise ValueError("torch_compile needs a C++ compiler on a CPU: install g++, set CXX, or leave it out.")
    for name in _COMPILED:
        if (module := getattr(sam2, name, None)) is not None:
            # Sizes of pictures are those of the model; only their number changes.
            module.compile(backend=backend, dynamic=None if name == "image_encoder" else True)


def has_cxx() -> bool:
    """Whether a C++ compiler can be found: that of `CXX`, or else one of the usual names."""
    given = os.environ.get("CXX")
    return any(shutil.which(name) for name in ([given] if given else ["g++", "clang++", "c++"]))
