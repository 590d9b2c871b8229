"""Probabilities averaged: over views of an image (test-time augmentation), over models (an ensemble), or over both."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from peft import PeftModel
from PIL import Image
from torch import nn
from tqdm.auto import tqdm
from transformers import PreTrainedConfig

from ..adapters.mask_options import mask_options
from ..features.encoding import RowEncoder
from ..models import Sa2VAProcessor, Segmentation
from ..postprocessing import Postprocessing, draw_row
from ..questions import question_of
from .predictions import probabilities_of
from .views import PLAIN, View, check_sides


#: In a `PeftModel`, the member without any adapter.
NO_ADAPTER = ""


@dataclass
class Member:
    """
    A model of an ensemble, or the only one.

    Args:
        model (`Sa2VAForConditionalGeneration` or `PeftModel`):
            On its device, in evaluation mode. Members may share one: adapters of the same base do.
        processor (`Sa2VAProcessor`): of the model.
        adapter (`str`, *optional*):
            Name of its adapter in a `PeftModel`, or `NO_ADAPTER` for the base alone; by default the active one.
        options (`dict`, *optional*):
            Its own question, threshold, temperature and post-processing, as from
            [`~adapters.mask_options.mask_options`]; those of the model's config by default.
    """

    model: nn.Module
    processor: Sa2VAProcessor
    adapter: str | None = None
    options: dict | None = None

    def __post_init__(self):
        if self.adapter is None and isinstance(self.model, PeftModel):
            self.adapter = self.model.active_adapter
        if self.options is None:
            self.options = mask_options(self.model.config)

    @contextmanager
    def active(self) -> Iterator[nn.Module]:
        """The model as this member of it is, for as long as the block runs."""
        config, options = self.model.config, mask_options(self.model.config)
        with ExitStack() as stack:
            if self.adapter == NO_ADAPTER:
                stack.enter_context(self.model.disable_adapter())
            elif self.adapter is not None and self.model.active_adapter != self.adapter:
                stack.callback(self.model.set_adapter, self.model.active_adapter, inference_mode=True)
                self.model.set_adapter(self.adapter, inference_mode=True)
            try:
                _set(config, self.options)
                yield self.model
            finally:
                _set(config, options)


def _set(config: PreTrainedConfig, options: dict) -> None:
    for name, value in options.items():
        setattr(config, name, value)


def check_questions(members: Sequence[Member], option: str = "question") -> None:
    """
    Args:
        members (`Sequence[Member]`): of an ensemble.
        option (`str`, *optional*, defaults to `"question"`): that says what to ask.

    Raises:
        `ValueError`: they have different questions of their own.
    """
    asked = {}
    for member in members:
        with member.active() as model:
            asked[question_of(model.config)] = None
    if len(asked) > 1:
        shown = " and ".join(map(repr, asked))
        raise ValueError(f"The models have different questions of their own, {shown}: give --{option}.")


def common_threshold(members: Sequence[Member]) -> float:
    """
    Args:
        members (`Sequence[Member]`): of an ensemble.

    Returns:
        `float`: the threshold that they have in common.

    Raises:
        `ValueError`: they have different ones.
    """
    own = [member.options["mask_threshold"] for member in members]
    if len(set(own)) > 1:
        raise ValueError(
            f"The models have different thresholds of their own, {', '.join(f'{value:g}' for value in own)}: give "
            "--threshold."
        )
    return own[0]


def common_postprocessing(members: Sequence[Member]) -> Postprocessing:
    """
    Args:
        members (`Sequence[Member]`): of an ensemble.

    Returns:
        [`~postprocessing.Postprocessing`]: that they have in common.

    Raises:
        `ValueError`: they have different ones.
    """
    own = [Postprocessing.from_dict(member.options["mask_postprocessing"]) for member in members]
    if len(set(own)) > 1:
        raise ValueError(
            f"The models have different post-processing of their own, {' and '.join(map(str, dict.fromkeys(own)))}: "
            "give --postprocessing."
        )
    return own[0]


class _Mean:
    """A mean of maps that come one after the other, in float64."""

    def __init__(self, count: int):
        self.count, self.total = count, None

    def add(self, maps: np.ndarray) -> None:
        self.total = np.zeros(maps.shape) if self.total is None else self.total
        self.total += maps

    def result(self) -> np.ndarray:
        return (self.total / self.count).astype(np.float32)


@torch.no_grad()
def predict_averaged(
    members: Sequence[Member],
    dataset: Dataset,
    views: Sequence[View] = (),
    batch_size: int | str = 4,
    progress: bool = True,
) -> Iterator[tuple[dict, np.ndarray]]:
    """
    As [`~evaluation.predict_probabilities`]: for each pixel the mean of the probabilities that the members, each at
    its own temperature, give it on the image and on its views. One pass over the rows, a batch at a time. All frames
    of a clip are changed alike.

    Args:
        members (`Sequence[Member]`): one or several.
        dataset (`datasets.Dataset`): rows as in [`~data.checks.check_dataset`].
        views (`Sequence[View]`, *optional*): from [`~evaluation.views.parse_views`], besides the image as it is.
        batch_size (`int` or `"auto"`, *optional*, defaults to 4): as there.
        progress (`bool`, *optional*, defaults to `True`): show a bar.

    Yields:
        As there.

    Raises:
        `ValueError`: a phrase, question or answer that a view makes wrong, see [`~evaluation.views.check_sides`], or
            members with different questions.
    """
    views = [PLAIN, *views]
    check_questions(members)
    own = []
    for member in members:
        with member.active() as model:
            own.append(RowEncoder(model, member.processor, dataset, None, batch_size, False, by_size=True))
    changed = [[encoder.changed(change) for view in views for change in view.changes] for encoder in own]
    rows, batch_size = own[0].dataset, own[0].batch_size
    for encoder in own:
        check_sides((*encoder.collator.questions, *encoder.collator.answers), views)
    check_sides(texts_of(rows), views)
    for start in tqdm(range(0, len(rows), batch_size), desc="predict", disable=not progress):
        numbers, means, shown = range(start, min(start + batch_size, len(rows))), {}, {}
        for member, encoders in zip(members, changed, strict=True):
            with member.active() as model:
                model.eval()
                for encoder in encoders:
                    decoded, targets, encoded = encoder(numbers)
                    outputs = model(features=encoded)
                    for position, (row, target) in enumerate(zip(decoded, targets, strict=True)):
                        if not len(target):
                            continue
                        # (The first pass is over the images as they are.)
                        _, size = shown.setdefault(position, (row, tuple(target.shape[-2:])))
                        mean = means.setdefault(position, _Mean(len(members) * len(views)))
                        found = probabilities_of(model, outputs, position, target)
                        mean.add(encoder.collator.augmentation.inverse(found, size))
        for position, (row, _) in shown.items():
            yield row, means[position].result()


def texts_of(dataset: Dataset) -> Iterator[str]:
    """Phrases and messages of rows, whose images are not read."""
    columns = [name for name in ("phrase", "phrases", "messages") if name in dataset.column_names]
    for row in dataset.with_format(None).select_columns(columns) if columns else ():
        yield from filter(None, [row.get("phrase"), *(row.get("phrases") or ())])
        for message in row.get("messages") or ():
            content = message["content"]
            yield content if isinstance(content, str) else str(content)


@dataclass
class AveragedSegmentation(Segmentation):
    """
    What [`segment_averaged`] says of an image: as a `Segmentation` of the first model on the image as it is, but for

    Args:
        averaged (`torch.Tensor` of shape `(objects, H, W)`): the mean probabilities, float32, on the CPU.
        iou_scores (`torch.Tensor` of shape `(objects,)`): mean of what the members predict of all passes.

    Logits are the first model's.
    """

    averaged: torch.Tensor | None = None

    @property
    def probabilities(self) -> torch.Tensor:
        """`(objects, H, W)` in [0, 1], float32: the mean."""
        return self.averaged

    @property
    def masks(self) -> torch.Tensor:
        """`(objects, H, W)`, bool: `probabilities > threshold`, and post-processed where that is set."""
        return torch.from_numpy(draw_row(self.averaged.numpy(), self.threshold, self.postprocessing))


def segment_averaged(
    members: Sequence[Member],
    views: Sequence[View],
    image: Image.Image,
    text: str,
    threshold: float | None = None,
    answer: str | None = None,
    postprocessing: Postprocessing | None = None,
    **generate_kwargs: Any,
) -> Segmentation:
    """
    As a model's `segment` of one image, averaged. The first member answers on the image as it is; the others, and all
    on the views, are given that answer, so that objects pair up.

    Args:
        members (`Sequence[Member]`): one or several.
        views (`Sequence[View]`): from [`~evaluation.views.parse_views`], besides the image as it is.
        image, text, answer: of `segment`.
        threshold (`float`, *optional*): by default that of the members, see [`common_threshold`].
        postprocessing (*optional*): by default that of the members, see [`common_postprocessing`].
        generate_kwargs: of `segment`.

    Returns:
        `AveragedSegmentation`, or the first member's `Segmentation` where its answer has no masks.

    Raises:
        `ValueError`: as `segment`, [`common_threshold`] and [`common_postprocessing`], or a text or answer that a view
            makes wrong.
    """
    check_sides([text, answer or ""], views)
    views, size = [PLAIN, *views], image.size[::-1]
    threshold = common_threshold(members) if threshold is None else threshold
    postprocessing = common_postprocessing(members) if postprocessing is None else postprocessing
    request, first, scores = {"text": text, "threshold": threshold, "postprocessing": postprocessing}, None, []
    changes, mean = [change for view in views for change in view.changes], _Mean(len(members) * len(views))
    for member in members:
        with member.active() as model:
            for change in changes:
                if first is None:  # on the image as it is
                    own = {"answer": answer, **request, **generate_kwargs}
                    found = first = model.segment(image=image, processor=member.processor, **own)
                    if not len(found.iou_scores):
                        return found
                    check_sides([found.text], views)
                else:
                    (picture,), _ = change([image], [])
                    own = {"answer": first.text, **request}
                    found = model.segment(image=picture, processor=member.processor, **own)
                mean.add(change.inverse(found.probabilities.cpu().numpy(), size))
                scores.append(found.iou_scores.double().cpu())
    own = {"iou_scores": torch.stack(scores).mean(0).float(), "averaged": torch.from_numpy(mean.result())}
    return AveragedSegmentation(**{**vars(first), **own})
