"""Dialogues with masks: one question after the other, each read on from where the last one ended."""

import os
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from ..media.clips import open_video
from ..media.given import Given, given_picture
from .answering import Answers, Requests, make_requests, read
from .drawing import ClipOptions, Drawing, result_of, track_clip
from .outputs import SegFeatures, Segmentation, pair_masks
from .prefix_cache import PrefixCache
from .processing import Sa2VAProcessor


if TYPE_CHECKING:
    from .modeling import Sa2VAForConditionalGeneration


class Conversation:
    """
    A dialogue about an image, several images, a clip or none. [`~models.segmentation.SegmentationMixin.chat`] begins
    it.

    A turn costs its own tokens: keys and values of everything before it are kept, as are the images' SAM 2 features
    from the first answer on that draws something. (A clip's frames are encoded anew for every such answer.) An answer
    stands in the conversation as the tokens that were written. Several conversations may go on with one model, by
    turns. Where `generate` cannot add to the kept keys and values (beams, proposed tokens, caches of other kinds), it
    reads the whole conversation for that turn.

    Args:
        model (`Sa2VAForConditionalGeneration`): that answers.
        processor (`Sa2VAProcessor`): of the model.
        drawing ([`~models.drawing.Drawing`]): how masks are made.
        image, images, video: see `chat`.
        clip_options ([`~models.drawing.ClipOptions`]): of a video.
        regions (`Sequence`, *optional*): of `image`, see `chat`.

    Attributes:
        messages (`list[dict]`): `{"role", "content"}` of all turns so far; an answer's text is without its end marker.
        results (`list[Segmentation]`): of the answers that were written or given here, the latest last.

    Raises:
        `ValueError`: as `chat`.
    """

    def __init__(
        self,
        model: "Sa2VAForConditionalGeneration",
        processor: Sa2VAProcessor,
        drawing: Drawing,
        image: Given | None,
        images: list[Given] | None,
        video: list[Given] | np.ndarray | str | os.PathLike | None,
        clip_options: ClipOptions,
        regions: Sequence[Any] | None = None,
    ):
        if sum(given is not None for given in (image, images, video)) > 1:
            raise ValueError("chat takes one of `image`, `images` and `video`, or none of them.")
        if regions is not None and image is None:
            raise ValueError("chat takes regions of a single `image`: give it, or leave out the regions.")
        if is_deepspeed_zero3_enabled():
            raise ValueError(
                "With ZeRO-3 all processes run the same passes, which the turns of a conversation do not: load the "
                "model without it."
            )
        self.messages: list[dict] = []
        self.results: list[Segmentation] = []
        self._model, self._processor, self._drawing = model, processor, drawing
        self._prefix = PrefixCache(processor.image_token_id, model.config.rotary_switch)
        self._ids: list[int] = []  # of the whole conversation, the latest answer's end marker included
        self._pixels: dict[str, torch.Tensor] = {}
        self._regions = None if regions is None else [regions]
        self._clip, self._pyramid, self._sizes = None, None, None
        if video is not None:
            self._options = clip_options.of(model.config)
            self._open = ExitStack()  # until nobody holds the conversation
            self._clip = self._open.enter_context(open_video(video))
            self._prompted = self._options.prompted(len(self._clip))
            self._pictures = [self._clip[index] for index in self._prompted]
            return
        clip_options.refuse("chat")
        if images is not None and not len(images):
            raise ValueError("`images` is empty.")
        given = images if images is not None else [] if image is None else [image]
        self._pictures = [given_picture(entry, f"Image {index}") for index, entry in enumerate(given)]
        if images is not None:
            self._sizes = [picture.size[::-1] for picture in self._pictures]

    @property
    def result(self) -> Segmentation:
        """Of the latest answer; one without `[SEG]`, or about no image, has no objects."""
        return self.results[-1]

    @torch.no_grad()
    def begin(self, messages: str | list[dict], answer: str | None = None, **generate_kwargs: Any) -> Segmentation:
        """
        The first answer; `chat` asks for it.

        Args:
            messages, answer, generate_kwargs: see `chat`.

        Returns:
            `Segmentation` of the answer.

        Raises:
            `ValueError`: as `chat`.
        """
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        if not messages or not all(isinstance(each, dict) and {"role", "content"} <= set(each) for each in messages):
            raise ValueError("`messages` must be a question, or a list of {'role', 'content'}.")
        if messages[-1]["role"] != "user":
            raise ValueError("`messages` must end with a user turn, which is answered.")
        clip, groups = self._clip is not None, [self._pictures]
        requests = make_requests([messages], groups, self._processor, clip=clip, regions=self._regions)
        return self._answer(list(messages), requests, answer, **generate_kwargs)

    @torch.no_grad()
    def ask(self, text: str, answer: str | None = None, **generate_kwargs: Any) -> Segmentation:
        """
        One more question. If it fails or is interrupted, the conversation stays as it was.

        Args:
            text (`str`): the question; images have their places by then, so that no `<image>` may stand in it.
            answer (`str`, *optional*): nothing is generated, and this answer is taken as given.
            generate_kwargs: for the VLM's `generate`; none with `answer`.

        Returns:
            `Segmentation` of the answer, which is `result` from then on.

        Raises:
            `ValueError`: no text, reserved tokens, or options as in `segment`.
        """
        requests = Requests([self._ids + self._processor.next_turn(text)], self._pixels)
        return self._answer([{"role": "user", "content": text}], requests, answer, **generate_kwargs)

    def _answer(
        self, asked: list[dict], requests: Requests, answer: str | None, **generate_kwargs: Any
    ) -> Segmentation:
        if answer is not None and not isinstance(answer, str):
            raise ValueError(f"`answer` must be a string, got {answer!r}.")
        given = None if answer is None else [answer]
        answers = read(self._model, requests, self._processor, given, self._prefix, **generate_kwargs)
        result = self._draw(answers)
        (text,), (ids,) = answers.texts, answers.ids
        # Nothing can fail from here on.
        self._ids, self._pixels = requests.prompts[0] + self._processor.ended_ids(ids, text), requests.pixels
        self.messages += [*asked, {"role": "assistant", "content": text}]
        self.results.append(result)
        return result

    def _draw(self, answers: Answers) -> Segmentation:
        model, processor, (text,) = self._model, self._processor, answers.texts
        if self._clip is not None:
            states, options = answers.seg_states, self._options
            return track_clip(
                model, processor, text, states, self._clip, self._prompted, options.tracking, self._drawing
            )
        pictures, side = self._pictures, model.config.grounding_config.mask_size
        objects = len(answers.rows) if pictures else 0
        if objects:
            mask_logits, iou_scores = model.decode_masks(self._features(answers))
        else:
            mask_logits = torch.zeros((0, side, side), device=model.device)
            iou_scores = mask_logits.new_zeros(0)
        shape = (objects,) if self._sizes is None else (objects, len(pictures))
        size = pictures[0].size[::-1] if pictures else (model.config.grounding_config.image_size,) * 2
        mask_logits, iou_scores = mask_logits.view(*shape, side, side), iou_scores.view(shape)
        result = result_of(model, processor, text, mask_logits, iou_scores, size, self._drawing, sizes=self._sizes)
        if not pictures:
            result.phrases = []  # there is nothing to draw a [SEG] on
        return result

    def _features(self, answers: Answers) -> SegFeatures:
        model = self._model
        if self._pyramid is None:
            pixels = self._processor.grounding_inputs(self._pictures).to(model.device)
            self._pyramid = model.grounding_encoder.encode(pixels)
        image_counts = answers.rows.new_tensor([len(self._pictures)])
        return SegFeatures(answers.seg_states, *pair_masks(answers.rows, image_counts), self._pyramid)
