"""Inference: questions answered and drawn, on images and clips."""

import operator
import os
from bisect import bisect_left
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from transformers import BatchFeature

from ..media.clips import open_video
from ..media.pictures import too_deep
from ..postprocessing import Postprocessing
from ..tokens import SEG_TOKEN
from .configuration import check_video_options
from .frame_policy import select_frames
from .outputs import SegFeatures, Segmentation
from .processing import Sa2VAProcessor
from .tracking import track
from .written_states import WrittenStates


if TYPE_CHECKING:
    from .modeling import Sa2VAForConditionalGeneration


# Options of `generate` that change what it returns, and inputs that are made here.
_OTHER_RETURNS = (
    "num_return_sequences",
    "return_dict_in_generate",
    "output_attentions",
    "output_hidden_states",
    "output_logits",
    "output_scores",
)
_OWN_INPUTS = ("inputs", "input_ids", "inputs_embeds", "attention_mask", "pixel_values", "image_grid_thw")


class SegmentationMixin:
    """
    `answer` and `segment`, which [`Sa2VAForConditionalGeneration`] has from here: they call its `generate`, its two
    halves and, for videos, its SAM 2.
    """

    @torch.no_grad()
    def answer(
        self: "Sa2VAForConditionalGeneration",
        conversations: list[list[dict]],
        images: list[list[Image.Image]],
        processor: Sa2VAProcessor,
        clip: bool = False,
        **generate_kwargs: Any,
    ) -> list[str]:
        """
        Write the next answer of each conversation (greedy unless told otherwise).

        Args:
            conversations (`list[list[dict]]`): messages that end with a user turn, see `Sa2VAProcessor.encode_chat`.
            images (`list[list[PIL.Image.Image]]`): the images of each conversation.
            processor (`Sa2VAProcessor`): of this model.
            clip (`bool`, *optional*, defaults to `False`): the images of a conversation are frames of a clip.
            generate_kwargs: for the VLM's `generate`; `max_new_tokens` defaults to 2048.

        Returns:
            `list[str]`: the answers with their special tokens, without the end marker.

        Raises:
            `ValueError`: as `Sa2VAProcessor.encode_chat`, or an option that makes `generate` return something else
            than one answer of tokens for each conversation.
        """
        _check_generate_options(generate_kwargs)
        return _write(self, _requests(conversations, images, processor, clip), processor, **generate_kwargs)[0]

    @torch.no_grad()
    def segment(
        self: "Sa2VAForConditionalGeneration",
        image: Image.Image | None = None,
        images: list[Image.Image] | None = None,
        video: list[Image.Image] | np.ndarray | str | os.PathLike | None = None,
        text: str | list[str] = "",
        processor: Sa2VAProcessor | None = None,
        threshold: float | None = None,
        answer: str | list[str] | None = None,
        frame_policy: str | None = None,
        num_frames: int | None = None,
        frames: list[int] | None = None,
        tracking: str | None = None,
        decode: Callable[[SegFeatures], tuple[torch.Tensor, torch.Tensor]] | None = None,
        postprocessing: Postprocessing | None = None,
        **generate_kwargs: Any,
    ) -> Segmentation | list[Segmentation]:
        """
        Segment what the text names.

        Where the model writes its answer, the masks come from the states that writing leaves at `[SEG]` tokens; see
        [`~models.written_states.WrittenStates`] for when a second pass over prompt and answer is needed.

        Of a video the language model sees a few frames, which prompt SAM 2; its memory carries the masks to all others
        (see [`~models.tracking.track`]).

        Args:
            image (`PIL.Image.Image`, *optional*): one image.
            images (`list[PIL.Image.Image]`, *optional*): a batch of images, each with its own text or all with one.
            video (`list[PIL.Image.Image]`, `np.ndarray` or path, *optional*):
                Frames of one size, a uint8 array of shape `(frames, H, W, 3)`, or a file as in
                [`~media.clips.open_video`] (a video, a TIFF of several pages, an animation), which is never decoded
                into memory as a whole.
            text (`str` or `list[str]`):
                The request. `<image>` marks the image's place; without it the image comes first, then a newline. No
                other token that the processor writes (`<IMG_CONTEXT>`, `<|im_end|>` …) may stand in it.
            processor (`Sa2VAProcessor`): of this model.
            threshold (`float`, *optional*, defaults to `config.mask_threshold`):
                Between 0 and 1, of the result's `probabilities`: those of the logits divided by
                `config.mask_temperature`, which is 1 where none has been stored.
            answer (`str` or `list[str]`, *optional*):
                Nothing is generated and this answer (`"Sure, [SEG]."`) is taken as given: one forward pass. An end
                marker at its end, which recorded answers have, is dropped, since it is added here; the result's text
                is without it.
            frame_policy, num_frames, tracking (*optional*): of a video, in place of the config's.
            frames (`list[int]`, *optional*):
                Of a video, the frames to prompt, in place of `frame_policy` and `num_frames`. Frames before the first
                of them are tracked backward.
            decode (`Callable`, *optional*): of images, in place of `decode_masks`; see [`~evaluation.routing.Router`].
            postprocessing ([`~postprocessing.Postprocessing`], *optional*, defaults to `config.mask_postprocessing`):
                Of the result's masks. What acts between frames is of no effect on images.
            generate_kwargs: for the VLM's `generate`; none with `answer`.

        Returns:
            `Segmentation`, or a list of them for `images`. An answer without `[SEG]` has no objects.

        Raises:
            `ValueError`: not exactly one of `image`, `images` and `video`, no processor, texts that are none, do not
            pair with images or hold reserved tokens, options of `generate` that change what it returns, an image that
            is no PIL image or has more than 8 bits a channel, a threshold outside (0, 1), a video that cannot be read
            or has no frames or frames of different sizes, options of a video without one, or frames to prompt that it
            does not have.

        Example:

            ```python
            >>> from PIL import Image
            >>> from sa2va_trl import tiny_sa2va

            >>> model, processor = tiny_sa2va(image_size=128)
            >>> image = Image.new("RGB", (100, 60))
            >>> result = model.eval().segment(
            ...     image=image, text="Segment the vessel.", processor=processor, answer="The <p> vessel </p> [SEG]."
            ... )
            >>> result.phrases, result.masks.shape
            (['vessel'], torch.Size([1, 60, 100]))

            ```
        """
        if processor is None:
            raise ValueError("segment needs `processor`, the Sa2VAProcessor of this model.")
        if sum(given is not None for given in (image, images, video)) != 1:
            raise ValueError("segment takes either `image` or `images` or `video`, and exactly one of them.")
        threshold = self.config.mask_threshold if threshold is None else threshold
        if not 0 < threshold < 1:
            raise ValueError(f"threshold must lie between 0 and 1, got {threshold}.")
        if postprocessing is None:
            postprocessing = Postprocessing.from_dict(self.config.mask_postprocessing)
        drawing = {"threshold": threshold, "postprocessing": postprocessing}
        options = {"frame_policy": frame_policy, "num_frames": num_frames, "frames": frames, "tracking": tracking}
        if video is not None:
            if decode is not None:
                raise ValueError("segment takes decode with `image` or `images` only: a video's masks are tracked.")
            return _segment_video(self, video, text, processor, drawing, answer, **options, **generate_kwargs)
        if given := [name for name, value in options.items() if value is not None]:
            raise ValueError(f"segment takes {', '.join(given)} with `video` only.")
        batch = [image] if images is None else list(images)
        _check_pictures(batch)
        texts = _texts("text", text, len(batch))
        answers = [None] * len(batch) if answer is None else _texts("answer", answer, len(batch))
        if len(texts) != len(batch) or len(answers) != len(batch):
            raise ValueError(f"{len(batch)} images, {len(texts)} texts and {len(answers)} answers do not pair up.")
        answers, features, own = _read(
            self,
            texts,
            [[entry] for entry in batch],
            processor,
            None if answer is None else answers,
            grounding_pixel_values=processor.grounding_inputs(batch),
            **generate_kwargs,
        )
        mask_logits, iou_scores = (decode or self.decode_masks)(features)
        results = [
            Segmentation(
                text=reply,
                phrases=processor.phrases(reply),
                low_res_logits=mask_logits[segs],
                iou_scores=iou_scores[segs],
                size=picture.size[::-1],
                image_size=self.config.grounding_config.image_size,
                temperature=self.config.mask_temperature,
                **drawing,
            )
            for reply, segs, picture in zip(answers, own, batch, strict=True)
        ]
        return results[0] if images is None else results


def _segment_video(
    model: "Sa2VAForConditionalGeneration",
    video: list[Image.Image] | np.ndarray | str | os.PathLike,
    text: str,
    processor: Sa2VAProcessor,
    drawing: dict[str, Any],
    answer: str | None,
    frame_policy: str | None,
    num_frames: int | None,
    frames: list[int] | None,
    tracking: str | None,
    **generate_kwargs: Any,
) -> Segmentation:
    """`segment` of a video, with `options` that have been told apart from an image's."""
    if isinstance(text, (list, tuple)) or isinstance(answer, (list, tuple)):
        raise ValueError("A video has one text and at most one answer; got a list.")
    text, answer = _texts("text", text, 1)[0], None if answer is None else _texts("answer", answer, 1)[0]
    if frames is not None and (frame_policy is not None or num_frames is not None):
        raise ValueError("`frames` says which frames to prompt, so frame_policy and num_frames have no effect.")
    policy = model.config.frame_policy if frame_policy is None else frame_policy
    count = model.config.num_frames if num_frames is None else num_frames
    tracking = model.config.tracking if tracking is None else tracking
    check_video_options(policy, count, tracking)
    size = model.config.grounding_config.image_size
    with open_video(video) as clip:
        total = len(clip)
        prompted = select_frames(policy, total, count) if frames is None else _checked(frames, total)
        answers, features, own = _read(
            model,
            [text],
            [[clip[index] for index in prompted]],
            processor,
            None if answer is None else [answer],
            clip=True,
            **generate_kwargs,
        )
        prompts = model.mask_prompts(features.seg_states[own[0]])
        result = Segmentation(
            text=answers[0],
            phrases=processor.phrases(answers[0]),
            # On the CPU: the one thing that grows with the length of the clip.
            low_res_logits=torch.zeros(len(prompts), total, size // 4, size // 4),
            iou_scores=torch.zeros(len(prompts), total),
            size=clip[0].size[::-1],
            image_size=size,
            prompted_frames=prompted,
            temperature=model.config.mask_temperature,
            **drawing,
        )
        if drawing["postprocessing"].needs_motion:
            result.pictures = np.stack([np.asarray(clip[index].convert("L")) for index in range(total)])
        if len(prompts):
            for index, mask_logits, iou_scores in track(
                model.grounding_encoder,
                prompts,
                lambda index: processor.grounding_inputs([clip[index]]).to(model.device, model.dtype),
                total,
                prompted,
                mask_prompt=(result.threshold, result.size) if tracking == "mask_prompt" else None,
                temperature=model.config.mask_temperature,
            ):
                result.low_res_logits[:, index] = mask_logits
                result.iou_scores[:, index] = iou_scores
    return result


class _Requests(NamedTuple):
    """Conversations as the language model reads them: tiled and tokenised once, to be answered and read again."""

    conversations: list[list[dict]]
    pixels: dict[str, torch.Tensor]  # of all images
    blocks: list[list[str]]  # what stands for each image of a conversation
    prompts: list[list[int]]  # token ids up to the answer


def _requests(
    conversations: list[list[dict]], groups: list[list[Image.Image]], processor: Sa2VAProcessor, clip: bool
) -> _Requests:
    pixels, blocks = processor.tiles([image for group in groups for image in group], clip=clip)
    remaining = iter(blocks)
    blocks = [[next(remaining) for _ in group] for group in groups]
    prompts = [processor.encode_chat(chat, part)[0] for chat, part in zip(conversations, blocks, strict=True)]
    return _Requests(conversations, pixels, blocks, prompts)


def _write(
    model: "Sa2VAForConditionalGeneration", requests: _Requests, processor: Sa2VAProcessor, **generate_kwargs: Any
) -> tuple[list[str], list[list[int]]]:
    """The answers that `generate` writes, and their token ids with what ended them."""
    never = [processor.image_token_id, *(generate_kwargs.pop("suppress_tokens", None) or [])]
    input_ids = processor.pad(requests.prompts, side="left").to(model.device)
    lengths = torch.tensor([len(prompt) for prompt in requests.prompts], device=model.device)
    width = input_ids.shape[1]
    attention_mask = (torch.arange(width, device=model.device) >= width - lengths[:, None]).long()
    generated = model.generate(
        input_ids=input_ids,
        attention_mask=attention_mask,
        **_to(model, requests.pixels),
        **{
            "do_sample": False,
            "max_new_tokens": 2048,
            **processor.stopping(),
            # One in the answer would ask for an image that is not there.
            "suppress_tokens": never,
            "pad_token_id": processor.tokenizer.pad_token_id,
            **generate_kwargs,
        },
    )
    written = [_up_to_the_stop(ids, processor) for ids in generated[:, width:].tolist()]
    return [text for text, _ in written], [ids for _, ids in written]


def _up_to_the_stop(ids: list[int], processor: Sa2VAProcessor) -> tuple[str, list[int]]:
    """An answer without what ended it, and its tokens with that but without what follows."""

    def stopped(count: int) -> tuple[str, list[int]]:
        text = processor.tokenizer.decode(ids[:count], skip_special_tokens=False)
        return text, [text.find(stop) for stop in processor.stop_strings if stop in text]

    text, ends = stopped(len(ids))
    if not ends:
        return text, ids
    return text[: min(ends)], ids[: bisect_left(range(len(ids)), True, key=lambda count: bool(stopped(count)[1]))]


def _read(
    model: "Sa2VAForConditionalGeneration",
    texts: list[str],
    groups: list[list[Image.Image]],
    processor: Sa2VAProcessor,
    answers: list[str] | None,
    clip: bool = False,
    grounding_pixel_values: torch.Tensor | None = None,
    **generate_kwargs: Any,
) -> tuple[list[str], SegFeatures, list[torch.Tensor]]:
    """
    The answers to `texts` about `groups` of images (generated unless they are given), what `encode` makes of them, and
    for each row the `[SEG]`s (indices into `seg_states`) that its answer holds.
    """
    if answers is not None and generate_kwargs:
        raise ValueError(f"With `answer` nothing is generated, so {', '.join(generate_kwargs)} have no effect.")
    _check_generate_options(generate_kwargs)
    conversations = [[{"role": "user", "content": entry}] for entry in texts]
    requests = _requests(conversations, groups, processor, clip)
    if grounding_pixel_values is not None:
        grounding_pixel_values = grounding_pixel_values.to(model.device, model.dtype)
    if answers is None:
        with WrittenStates(model, max(map(len, requests.prompts))) as states:
            answers, written = _write(model, requests, processor, **generate_kwargs)
            spelled = [
                ids.count(processor.seg_token_id) != reply.count(SEG_TOKEN)
                for ids, reply in zip(written, answers, strict=True)
            ]
            found = states.of(written, "an answer spells out a [SEG] that is no token" if any(spelled) else "")
        if found is not None:
            seg_states, rows = found
            features = model.with_pyramid(seg_states, rows, len(texts), grounding_pixel_values)
            return answers, features, [torch.nonzero(rows == row)[:, 0] for row in range(len(answers))]
        sequences = [
            # A generated answer goes in as the tokens that were generated: tokenising its text could give others.
            # (Unless it spells out a [SEG] that is none.)
            prompt + (processor.answer_ids(reply) if otherwise else ids)
            for prompt, ids, reply, otherwise in zip(requests.prompts, written, answers, spelled, strict=True)
        ]
    else:
        answers = [processor.without_end(reply) for reply in answers]
        sequences = [
            processor.encode_chat([*chat, {"role": "assistant", "content": reply}], part)[0]
            for chat, reply, part in zip(conversations, answers, requests.blocks, strict=True)
        ]
    # The masks come from one teacher-forced pass over prompt and answer, exactly as in training.
    input_ids = processor.pad(sequences).to(model.device)
    lengths = torch.tensor([len(sequence) for sequence in sequences], device=model.device)
    attention_mask = (torch.arange(input_ids.shape[1], device=model.device) < lengths[:, None]).long()
    features = model.encode(
        input_ids, attention_mask, **_to(model, requests.pixels), grounding_pixel_values=grounding_pixel_values
    )
    rows, positions = torch.nonzero(input_ids == model.config.seg_token_id, as_tuple=True)
    # A [SEG] that the user's own text mentions is not part of the answer.
    answered = positions >= torch.tensor([len(prompt) for prompt in requests.prompts], device=model.device)[rows]
    own = [torch.nonzero((rows == row) & answered)[:, 0] for row in range(len(answers))]
    return answers, features, own


def _to(model: "Sa2VAForConditionalGeneration", pixels: dict[str, torch.Tensor]) -> BatchFeature:
    return BatchFeature(pixels).to(model.device, model.dtype)


def _texts(name: str, texts: str | list[str], count: int) -> list[str]:
    """One text for each image; a `ValueError` where one is no string."""
    texts = [texts] * count if not isinstance(texts, (list, tuple)) else list(texts)
    if wrong := [entry for entry in texts if not isinstance(entry, str)]:
        raise ValueError(f"`{name}` must be a string, or a list of strings for `images`; got {wrong[0]!r}.")
    return texts


def _check_generate_options(options: dict) -> None:
    """A `ValueError` where `generate` would not return one sequence of tokens for each prompt, or not for these."""
    config = options.get("generation_config")
    given = {name: options.get(name, getattr(config, name, None)) for name in _OTHER_RETURNS}
    other = [name for name, value in given.items() if value and not (name == "num_return_sequences" and value == 1)]
    other += [name for name in ("custom_generate", *_OWN_INPUTS) if options.get(name) is not None]
    if other:
        raise ValueError(
            f"{', '.join(other)}: one answer is generated for each request, from inputs that are made here, and only "
            "its tokens are used. Call `generate` itself for anything else."
        )


def _check_pictures(pictures: list) -> None:
    """A `ValueError` where there are none, or one is no PIL image or would be clipped by a conversion to RGB."""
    if not pictures:
        raise ValueError("`images` is empty.")
    for index, picture in enumerate(pictures):
        if not isinstance(picture, Image.Image):
            raise ValueError(f"Image {index} must be a PIL image, got {type(picture).__name__}.")
        if fault := too_deep(picture):
            raise ValueError(f"Image {index} {fault}.")


def _checked(frames: list[int], total: int) -> list[int]:
    """Frames to prompt, in order; a `ValueError` where the clip does not have them."""
    frames = [operator.index(index) for index in frames]
    if not frames:
        raise ValueError("`frames` must name at least one frame to prompt.")
    if outside := [index for index in frames if not 0 <= index < total]:
        raise ValueError(f"`frames` holds {outside}, but the video's {total} frames are 0 to {total - 1}.")
    if len(set(frames)) < len(frames):
        raise ValueError(f"`frames` holds a frame twice: {frames}.")
    return sorted(frames)
