"""
A mixed strategy: one model draws every frame, and a second one draws again those that the first finds difficult.

How difficult a frame is, is judged without labels: by the IoU that the first model predicts for its mask, or by how
far apart its candidate masks are.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from datasets import Dataset
from peft import PeftModel
from torch import nn

from ..features.encoding import RowEncoder, Stored
from ..features.fingerprint import fingerprint
from ..mask_logits import mask_probabilities
from ..metrics import spread
from ..models import Sa2VAProcessor, Segmentation
from ..models.outputs import SegFeatures
from ..postprocessing import IDENTITY, Postprocessing
from ..questions import question_of
from ..sampling import MaskSampler, default_sampler
from .predictions import passes, probabilities, probabilities_of
from .results import ROUTE, score


ROUTE_BY = ("predicted_iou", "spread")
# Thresholds that no value reaches, and that every value does. (Both kinds of values lie in [0, 1].)
NOTHING = {"predicted_iou": -1.0, "spread": 2.0}
EVERYTHING = {"predicted_iou": 2.0, "spread": -1.0}


@dataclass
class Router:
    """
    Which frames go to a second model.

    A frame (a row of a data set, or a picture) goes there as a whole, whatever the rest of its batch is: by the mean
    over its masks.

    Args:
        model (`Sa2VAForConditionalGeneration` or `PeftModel`): the second one, on the device of the first.
        processor (`Sa2VAProcessor`): of the second one.
        shared (`bool`):
            Whether both make the same features, see [`make_router`]. The second then needs a pass of its mask decoder
            only, otherwise it runs as a whole on the frames that it gets.
        by (`str`, *optional*, defaults to `"predicted_iou"`):
            `"predicted_iou"` of the first model's mask; `"spread"` of its candidate masks (see
            [`~metrics.spread`]) on the decoder's own grid, which takes two more passes of its mask decoder.
        threshold (`float`, *optional*, defaults to 0.5):
            Frames with a predicted IoU below it, or a spread above it, go to the second model.
        sampler (`MaskSampler`, *optional*): of the candidates; see [`~sampling.default_sampler`].

    Raises:
        `ValueError`: an unknown `by`, or a threshold that is no finite number.
    """

    model: nn.Module
    processor: Sa2VAProcessor
    shared: bool
    by: str = "predicted_iou"
    threshold: float = 0.5
    sampler: MaskSampler = field(default_factory=default_sampler)

    def __post_init__(self):
        check_route(self.by, self.threshold)

    def is_hard(self, value: float) -> bool:
        """Whether a frame with this predicted IoU or spread goes to the second model."""
        return is_hard(value, self.by, self.threshold)

    @torch.no_grad()
    def values(self, first: nn.Module, features: SegFeatures, iou_scores: torch.Tensor) -> dict[int, float]:
        """
        What frames are judged by.

        Args:
            first (`nn.Module`): the first model.
            features (`SegFeatures`): from its `encode`.
            iou_scores (`torch.Tensor` of shape `(masks,)`): of its masks.

        Returns:
            `dict[int, float]`: for every row with masks its mean over them.
        """
        found = {}
        for row in features.row_index.unique().tolist():
            masks = torch.nonzero(features.row_index == row)[:, 0]
            if self.by == "predicted_iou":
                found[row] = float(iou_scores[masks].double().mean())
                continue
            own = SegFeatures(
                features.seg_states,
                features.seg_index[masks],
                features.image_index[masks],
                features.row_index[masks],
                features.pyramid,
            )
            # The sampler starts anew for every row, so that its noise does not depend on the rows before.
            candidates = self.sampler(first, own).mask_logits
            probabilities = mask_probabilities(candidates, first.config.mask_temperature)
            drawn = (probabilities > first.config.mask_threshold).cpu().numpy()
            found[row] = float(np.mean([spread(masks) for masks in drawn]))
        return found

    def route(self, value: float) -> dict[str, float | bool]:
        """What is said of a frame: whether it was `"routed"`, and by what."""
        return {"routed": self.is_hard(value), self.by: value}

    def segment(
        self, first: nn.Module, processor: Sa2VAProcessor, **request
    ) -> tuple[Segmentation, dict[str, float | bool]]:
        """
        Segment one image with the model that it belongs to.

        Args:
            first (`nn.Module`): the first model.
            processor (`Sa2VAProcessor`): of the first model.
            request: for `segment` of a model, with `image`.

        Returns:
            `Segmentation`, and what is said of the route. An answer without a mask is never routed.
        """
        route = {"routed": False, self.by: None}

        def decode(features: SegFeatures) -> tuple[torch.Tensor, torch.Tensor]:
            drawn = first.decode_masks(features)
            for value in self.values(first, features, drawn[1]).values():
                route.update(self.route(value))
            return self.model.decode_masks(features) if route["routed"] and self.shared else drawn

        result = first.segment(processor=processor, decode=decode, **request)
        if route["routed"] and not self.shared:
            result = self.model.segment(processor=self.processor, **request)
        elif route["routed"]:
            own, given = self.model.config, request.get("threshold")
            threshold = own.mask_threshold if given is None else given
            result = replace(result, threshold=threshold, temperature=own.mask_temperature)
            if request.get("postprocessing") is None:
                result = replace(result, postprocessing=Postprocessing.from_dict(own.mask_postprocessing))
        return result, route


def check_route(by: str, threshold: float) -> None:
    """
    Check the options of a [`Router`].

    Args:
        by (`str`): what frames are judged by.
        threshold (`float`): from which on they go to the second model.

    Raises:
        `ValueError`: an unknown `by`, or a threshold that is no finite number.
    """
    if by not in ROUTE_BY:
        raise ValueError(f"route_by must be one of {', '.join(ROUTE_BY)}, got {by!r}.")
    if not math.isfinite(threshold):
        raise ValueError(f"route_threshold must be a finite number, got {threshold}.")


def is_hard(value: float, by: str, threshold: float) -> bool:
    """Whether a predicted IoU is below, or a spread above the threshold."""
    return value < threshold if by == "predicted_iou" else value > threshold


def make_router(
    first: nn.Module, processor: Sa2VAProcessor, second: nn.Module, second_processor: Sa2VAProcessor, **options
) -> Router:
    """
    A router between two models. Where nothing that features depend on differs, compared byte by byte, they share the
    modules that make them: the second takes no memory but for its head, and must not be used by itself any more.

    Args:
        first (`Sa2VAForConditionalGeneration` or `PeftModel`): not changed.
        processor (`Sa2VAProcessor`): of the first model.
        second (`Sa2VAForConditionalGeneration` or `PeftModel`): changed in place.
        second_processor (`Sa2VAProcessor`): of the second model.
        options: `by`, `threshold` and `sampler` of [`Router`].

    Returns:
        `Router`, with the second model in evaluation mode and on the first one's device.
    """
    shared = fingerprint(first, processor) == fingerprint(second, second_processor)
    if shared:
        one, other = (model.get_base_model() if isinstance(model, PeftModel) else model for model in (first, second))
        other.vlm = one.vlm
        other.grounding_encoder.sam2_model.image_encoder = one.grounding_encoder.sam2_model.image_encoder
    return Router(second.eval().to(first.device), second_processor, shared, **options)


@torch.no_grad()
def _both(
    rows: RowEncoder, router: Router, wanted: Callable[[float], bool]
) -> Iterator[tuple[dict, float, np.ndarray, np.ndarray | None]]:
    """Every row, its value, the first model's probabilities and, where `wanted(value)`, the second's."""
    # Features are of a question: a second model with another one sees the pixels.
    is_shared = router.shared and question_of(rows.bare.config) == question_of(router.model.config)
    for start, decoded, targets, encoded, outputs in passes(rows):
        values = router.values(rows.model, encoded, outputs.iou_scores)
        chosen = [position for position, value in values.items() if wanted(value)]
        second = {}
        if chosen and is_shared:
            others = router.model(features=encoded)
            for position in chosen:
                second[position] = probabilities_of(router.model, others, position, targets[position])
        elif chosen:
            part = rows.dataset.select([start + position for position in chosen])
            own = {"batch_size": rows.batch_size, "progress": False, "by_size": True}
            whole = RowEncoder(router.model, router.processor, part, **own)
            second = {position: found for position, (_, found) in zip(chosen, probabilities(whole), strict=True)}
        for position, value in values.items():
            first = probabilities_of(rows.model, outputs, position, targets[position])
            yield decoded[position], value, first, second.get(position)


def predict_routed(
    model: nn.Module,
    processor: Sa2VAProcessor,
    router: Router,
    dataset: Dataset,
    batch_size: int | str = 4,
    progress: bool = True,
    features: Stored | None = None,
) -> Iterator[tuple[dict, np.ndarray]]:
    """
    As [`~evaluation.predict_probabilities`], each row by the model that it belongs to. [`~evaluation.score`] then
    leaves the columns `routed` (bool) and `predicted_iou` or `spread`.

    Args:
        model (`Sa2VAForConditionalGeneration` or `PeftModel`): the first one.
        processor (`Sa2VAProcessor`): of the first model.
        router (`Router`): with the second one.
        dataset, batch_size, progress: as there.
        features (*optional*): of the first model; a second one that does not share them takes the pixels.

    Yields:
        As there.
    """
    rows = RowEncoder(model, processor, dataset, features, batch_size, progress, by_size=True)
    for row, value, first, second in _both(rows, router, router.is_hard):
        yield {**row, ROUTE: router.route(value)}, first if second is None else second


def fit_threshold(
    values: Sequence[float], dice_first: Sequence[float], dice_second: Sequence[float], by: str = "predicted_iou"
) -> float:
    """
    The threshold with the highest mean Dice; of several the one that sends fewest rows to the second model. Choose it
    on rows that neither model was trained on and that no result is reported of: on the rows that it is chosen on, a
    router is never worse than either model.

    Args:
        values (`Sequence[float]`): predicted IoU or spread of each row.
        dice_first, dice_second (`Sequence[float]`): of each row with the one and with the other model.
        by (`str`, *optional*, defaults to `"predicted_iou"`): what `values` are, see [`Router`].

    Returns:
        `float`: half-way between two values; that of `NOTHING` or `EVERYTHING` where one model alone is best.

    Raises:
        `ValueError`: no rows, sequences of different lengths, or values that are not finite.
    """
    check_route(by, 0.0)
    columns = {"values": values, "dice_first": dice_first, "dice_second": dice_second}
    arrays = {name: np.asarray(column, dtype=np.float64) for name, column in columns.items()}
    count = len(arrays["values"])
    for name, column in arrays.items():
        if column.shape != (count,) or not count:
            raise ValueError(f"`{name}` must hold one number a row, of at least one row, got shape {column.shape}.")
        if not np.isfinite(column).all():
            raise ValueError(f"`{name}` must be finite, got {column[~np.isfinite(column)][0]}.")
    order = np.argsort(arrays["values"] if by == "predicted_iou" else -arrays["values"], kind="stable")
    ordered = arrays["values"][order]  # the most difficult first
    gains = np.concatenate([[0.0], np.cumsum((arrays["dice_second"] - arrays["dice_first"])[order])])
    # Rows of one value stay together.
    cuts = np.array([0, *(np.flatnonzero(ordered[1:] != ordered[:-1]) + 1), count])
    best = cuts[np.flatnonzero(gains[cuts] >= gains[cuts].max() - 1e-12)[0]]
    if best == 0:
        return NOTHING[by]
    if best == count:
        return EVERYTHING[by]
    routed, kept = float(ordered[best - 1]), float(ordered[best])
    middle = (routed + kept) / 2
    # (Between neighbouring numbers there is no middle.)
    return middle if is_hard(routed, by, middle) and not is_hard(kept, by, middle) else kept


def fit_router(
    model: nn.Module,
    processor: Sa2VAProcessor,
    router: Router,
    dataset: Dataset,
    threshold: float = 0.5,
    batch_size: int | str = 4,
    progress: bool = True,
    features: Stored | None = None,
    postprocessing: Postprocessing = IDENTITY,
) -> dict:
    """
    Choose the threshold of a router by its Dice, see [`fit_threshold`]. Both models run on all rows.

    Args:
        model, processor, batch_size, progress, features: see [`predict_routed`].
        router (`Router`): gets the threshold.
        dataset (`datasets.Dataset`): to choose by: validation rows.
        threshold (`float`, *optional*, defaults to 0.5): probability above which a pixel belongs to the mask.
        postprocessing ([`~postprocessing.Postprocessing`], *optional*): of the masks.

    Returns:
        `dict`, ready for JSON: `by`, `threshold`, `n` (rows), `routed` (share of them) and the mean Dice of these rows
        with the first model (`dice_first`), the second (`dice_second`) and the router (`dice_routed`).

    Raises:
        `ValueError`: no row with a mask.
    """
    values, first, second = [], [], []
    rows = RowEncoder(model, processor, dataset, features, batch_size, progress, by_size=True)
    for row, value, one, other in _both(rows, router, lambda value: True):
        values.append(value)
        first.append(score(row, one, threshold, postprocessing=postprocessing)["dice"])
        second.append(score(row, other, threshold, postprocessing=postprocessing)["dice"])
    if not values:
        raise ValueError("The rows to fit the router's threshold on have no masks.")
    router.threshold = fit_threshold(values, first, second, router.by)
    routed = np.array([router.is_hard(value) for value in values])
    return {
        "by": router.by,
        "threshold": router.threshold,
        "n": len(values),
        "routed": float(routed.mean()),
        "dice_first": float(np.mean(first)),
        "dice_second": float(np.mean(second)),
        "dice_routed": float(np.where(routed, second, first).mean()),
    }


def routing_report(router: Router, routes: Sequence[dict[str, float | bool]]) -> str:
    """
    Which share was routed; and, where the router made no difference, why.

    Args:
        router (`Router`): as it was used.
        routes (`Sequence[dict]`): from it, one a frame.

    Returns:
        `str`: a line to print.
    """
    values = [route[router.by] for route in routes if route[router.by] is not None]
    routed = sum(route["routed"] for route in routes)
    name = router.by.replace("_", " ").replace("iou", "IoU")
    rule = f"{name} {'below' if router.by == 'predicted_iou' else 'above'} {router.threshold:g}"
    line = f"router: {routed} of {len(routes)} images went to the second model ({rule})"
    if values and routed in (0, len(values)):
        line += (
            f". It made no choice: their values lie between {min(values):.4g} and {max(values):.4g}, so "
            + ("no image reaches the second model" if routed == 0 else "every image goes to the second model")
            + " and a threshold between these would"
        )
    return line + "."
