"""Inference: questions answered and drawn, on images and clips."""

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from ..media.clips import open_video
from ..media.given import Given, given_picture
from ..postprocessing import Postprocessing
from .answering import check_generate_options, make_requests, read, write
from .conversation import Conversation
from .drawing import ClipOptions, Drawing, result_of, track_clip
from .outputs import SegFeatures, Segmentation
from .processing import Sa2VAProcessor


if TYPE_CHECKING:
    from .modeling import Sa2VAForConditionalGeneration


class SegmentationMixin:
    """
    `answer`, `segment` and `chat`, which [`Sa2VAForConditionalGeneration`] has from here: they call its `generate`,
    its two halves and, for videos, its SAM 2.
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
        check_generate_options(generate_kwargs)
        return write(self, make_requests(conversations, images, processor, clip), processor, **generate_kwargs)[0]

    @torch.no_grad()
    def segment(
        self: "Sa2VAForConditionalGeneration",
        image: Given | None = None,
        images: list[Given] | None = None,
        video: list[Given] | np.ndarray | str | os.PathLike | None = None,
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
        regions: Sequence[Any] | None = None,
        **generate_kwargs: Any,
    ) -> Segmentation | list[Segmentation]:
        """
        Segment what the text names.

        Where the model writes its answer, the masks come from the states that writing leaves at `[SEG]` tokens; see
        [`~models.written_states.WrittenStates`] for when a second pass over prompt and answer is needed.

        Of a video the language model sees a few frames, which prompt SAM 2; its memory carries the masks to all others
        (see [`~models.tracking.track`]).

        Args:
            image (`PIL.Image.Image`, `np.ndarray` or path, *optional*):
                One image; an array is uint8 of shape `(H, W)` or `(H, W, 3)`.
            images (`list`, *optional*): a batch of images, each with its own text or all with one.
            video (`list`, `np.ndarray` or path, *optional*):
                Frames as images are given, a uint8 array of shape `(frames, H, W, 3)`, or a file as in
                [`~media.clips.open_video`] (a video, a TIFF of several pages, an animation), which is never decoded
                into memory as a whole. Frames may differ in size: masks have that of the first.
            text (`str` or `list[str]`):
                The request. `<image>` marks the image's place; without it the image comes first, then a newline. (Of a
                video it may stand once for all frames that the language model sees, or once for each.) No other token
                that the processor writes (`<IMG_CONTEXT>`, `<|im_end|>` …) may stand in it.
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
            regions (`Sequence`, *optional*):
                Of `image`, which the text can speak of as region1, region2 and so on: masks of its size, or boxes
                (x0, y0, x1, y1) in pixels, see [`Sa2VAProcessor.region_cells`]. Of `images`, a list for each, empty
                where one has none. InternVL's alone.
            generate_kwargs: for the VLM's `generate`; none with `answer`.

        Returns:
            `Segmentation`, or a list of them for `images`. An answer without `[SEG]` has no objects.

        Raises:
            `ValueError`: not exactly one of `image`, `images` and `video`, no processor, texts that are none, do not
            pair with images or hold reserved tokens, options of `generate` that change what it returns, what is no
            image or has more than 8 bits a channel, a threshold outside (0, 1), a file that cannot be read, a video
            without frames, options of a video without one, frames to prompt that it does not have, or regions of a
            video, of Qwen, of another number of images, of another size than their image's, or that are empty.
            `FileNotFoundError`: there is no such file.

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
        drawing = Drawing.of(self.config, threshold, postprocessing)
        options = ClipOptions(frame_policy, num_frames, frames, tracking)
        if video is not None:
            if decode is not None:
                raise ValueError("segment takes decode with `image` or `images` only: a video's masks are tracked.")
            if regions is not None:
                raise ValueError("segment takes regions with `image` or `images` only: a video's frames have none.")
            if isinstance(text, (list, tuple)) or isinstance(answer, (list, tuple)):
                raise ValueError("A video has one text and at most one answer; got a list.")
            given = None if answer is None else _texts("answer", answer, 1)
            chats, options = _user_turns(_texts("text", text, 1)), options.of(self.config)
            with open_video(video) as clip:
                prompted = options.prompted(len(clip))
                requests = make_requests(chats, [[clip[index] for index in prompted]], processor, clip=True)
                answers = read(self, requests, processor, given, **generate_kwargs)
                return track_clip(
                    *(self, processor, answers.texts[0], answers.seg_states, clip, prompted, options.tracking, drawing)
                )
        options.refuse("segment")
        batch = [image] if images is None else list(images)
        if not batch:
            raise ValueError("`images` is empty.")
        batch = [given_picture(entry, f"Image {index}") for index, entry in enumerate(batch)]
        texts = _texts("text", text, len(batch))
        given = None if answer is None else _texts("answer", answer, len(batch))
        if len(texts) != len(batch) or (given is not None and len(given) != len(batch)):
            counts = f"{len(batch)} images, {len(texts)} texts and {len(given or batch)} answers"
            raise ValueError(f"{counts} do not pair up.")
        regions = regions if regions is None or images is not None else [regions]
        requests = make_requests(_user_turns(texts), [[entry] for entry in batch], processor, regions=regions)
        answers = read(self, requests, processor, given, **generate_kwargs)
        pixels = processor.grounding_inputs(batch).to(self.device)  # (SAM 2 casts them)
        features = self.with_pyramid(answers.seg_states, answers.rows, len(batch), pixels)
        mask_logits, iou_scores = (decode or self.decode_masks)(features)
        results = []
        for row, (reply, picture) in enumerate(zip(answers.texts, batch, strict=True)):
            own = answers.rows == row
            results.append(
                result_of(self, processor, reply, mask_logits[own], iou_scores[own], picture.size[::-1], drawing)
            )
        return results[0] if images is None else results

    @torch.no_grad()
    def chat(
        self: "Sa2VAForConditionalGeneration",
        messages: str | list[dict],
        image: Given | None = None,
        images: list[Given] | None = None,
        video: list[Given] | np.ndarray | str | os.PathLike | None = None,
        processor: Sa2VAProcessor | None = None,
        threshold: float | None = None,
        answer: str | None = None,
        frame_policy: str | None = None,
        num_frames: int | None = None,
        frames: list[int] | None = None,
        tracking: str | None = None,
        postprocessing: Postprocessing | None = None,
        regions: Sequence[Any] | None = None,
        **generate_kwargs: Any,
    ) -> Conversation:
        """
        Begin a dialogue, about images or about none: the first answer, and an object that further questions are asked
        of.

        Args:
            messages (`str` or `list[dict]`):
                The question, or a conversation that ends with one, see `Sa2VAProcessor.encode_chat`. `<image>` marks
                the places of images; without it they come first, then a newline.
            image, video, processor, threshold, frame_policy, num_frames, frames, tracking, postprocessing: see
                `segment`. They hold for the whole dialogue.
            images (`list`, *optional*):
                Several images in one dialogue, each with as many pixels as an image alone. Every `[SEG]` is drawn on
                each of them.
            answer (`str`, *optional*): of the first question; see `segment`.
            regions (`Sequence`, *optional*): of `image`, as in `segment`; every turn can speak of them.
            generate_kwargs: for the VLM's `generate`, of the first answer.

        Returns:
            [`~models.conversation.Conversation`].

        Raises:
            `ValueError`: as `segment`; more than one of `image`, `images` and `video`, regions of anything but
            `image`, or messages that do not end with a user turn.
            `FileNotFoundError`: there is no such file.

        Example:

            ```python
            >>> from PIL import Image
            >>> from sa2va_trl import tiny_sa2va

            >>> model, processor = tiny_sa2va(image_size=128)
            >>> image = Image.new("RGB", (100, 60))
            >>> chat = model.eval().chat("What is this?", image=image, processor=processor, answer="A vessel.")
            >>> chat.ask("Segment it.", answer="Sure, [SEG].").masks.shape
            torch.Size([1, 60, 100])
            >>> [message["content"] for message in chat.messages]
            ['What is this?', 'A vessel.', 'Segment it.', 'Sure, [SEG].']

            ```
        """
        if processor is None:
            raise ValueError("chat needs `processor`, the Sa2VAProcessor of this model.")
        drawing = Drawing.of(self.config, threshold, postprocessing)
        options = ClipOptions(frame_policy, num_frames, frames, tracking)
        conversation = Conversation(self, processor, drawing, image, images, video, options, regions)
        conversation.begin(messages, answer, **generate_kwargs)
        return conversation


def _user_turns(texts: list[str]) -> list[list[dict]]:
    return [[{"role": "user", "content": entry}] for entry in texts]


def _texts(name: str, texts: str | list[str], count: int) -> list[str]:
    """One text for each image; a `ValueError` where one is no string."""
    texts = [texts] * count if not isinstance(texts, (list, tuple)) else list(texts)
    if wrong := [entry for entry in texts if not isinstance(entry, str)]:
        raise ValueError(f"`{name}` must be a string, or a list of strings for `images`; got {wrong[0]!r}.")
    return texts
