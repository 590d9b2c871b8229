"""The official code's `predict_forward`, so that scripts which call it run on: it only translates."""

import copy
import os
import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from transformers import LlamaTokenizer, PreTrainedTokenizerBase, ProcessorMixin

from ..media.given import Given, given_picture
from ..postprocessing import IDENTITY
from ..tokens import IMAGE_PLACEHOLDER, INTERNVL_IMAGE, QWEN_IMAGE, SEG_TOKEN
from .checkpoints import checkpoint_folder
from .configuration import Sa2VAConfig
from .pixels import published_image_processor
from .processing import Sa2VAProcessor
from .published_files import template_opening
from .templates import TEMPLATES
from .tokenization import load_tokenizer


if TYPE_CHECKING:
    from .modeling import Sa2VAForConditionalGeneration


class PredictForwardMixin:
    """`predict_forward`, which [`Sa2VAForConditionalGeneration`] has from here."""

    @torch.no_grad()
    def predict_forward(
        self: "Sa2VAForConditionalGeneration",
        image: Given | list[Given] | None = None,
        video: list[Given] | np.ndarray | str | os.PathLike | None = None,
        text: str | None = None,
        past_text: str = "",
        mask_prompts: np.ndarray | list[np.ndarray] | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        processor: ProcessorMixin | None = None,
        sample_num_frames: int | None = None,
    ) -> dict[str, Any]:
        """
        Answer and draw as the official inference does, with its arguments and its result.

        What `segment` leaves to the model's config is fixed here: five frames from the beginning of a clip are
        prompted (of Sa2VA-i, spread over it, and its own tracking), the threshold is 0.5, nothing is post-processed,
        and Qwen is asked in the official style whatever the processor's is.

        Args:
            image (`PIL.Image.Image`, *optional*):
                The image, in whatever form `segment` takes; or a list of images of one size, which a text speaks of
                together.
            video (`list[PIL.Image.Image]`, *optional*): frames, or what else `segment` takes as a video.
            text (`str`):
                The request. With an image of InternVL, `<image>` says where it stands, here or in `past_text`.
                Without image and video, it is left out.
            past_text (`str`, *optional*): earlier turns, wrapped as the prompt template wraps them.
            mask_prompts (`np.ndarray` of shape `(regions, H, W)`, or a list of one, *optional*):
                Regions of the image that the text calls region1, region2 and so on; other than 0 is inside.
            tokenizer (`PreTrainedTokenizerBase`, *optional*):
                As `AutoTokenizer` loads it. With it alone an image has at most 12 tiles, or Sa2VA's pixel budget for
                Qwen, as in the official code, whatever a native checkpoint says.
            processor (`ProcessorMixin`, *optional*):
                As `AutoProcessor` loads it: [`Sa2VAProcessor`] or, beside published Qwen checkpoints, Qwen's own. In
                place of `tokenizer`.
            sample_num_frames (`int`, *optional*, defaults to 5): frames to prompt, of Sa2VA-i alone.

        Returns:
            `dict`: `prediction`, the answer with its special tokens and its end marker, and `prediction_masks`, a list
            with a bool array for each `[SEG]` in it, of shape `(1, H, W)` for an image and `(frames, H, W)` for a
            video or several images. For videos of Sa2VA-i also `sample_idx`, the frames that were prompted.

        Raises:
            `ValueError`: image and video together, no text, no tokenizer or that of another model, an image that has
            no place in the text or two, a past that is not wrapped or speaks of an image that is not given, regions
            where there can be none; or as `segment`.

        Example:

            ```python
            >>> from PIL import Image
            >>> from sa2va_trl import tiny_sa2va
            >>> from sa2va_trl.data.angiography import generate_video

            >>> model, processor = tiny_sa2va(pretrained=True)
            >>> image = Image.fromarray(generate_video(seed=0, video=0, num_frames=1, scene="named").frames[0])
            >>> result = model.eval().predict_forward(
            ...     image=image, text="<image>Please segment the blood vessel.", tokenizer=processor.tokenizer
            ... )
            >>> result["prediction"], result["prediction_masks"][0].shape
            ('Sure, [SEG].<|im_end|>', (1, 256, 256))

            ```
        """
        if image is not None and video is not None:
            raise ValueError("predict_forward takes `image` or `video`, not both.")
        if not isinstance(text, str):
            raise ValueError(f"predict_forward needs `text`, the request as a string, got {text!r}.")
        own = official_processor(self.config, tokenizer if processor is None else processor)
        turns = earlier_turns(past_text or "", own)
        text = _without_images(text, turns) if image is None and video is None else _placed(text, turns, own)
        is_i = self.config.grounding_config.separate_tracking_decoder
        clip = _clip_options(video, is_i, sample_num_frames)
        written = _Written()
        options = {"processor": own, "threshold": 0.5, "postprocessing": IDENTITY, "streamer": written, **clip}
        several = isinstance(image, (list, tuple))
        pictures = {"images": _of_one_size(image)} if several else {"image": image}
        if mask_prompts is not None:
            if image is None or several or turns:
                raise ValueError("mask_prompts are regions of one `image`, in the first turn of a dialogue.")
            pictures["regions"] = _regions(mask_prompts)
        messages = [*turns, {"role": "user", "content": text}]
        result = self.chat(messages, video=video, **pictures, **options).result
        masks = result.masks if video is not None or several else result.masks[:, None]
        prediction = {"prediction": written.text(own), "prediction_masks": list(masks.cpu().numpy())}
        return {**prediction, "sample_idx": result.prompted_frames} if is_i and video is not None else prediction


class _Written:
    """A streamer of `generate`: the tokens of the answer as they are written, its end included."""

    def __init__(self):
        self.ids: list[int] | None = None  # until the prompt has been seen

    def put(self, ids: torch.Tensor) -> None:
        self.ids = [] if self.ids is None else self.ids + ids.flatten().tolist()

    def end(self) -> None:
        pass

    def text(self, processor: Sa2VAProcessor) -> str:
        return processor.tokenizer.decode(self.ids, skip_special_tokens=False).strip()


def official_processor(config: Sa2VAConfig, given: ProcessorMixin | PreTrainedTokenizerBase | None) -> Sa2VAProcessor:
    """
    The processor that asks as the official inference does.

    Args:
        config (`Sa2VAConfig`): of the model.
        given (`ProcessorMixin` or `PreTrainedTokenizerBase`):
            What the Auto classes of transformers make of the model's folder. It is not changed.

    Returns:
        `Sa2VAProcessor`: a copy in the official style, or what a published checkpoint of this config needs, around the
        tokenizer.

    Raises:
        `ValueError`: none of these, or of another model.
    """
    tokenizer = getattr(given, "tokenizer", given)
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise ValueError(
            "predict_forward needs `tokenizer`, as AutoTokenizer loads it from the model's folder, or `processor`, as "
            f"AutoProcessor does; got {type(given).__name__}."
        )
    is_qwen = config.vlm_config.model_type != "internvl"
    tokens = [SEG_TOKEN, (QWEN_IMAGE if is_qwen else INTERNVL_IMAGE)[1]]
    if tokenizer.convert_tokens_to_ids(tokens) != [config.seg_token_id, config.image_token_id]:
        raise ValueError(
            f"This tokenizer is of another model: {' and '.join(tokens)} have other ids there, or none. Load it from "
            "the folder of the model."
        )
    if isinstance(given, Sa2VAProcessor):
        processor = copy.copy(given)
    else:
        if isinstance(tokenizer, LlamaTokenizer) and tokenizer.name_or_path:
            # transformers 5 builds it with spaces of its own.
            tokenizer = _from_the_files(tokenizer.name_or_path)
        processor = Sa2VAProcessor(
            published_image_processor(config.vlm_config),
            tokenizer,
            image_seq_length=None if is_qwen else config.vlm_config.image_seq_length,
            grounding_image_size=config.grounding_config.image_size,
            prompt_template=config.prompt_template,
            # A processor of Qwen has the template of the checkpoint, which its tokenizer may lack.
            official_opening=template_opening(given.chat_template, tokenizer) if is_qwen else None,
        )
    processor.prompt_style = "official"
    return processor


@lru_cache(maxsize=4)
def _from_the_files(name_or_path: str) -> PreTrainedTokenizerBase:
    return load_tokenizer(checkpoint_folder(name_or_path, weights=False)[0])


def earlier_turns(past_text: str, processor: Sa2VAProcessor) -> list[dict]:
    """
    The turns of a dialogue as it stands in a prompt.

    Args:
        past_text (`str`): in the words of the processor's prompt template. An end marker may be missing at the end.
        processor (`Sa2VAProcessor`): of the model.

    Returns:
        `list[dict]`: `{"role", "content"}` of every turn, with `<image>` in the place of image tokens.

    Raises:
        `ValueError`: a text that no template has wrapped.

    Example:

        ```python
        >>> from sa2va_trl import tiny_sa2va
        >>> from sa2va_trl.models.predict_forward import earlier_turns

        >>> _, processor = tiny_sa2va(image_size=128)
        >>> past = "<|im_start|>user\\n<img></img>Where?<|im_end|>\\n<|im_start|>assistant\\nHere.<|im_end|>"
        >>> [turn["content"] for turn in earlier_turns(past, processor)]
        ['<image>Where?', 'Here.']

        ```
    """
    template = TEMPLATES[processor.prompt_template]
    start, end = map(re.escape, template["user"].split("{content}"))
    stop = re.escape(template["answer_end"])
    turn = re.compile(rf"\s*{start}(.*?){end}(.*?)(?:{stop})?\s*(?={start}|\Z)", re.DOTALL)
    token = re.escape(processor.image_token)
    block = re.escape(processor.image_block(1)).replace(token, f"(?:{token})*")
    turns, position = [], 0
    while past_text[position:].strip():
        match = turn.match(past_text, position)
        if match is None:
            raise ValueError(
                "`past_text` must hold earlier turns as the prompt template wraps them, each "
                f"{template['user'].format(content='QUESTION') + 'ANSWER' + template['answer_end']!r}; got "
                f"{past_text[position : position + 200]!r}."
            )
        question, answer = match.groups()
        question = re.sub(rf"{block}(?:\n?{block})*", IMAGE_PLACEHOLDER, question)
        turns += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        position = match.end()
    return turns


def _placed(text: str, turns: list[dict], processor: Sa2VAProcessor) -> str:
    """The text of a request about an image; a `ValueError` where the image has no place in the dialogue, or two."""
    before = any(IMAGE_PLACEHOLDER in turn["content"] for turn in turns)
    if before and IMAGE_PLACEHOLDER in text:
        raise ValueError(f"{IMAGE_PLACEHOLDER} stands in `past_text` already: leave it out of {text!r}.")
    if not (before or IMAGE_PLACEHOLDER in text or processor.is_official):
        raise ValueError(
            f"{IMAGE_PLACEHOLDER} must say where the image stands in the text, as in {IMAGE_PLACEHOLDER + text!r}."
        )
    return text


def _without_images(text: str, turns: list[dict]) -> str:
    """The text of a request about no image; a `ValueError` where earlier turns speak of one."""
    if any(IMAGE_PLACEHOLDER in turn["content"] for turn in turns):
        raise ValueError("`past_text` speaks of an image: give it again, as `image` or `video`.")
    return text.replace(IMAGE_PLACEHOLDER, "")


def _clip_options(video: Any, is_i: bool, count: int | None) -> dict[str, Any]:
    """Which frames the official code of Sa2VA or of Sa2VA-i prompts, and how it tracks from them."""
    if count is not None and (video is None or not is_i):
        raise ValueError("sample_num_frames is of videos and Sa2VA-i: Sa2VA's own code prompts the first five frames.")
    if video is None:
        return {}
    if is_i:
        return {"frame_policy": "uniform", "num_frames": 5 if count is None else count, "tracking": "mask_prompt"}
    return {"frame_policy": "first", "num_frames": 5, "tracking": "soft"}


def _of_one_size(images: list[Given]) -> list[Image.Image]:
    """Several images, which share the arrays of masks."""
    pictures = [given_picture(each, f"Image {index}") for index, each in enumerate(images)]
    if len(sizes := {f"{picture.width} x {picture.height}" for picture in pictures}) > 1:
        raise ValueError(
            "predict_forward has one array of masks for all images, which differ in size here "
            f"({', '.join(sorted(sizes))}): take model.chat(images=...)."
        )
    return pictures


def _regions(mask_prompts: np.ndarray | list[np.ndarray]) -> list[np.ndarray]:
    """The masks of regions, bool; official scripts give an array of them, or a list with that array."""
    masks = [np.asarray(each) for each in mask_prompts]
    if len(masks) == 1 and masks[0].ndim == 3:
        masks = list(masks[0])
    if not masks or any(mask.ndim != 2 for mask in masks):
        raise ValueError(
            "`mask_prompts` must be an array of shape (regions, H, W), or a list with one such array; got "
            f"{[mask.shape for mask in masks]}."
        )
    return [mask != 0 for mask in masks]
