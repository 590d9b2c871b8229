"""The two halves that draw masks, as ONNX files: SAM 2's image encoder, and the mask decoder."""

import contextlib
import io
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from ..errors import CheckpointError


if TYPE_CHECKING:
    from .modeling import Sa2VAForConditionalGeneration


OPSET = 20
#: Largest difference between the files and torch, on random inputs.
TOLERANCE = 1e-4
IMAGE_ENCODER, MASK_DECODER = "image_encoder.onnx", "mask_decoder.onnx"
_PYRAMID = ("fine", "middle", "coarse")


class _ImageEncoder(nn.Module):
    def __init__(self, model: "Sa2VAForConditionalGeneration"):
        super().__init__()
        self.grounding_encoder = model.grounding_encoder

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return self.grounding_encoder.encode(pixel_values)


class _MaskDecoder(nn.Module):
    def __init__(self, model: "Sa2VAForConditionalGeneration"):
        super().__init__()
        self.grounding_encoder = model.grounding_encoder

    def forward(
        self, fine: torch.Tensor, middle: torch.Tensor, coarse: torch.Tensor, prompts: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        image_index = torch.zeros_like(prompts[:, 0], dtype=torch.long)
        return self.grounding_encoder.decode((fine, middle, coarse), prompts, image_index)[:2]


@torch.no_grad()
def export_onnx(model: "Sa2VAForConditionalGeneration", folder: str | Path) -> dict[str, float]:
    """
    Write `image_encoder.onnx` and `mask_decoder.onnx`, and check both against torch with onnxruntime on the CPU.

    The encoder takes `pixel_values` (1, 3, S, S), as `Sa2VAProcessor.grounding_inputs` makes them, and gives the
    pyramid: `fine` (1, C, S/4, S/4), `middle` (1, C, S/8, S/8) and `coarse` (1, C, S/16, S/16). The decoder takes
    these three and `prompts` (objects, C), of `mask_prompts`, and gives `mask_logits` (objects, 3, S/4, S/4) and
    `iou_scores` (objects, 3) in [0, 1].

    All are float32. S is fixed by the model, the number of objects (at least one) is free. The language model, whose
    `[SEG]` states prompts are made of, is in neither.

    Args:
        model (`Sa2VAForConditionalGeneration`): in float32, on the CPU, in evaluation mode.
        folder (`str` or `Path`): that exists; what is written to it is complete, or nothing is.

    Returns:
        `dict` from a file's name to its largest difference from torch, relative to the largest value where that is
        above 1.

    Raises:
        `ValueError`: the model is not in float32, on the CPU and in evaluation mode.
        `CheckpointError`: a file's outputs differ by more than `TOLERANCE`; both files are removed.
        `ImportError`: `sa2va_trl[onnx]` is not installed.

    Example:

        ```python
        >>> from sa2va_trl import tiny_sa2va
        >>> from sa2va_trl.models.onnx import export_onnx

        >>> model, _ = tiny_sa2va(image_size=128)
        >>> differences = export_onnx(model.eval(), "FOLDER")  # doctest: +SKIP

        ```
    """
    weight = model.grounding_encoder.sam2_model.no_mem_embed
    if weight.dtype != torch.float32 or weight.device.type != "cpu" or model.training:
        raise ValueError("export_onnx takes a model in float32, on the CPU and in evaluation mode.")
    grid, folder = model.config.grounding_config, Path(folder)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn((1, 3, grid.image_size, grid.image_size), generator=generator)
    pyramid = model.grounding_encoder.encode(pixels)
    prompts = torch.randn((5, grid.hidden_dim), generator=generator)
    objects = {0: torch.export.Dim("objects", min=1)}
    still = dict.fromkeys(_PYRAMID)
    differences = {}
    try:
        for name, module, inputs, outputs, shapes in (
            (IMAGE_ENCODER, _ImageEncoder(model), {"pixel_values": pixels}, _PYRAMID, {"pixel_values": None}),
            (
                MASK_DECODER,
                _MaskDecoder(model),
                dict(zip(_PYRAMID, pyramid, strict=True)) | {"prompts": prompts},
                ("mask_logits", "iou_scores"),
                {**still, "prompts": objects},
            ),
        ):
            _write(folder / name, module.eval(), inputs, outputs, shapes)
            counts = (5, 1, 2) if "prompts" in inputs else (None,)
            cases = [inputs if count is None else inputs | {"prompts": prompts[:count]} for count in counts]
            differences[name] = max(_difference(folder / name, module, case) for case in cases)
            if not differences[name] <= TOLERANCE:  # NaN is refused too
                raise CheckpointError(
                    f"{name} differs from torch by {differences[name]:.1e}, above {TOLERANCE:.0e}: nothing was kept."
                )
    except BaseException:
        for name in (IMAGE_ENCODER, MASK_DECODER):
            for file in folder.glob(f"{name}*"):
                file.unlink()
        raise
    return differences


def _write(file: Path, module: nn.Module, inputs: dict, outputs: tuple[str, ...], dynamic_shapes: dict) -> None:
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")  # of the exporter, about itself
        torch.onnx.export(
            module,
            tuple(inputs.values()),
            file,
            input_names=list(inputs),
            output_names=list(outputs),
            dynamo=True,
            dynamic_shapes=dynamic_shapes,
            opset_version=OPSET,
            external_data=False,  # one file: SAM 2's largest encoder has 0.9 GB, and protobuf takes 2
            verbose=False,
        )


def _difference(file: Path, module: nn.Module, inputs: dict[str, torch.Tensor]) -> float:
    """The largest difference between a file's outputs and the module's."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    found = session.run(None, {name: value.numpy() for name, value in inputs.items()})
    expected = [value.numpy() for value in module(*inputs.values())]
    return max(
        float(np.abs(one - other).max() / max(1.0, np.abs(other).max()))
        for one, other in zip(found, expected, strict=True)
    )
