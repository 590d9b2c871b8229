"""Text and images as the model takes them."""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import (
    BatchFeature,
    GotOcr2ImageProcessor,
    GotOcr2ImageProcessorPil,
    PreTrainedTokenizerBase,
    ProcessorMixin,
    Qwen2VLImageProcessor,
    Qwen2VLImageProcessorPil,
)
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_utils import SizeDict
from transformers.utils import cached_file

from ..files import written_beside
from ..tokens import IMAGE_PLACEHOLDER, INTERNVL_IMAGE, QWEN_IMAGE, SEG_TOKEN
from .chat import encode_chat, next_turn
from .checkpoints import HUB_OPTIONS, checkpoint_folder, folders_first, read_json
from .pixels import (
    QWEN_CLIP_SIZE,
    QWEN_IMAGE_SIZE,  # noqa: F401  (defined here once)
    grounding_pixels,
    size_of_first_step,
    standardized,
)
from .published import is_published
from .published_files import read_published_processor, save_published_processor
from .regions import REGION_END, REGION_START, image_regions, region_clause
from .templates import (
    CHATML,  # noqa: F401  (defined here once)
    OFFICIAL_CONTENT,
    QWEN2_5_OPENING,
    TEMPLATES,
    jinja_template,
)


# What a conversation is asked in: as Sa2VA was trained, or as its own inference does.
PROMPT_STYLES = ("training", "official")
_PHRASE = re.compile(r"<p>\s*(.*?)\s*</p>", re.DOTALL)


class Sa2VAProcessor(ProcessorMixin):
    """
    Text, tiles and SAM 2 pixels for [`Sa2VAForConditionalGeneration`].

    Args:
        image_processor (`BaseImageProcessor`):
            What turns an image into the VLM's pixels, and so says which family the VLM is of:
            `GotOcr2ImageProcessorPil` for InternVL (it equals Sa2VA's own tiling), `Qwen2VLImageProcessorPil` for
            Qwen2.5-VL and Qwen3-VL, whose `size` is the pixel budget of a still image (`QWEN_IMAGE_SIZE` in published
            models).
        tokenizer (`PreTrainedTokenizerBase`):
            With `[SEG]` and the image tokens as special tokens.
        image_seq_length (`int`, *optional*, defaults to 256 for InternVL):
            Placeholder tokens a tile. Qwen has no tiles.
        grounding_image_size (`int`, *optional*, defaults to 1024):
            Side of the square that SAM 2 sees, in pixels.
        prompt_template (`str`, *optional*, defaults to `"qwen_chat"`):
            Name of the prompt template, as in the model's config.
        chat_template (`str`, *optional*):
            Jinja form of the template; made from `prompt_template` when not given.
        clip_size (`dict`, *optional*, defaults to `QWEN_CLIP_SIZE` for Qwen):
            Pixel budget of a clip's frame, `{"shortest_edge": least pixels, "longest_edge": most pixels}`; the
            `size` of an image processor does as well. Without effect on official prompts. A frame is one tile for
            InternVL.
        prompt_style (`str`, *optional*, defaults to `"training"`):
            Qwen's official inference differs from its official training in four things. `"training"` asks as Sa2VA was
            trained. `"official"` asks as its inference does, which its published scores were made with: it begins with
            `official_opening`, puts images in front (`<image>` is left out of the text, a newline after it stays) with
            nothing between frames, resizes an image to multiples of 28 pixels before the image processor does, and
            gives a clip's frame the pixel budget of a still image. For InternVL both styles are the same, since its
            official inference asks as its training does.
        official_opening (`str`, *optional*, defaults to Qwen2.5-VL's system turn with its patches, else to none):
            What stands in front of a conversation without a system turn in official prompts: what the chat template of
            a published checkpoint puts there. Qwen's only.

    Raises:
        `ValueError`: an image processor or template of no known kind, a tokenizer without `[SEG]` or the image
        tokens, or an option that the family does not have.
    """

    def __init__(
        self,
        image_processor: BaseImageProcessor | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        image_seq_length: int | None = None,
        grounding_image_size: int = 1024,
        prompt_template: str = "qwen_chat",
        chat_template: str | None = None,
        clip_size: dict[str, int] | None = None,
        prompt_style: str = "training",
        official_opening: str | None = None,
    ):
        if prompt_template not in TEMPLATES:
            raise ValueError(f"prompt_template must be one of {', '.join(TEMPLATES)}, got {prompt_template!r}.")
        template = TEMPLATES[prompt_template]
        # What `from_pretrained` loads by default; torchvision's resize is up to one grey level off Sa2VA's own.
        if isinstance(image_processor, GotOcr2ImageProcessor):
            image_processor = GotOcr2ImageProcessorPil(**image_processor.to_dict())
        elif isinstance(image_processor, Qwen2VLImageProcessor):
            image_processor = Qwen2VLImageProcessorPil(**image_processor.to_dict())
        if isinstance(image_processor, GotOcr2ImageProcessorPil):
            image_seq_length = 256 if image_seq_length is None else image_seq_length
            image_tokens = INTERNVL_IMAGE
        elif isinstance(image_processor, Qwen2VLImageProcessorPil):
            if image_seq_length is not None:
                raise ValueError("image_seq_length is InternVL's; Qwen's image tokens follow from the image's size.")
            clip_size = QWEN_CLIP_SIZE if clip_size is None else clip_size
            if official_opening is None:
                official_opening = QWEN2_5_OPENING if image_processor.patch_size == 14 else ""
            image_tokens = QWEN_IMAGE
        else:
            raise ValueError(
                "image_processor must be a GotOcr2ImageProcessorPil (InternVL) or a Qwen2VLImageProcessorPil (Qwen), "
                f"got {type(image_processor).__name__}."
            )
        super().__init__(image_processor, tokenizer, chat_template=chat_template)
        self.image_seq_length = image_seq_length
        self.grounding_image_size = grounding_image_size
        self.prompt_template = prompt_template
        self.clip_size = clip_size
        self._template = template
        self.official_opening = official_opening
        self.prompt_style = prompt_style
        self._image_start, self.image_token, self._image_end = image_tokens
        for token in (SEG_TOKEN, *image_tokens):
            if len(self.tokenizer(token, add_special_tokens=False).input_ids) != 1:
                raise ValueError(f"The tokenizer does not hold {token!r} as one token; add it as a special token.")
        self.image_token_id = self.tokenizer.convert_tokens_to_ids(self.image_token)
        self.seg_token_id = self.tokenizer.convert_tokens_to_ids(SEG_TOKEN)

    # (Under their own names in `__dict__`, which is what transformers saves.)
    @property
    def clip_size(self) -> dict[str, int] | None:
        """Pixel budget of a clip's frame, Qwen's only; takes an image processor's `size` too."""
        return self.__dict__["clip_size"]

    @clip_size.setter
    def clip_size(self, value: Mapping | SizeDict | None) -> None:
        qwen = isinstance(self.image_processor, Qwen2VLImageProcessorPil)
        if not qwen and value is not None:
            raise ValueError("clip_size is Qwen's; a frame of a clip is one tile for InternVL.")
        if qwen:
            if not isinstance(value, (Mapping, SizeDict)) or set(value := dict(value)) != set(QWEN_CLIP_SIZE):
                raise ValueError(
                    'clip_size must be {"shortest_edge": least pixels, "longest_edge": most pixels} of a frame, got '
                    f"{value!r}."
                )
        self.__dict__["clip_size"] = value

    @property
    def prompt_style(self) -> str:
        """`"training"` or `"official"`; setting it changes the chat template too, unless that is somebody's own."""
        return self.__dict__["prompt_style"]

    @prompt_style.setter
    def prompt_style(self, value: str) -> None:
        if value not in PROMPT_STYLES:
            raise ValueError(f"prompt_style must be one of {', '.join(PROMPT_STYLES)}, got {value!r}.")
        self._set_style(prompt_style=value)

    @property
    def official_opening(self) -> str | None:
        """What official prompts begin with, Qwen's only; setting it changes the chat template like `prompt_style`."""
        return self.__dict__["official_opening"]

    @official_opening.setter
    def official_opening(self, value: str | None) -> None:
        qwen = isinstance(self.image_processor, Qwen2VLImageProcessorPil)
        if not qwen and value is not None:
            raise ValueError("official_opening is Qwen's; InternVL's official prompts are those of its training.")
        if qwen and not isinstance(value, str):
            raise ValueError(f'official_opening must be text, "" for none, got {value!r}.')
        self._set_style(official_opening=value)

    def _set_style(self, **values: str | None) -> None:
        """Set what the chat template follows from, and the template with it."""
        earlier = self._own_templates()
        self.__dict__.update(values)
        if self.chat_template is None or self.chat_template in earlier:
            self.chat_template = self._own_templates()[self.is_official]

    def _own_templates(self) -> list[str]:
        """The chat templates of both styles."""
        opening = self.__dict__.get("official_opening") or ""
        return [jinja_template(self._template), jinja_template(self._template, OFFICIAL_CONTENT, opening)]

    @property
    def is_official(self) -> bool:
        """Whether prompts and pixels are official inference's where those differ from training's, as Qwen's do."""
        return self.__dict__.get("prompt_style") == "official" and isinstance(
            self.image_processor, Qwen2VLImageProcessorPil
        )

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        subfolder: str = "",
        prompt_style: str | None = None,
        **kwargs: Any,
    ) -> "Sa2VAProcessor":
        """
        Load a saved processor, or make the one that a published Sa2VA checkpoint needs.

        Args:
            pretrained_model_name_or_path (`str` or `Path`): a folder or a Hub id.
            subfolder (`str`, *optional*): below it.
            prompt_style (`str`, *optional*): in place of the saved one.
            kwargs: as in transformers; a published checkpoint takes those of the Hub.

        Returns:
            `Sa2VAProcessor`.

        Raises:
            `ValueError`: neither a folder nor on the Hub; a published checkpoint of an unknown family, without a
            tokenizer or with one that lacks `[SEG]` or the image tokens.
        """
        hub_options = {name: kwargs[name] for name in HUB_OPTIONS if kwargs.get(name) is not None}
        with folders_first(pretrained_model_name_or_path):
            config = cached_file(
                pretrained_model_name_or_path,
                "config.json",
                subfolder=subfolder,
                _raise_exceptions_for_missing_entries=False,
                **hub_options,
            )
            # An adapter has a processor and no config.
            if config is None or not is_published(content := read_json(Path(config))):
                processor = super().from_pretrained(pretrained_model_name_or_path, subfolder=subfolder, **kwargs)
            else:
                options = {"weights": False, "subfolder": subfolder, **hub_options}
                folder, _ = checkpoint_folder(pretrained_model_name_or_path, **options)
                processor = cls(**read_published_processor(folder, content))
        if prompt_style is not None:
            processor.prompt_style = prompt_style
        return processor

    def save_pretrained(self, save_directory: str | Path, layout: str = "native", **kwargs: Any) -> list[str]:
        """
        As in transformers; `layout="published"` saves what stands beside a published checkpoint's weights, as the
        official tools read it with transformers 4.57. Limits of tiles and pixels have no place there: those tools have
        their own.

        Args:
            save_directory (`str` or `Path`): where to.
            layout (`str`, *optional*, defaults to `"native"`): or `"published"`.
            kwargs: of transformers; none with `"published"`.

        Returns:
            `list[str]`: the files.

        Raises:
            `ValueError`: an unknown layout, or an option that it does not take.
        """
        if layout == "native":
            return super().save_pretrained(save_directory, **kwargs)
        if layout != "published":
            raise ValueError(f"layout must be 'native' or 'published', got {layout!r}.")
        if kwargs:
            raise ValueError(f"save_pretrained(layout='published') does not take {', '.join(sorted(kwargs))}.")
        with written_beside(save_directory) as folder:
            save_published_processor(self, folder)
            names = [file.name for file in folder.iterdir()]
        return [str(Path(save_directory) / name) for name in names]

    @property
    def model_input_names(self) -> list[str]:
        """What `__call__` makes for the model."""
        grid = ["image_grid_thw"] if isinstance(self.image_processor, Qwen2VLImageProcessorPil) else []
        return ["input_ids", "attention_mask", "pixel_values", *grid]

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """Strings that end an answer: the template's and, as in official inference, the tokenizer's end of a text."""
        stops, end = self._template["stop"], self.tokenizer.eos_token
        return stops if end is None or end in stops else (*stops, end)

    def stopping(self) -> dict:
        """
        Keyword arguments of `generate` that end an answer: token ids, or strings where a stop word is not one token
        (as `phi3_chat` on a Qwen tokenizer).
        """
        ids = [self._ids(stop) for stop in self.stop_strings]
        if all(len(stop) == 1 for stop in ids):
            return {"eos_token_id": [stop[0] for stop in ids]}
        return {"stop_strings": list(self.stop_strings), "tokenizer": self.tokenizer}

    @property
    def region_side(self) -> int:
        """
        Side of the grid that regions are drawn on: the tokens of a tile, along one side.

        Raises:
            `ValueError`: the VLM takes no regions: it is Qwen, or its tokenizer has no `<vp>`.
        """
        if isinstance(self.image_processor, Qwen2VLImageProcessorPil):
            raise ValueError("Regions are InternVL's: Sa2VA on Qwen was neither trained with them nor takes them.")
        for token in (REGION_START, REGION_END):
            if len(self._ids(token)) != 1:
                raise ValueError(f"The tokenizer does not hold {token!r} as one token, so there can be no regions.")
        return math.isqrt(self.image_seq_length)

    def region_cells(self, regions: Sequence[Any], size: tuple[int, int]) -> torch.Tensor:
        """
        The cells of an image's regions, see [`~models.regions.image_regions`].

        Args:
            regions (`Sequence`):
                Masks of the image's size (PIL images, bool or uint8 arrays and tensors of shape `(H, W)`), or boxes
                (x0, y0, x1, y1) in pixels. In a text, the first is region1.
            size (`tuple[int, int]`): (width, height) of the image.

        Returns:
            `torch.Tensor` of shape `(regions, side, side)`, bool.

        Raises:
            `ValueError`: as `region_side`; or a region that cannot be read, is of another size, or holds no cell.
        """
        return image_regions(regions, size, self.region_side)

    # What differs between VLM families is here and nowhere else in the package.
    def tiles(
        self, images: list[Image.Image], clip: bool = False, regions: Sequence[Sequence[Any]] | None = None
    ) -> tuple[dict[str, torch.Tensor], list[str]]:
        """
        The VLM's pixels, and the text block that stands for each image.

        Args:
            images (`list[PIL.Image.Image]`): any size and mode.
            clip (`bool`, *optional*, defaults to `False`):
                Frames of a clip get fewer pixels than still images, as Sa2VA does: one tile each, or `clip_size`
                (but in official prompts, see `prompt_style`).
            regions (`Sequence[Sequence]`, *optional*):
                Of each image, which may have none: see `region_cells`. InternVL's, and of still images. A block then
                ends with the clause that announces them.

        Returns:
            Keyword arguments of the model, none without images, and a string for each image. InternVL takes
            `pixel_values` of shape `(tiles, 3, size, size)`; Qwen `pixel_values` of shape
            `(patches, values of a patch)` and `image_grid_thw` of shape `(images, 3)`, int64: 1 and the patches down
            and across each image. With `regions` there are `region_masks` of shape `(regions, side, side)`, bool, and
            `region_counts` of shape `(tiles,)`, int64, too: regions are seen on the last tile of their image.

        Raises:
            `ValueError`: `regions` of a clip, or of another number of images; or as `region_cells`.
        """
        if regions is not None:
            if clip:
                raise ValueError("Regions are of still images; the frames of a clip have none.")
            if len(regions) != len(images):
                raise ValueError(f"{len(images)} images and regions of {len(regions)} images do not pair up.")
            regions = [self.region_cells(own, image.size) for own, image in zip(regions, images, strict=True)]
        if not images:
            return {}, []
        qwen = isinstance(self.image_processor, Qwen2VLImageProcessorPil)
        images = [image.convert("RGB") for image in images]
        if self.is_official:
            images = [image.resize(size_of_first_step(*image.size), Image.Resampling.BICUBIC) for image in images]
            clip = False
        options = {"size": self.clip_size} if qwen else {"crop_to_patches": False}
        options = options if clip else {}
        own = self.image_processor
        # What takes most of InternVL's preprocessing. (Qwen has cut its images into patches by then.)
        ours = not qwen and own.do_rescale and own.do_normalize and own.rescale_factor == 1 / 255
        if ours:
            options |= {"do_rescale": False, "do_normalize": False}
        outputs = own(images=images, return_tensors="pt", **options)
        pixels = {"pixel_values": outputs["pixel_values"]}
        if ours:
            pixels["pixel_values"] = standardized(pixels["pixel_values"], own.image_mean, own.image_std)
        if qwen:
            pixels["image_grid_thw"] = outputs["image_grid_thw"]
            counts = (outputs["image_grid_thw"].prod(-1) // self.image_processor.merge_size**2).tolist()
        else:
            counts = [self.image_seq_length * int(tiles) for tiles in outputs["num_patches"]]
        if regions is None:
            return pixels, [self.image_block(count) for count in counts]
        last = torch.tensor(counts).cumsum(0) // self.image_seq_length - 1
        pixels["region_masks"] = torch.cat(regions)
        pixels["region_counts"] = torch.zeros(len(pixels["pixel_values"]), dtype=torch.long)
        pixels["region_counts"][last] = torch.tensor([len(own) for own in regions])
        cells = [own.sum((1, 2)).tolist() for own in regions]
        return pixels, [self.image_block(count, own) for count, own in zip(counts, cells, strict=True)]

    def image_block(self, count: int, region_cells: Sequence[int] = ()) -> str:
        """
        The text block of an image.

        Args:
            count (`int`): its image tokens, see `num_image_tokens`.
            region_cells (`Sequence[int]`, *optional*): cells of each of its regions, see `region_cells`.
        """
        clause = region_clause(region_cells, self.image_token)
        return f"{self._image_start}{self.image_token * count}{self._image_end}{clause}"

    def num_image_tokens(self, size: tuple[int, int], clip: bool = False) -> int:
        """
        How many tokens `tiles` would give an image, from its size alone.

        Args:
            size (`tuple[int, int]`): (width, height) in pixels.
            clip (`bool`, *optional*, defaults to `False`): as in `tiles`.

        Returns:
            `int`: image tokens, without the two around them.

        Raises:
            `ValueError`: a size that the family does not take: Qwen refuses sides that differ by more than 200 times.
        """
        if self.is_official:
            size, clip = size_of_first_step(*size), False
        width, height = size
        if isinstance(self.image_processor, Qwen2VLImageProcessorPil):
            budget = self.clip_size if clip else self.image_processor.size
            options = {"min_pixels": budget["shortest_edge"], "max_pixels": budget["longest_edge"]}
            patches = self.image_processor.get_number_of_image_patches(height, width, options)
            return patches // self.image_processor.merge_size**2
        options = {"crop_to_patches": False} if clip else {}
        return self.image_seq_length * self.image_processor.get_number_of_image_patches(height, width, options)

    def grounding_inputs(self, images: list[Image.Image]) -> torch.Tensor:
        """
        SAM 2's pixels: resized to the square without keeping the aspect (bicubic), scaled to [0, 1], ImageNet
        statistics.

        Args:
            images (`list[PIL.Image.Image]`): any size and mode.

        Returns:
            `torch.Tensor` of shape `(images, 3, S, S)`, float32, S = `grounding_image_size`.
        """
        return grounding_pixels(images, self.grounding_image_size)

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False).input_ids

    def answer_ids(self, answer: str) -> list[int]:
        """
        Token ids of an answer and its end marker, as they stand in a conversation.

        Args:
            answer (`str`): any text, special tokens included.
        """
        return self._ids(answer + self._template["answer_end"])

    def ended_ids(self, ids: list[int], answer: str) -> list[int]:
        """
        Token ids of a written answer as they stand in a conversation that goes on: with the end marker, and with
        nothing else behind it. They are those that were written, wherever they spell the answer.

        Args:
            ids (`list[int]`): as written, with what ended the answer, if anything did.
            answer (`str`): its text, without the end marker.
        """
        whole = answer + self._template["answer_end"]
        for count in range(len(ids), 0, -1):
            beginning = self.tokenizer.decode(ids[:count], skip_special_tokens=False)
            if whole.startswith(beginning):
                rest = whole[len(beginning) :]
                return ids[:count] + (self._ids(rest) if rest else [])
        return self._ids(whole)

    def without_end(self, answer: str) -> str:
        """
        An answer without the end marker, where it has one: recorded and decoded answers often do.

        Args:
            answer (`str`): such as `"Sure, [SEG].<|im_end|>"`.
        """
        stripped = answer.rstrip()
        end = next((stop for stop in self.stop_strings if stripped.endswith(stop)), None)
        return answer if end is None else stripped.removesuffix(end)

    def encode_chat(self, messages: list[dict], image_blocks: list[str]) -> tuple[list[int], list[int]]:
        """
        Token ids and labels of a conversation. A conversation that ends with a user turn ends ready for an answer.

        Args:
            messages (`list[dict]`):
                `{"role", "content"}` with a string as content, or a list of `{"type": "image"}` and
                `{"type": "text", "text"}` parts. `<image>` (or an image part) in any user turns marks the places of
                images: once for all of them, which then stand together, or once for each, in their order. Without it
                they come first, then a newline (the training convention). In official prompts images come first in
                the turn that marks them, and no newline is added.
            image_blocks (`list[str]`):
                From `tiles`, one an image. Those that stand together are joined by newlines (official: by nothing).
                One that ends with a newline, as with regions, gets none of the training convention's.

        Returns:
            `input_ids` and `labels` (lists of `int` of one length); labels are -100 except on answers and their end.

        Raises:
            `ValueError`: neither none, nor one, nor as many `<image>` as images; a token that only the processor may
            write, such as `<IMG_CONTEXT>` or `<|im_end|>`; a content that is no text; an unknown role.
        """
        return encode_chat(
            messages,
            image_blocks,
            self._template,
            self._ids,
            beginning=list(self.tokenizer("").input_ids),
            opening=self.official_opening if self.is_official else None,
        )

    def next_turn(self, text: str) -> list[int]:
        """
        Token ids of one more user turn, as `encode_chat` of the whole conversation has them: what stands between the
        end marker of an answer and the beginning of the next.

        Args:
            text (`str`): what the user says, without `<image>`.

        Raises:
            `ValueError`: as [`~models.chat.next_turn`].
        """
        return next_turn(text, self._template, self._ids)

    def pad(self, sequences: list[list[int]], value: int | None = None, side: str = "right") -> torch.Tensor:
        """
        Stack sequences of different lengths.

        Args:
            sequences (`list[list[int]]`): token ids or labels.
            value (`int`, *optional*, defaults to the padding token's id): what fills up.
            side (`str`, *optional*, defaults to `"right"`): `"left"` before generation.

        Returns:
            `torch.LongTensor` of shape `(batch, length of the longest)`.
        """
        value = self.tokenizer.pad_token_id if value is None else value
        length = max(len(sequence) for sequence in sequences)
        rows = [
            sequence + [value] * (length - len(sequence))
            if side == "right"
            else [value] * (length - len(sequence)) + sequence
            for sequence in sequences
        ]
        return torch.tensor(rows, dtype=torch.long)

    def __call__(
        self,
        images: Image.Image | list | tuple | None = None,
        text: str | list[str] | None = None,
        padding: bool | str = True,
        padding_side: str = "left",
        return_tensors: str | None = "pt",
        **kwargs: Any,
    ) -> BatchFeature:
        """
        The plain processor call of transformers: texts that are already wrapped by the chat template, with one
        `<image>` for each image.

        Args:
            images (`PIL.Image.Image` or a flat or nested list of them, *optional*):
                In the order of their placeholders.
            text (`str` or `list[str]`): wrapped texts.
            padding, padding_side, return_tensors, kwargs: of the tokenizer.

        Returns:
            `BatchFeature` with `input_ids`, `attention_mask` and, with images, what `tiles` gives.

        Raises:
            `ValueError`: no text, or the number of `<image>` is not the number of images.
        """
        if text is None:
            raise ValueError("Sa2VAProcessor needs `text`; for SAM 2's pixels alone call `grounding_inputs`.")
        texts = [text] if isinstance(text, str) else list(text)
        images = [] if images is None else images if isinstance(images, (list, tuple)) else [images]
        flat = [image for group in images for image in (group if isinstance(group, (list, tuple)) else [group])]
        placeholders = sum(entry.count(IMAGE_PLACEHOLDER) for entry in texts)
        if placeholders != len(flat):
            raise ValueError(f"The text holds {placeholders} {IMAGE_PLACEHOLDER}, but {len(flat)} images were given.")
        pixels, blocks = self.tiles(flat)
        remaining = iter(blocks)
        texts = [re.sub(re.escape(IMAGE_PLACEHOLDER), lambda _: next(remaining), entry) for entry in texts]
        encoded = self.tokenizer(
            texts, padding=padding, padding_side=padding_side, return_tensors=return_tensors, **kwargs
        )
        return BatchFeature({**encoded, **pixels}, tensor_type=return_tensors)

    def phrases(self, text: str) -> list[str | None]:
        """
        The phrase that each `[SEG]` of an answer segments.

        Args:
            text (`str`): an answer, in which `<p> phrase </p> [SEG]` pairs a phrase with a mask.

        Returns:
            One entry for each `[SEG]`: the last tagged phrase since the `[SEG]` before it, or `None` where there is
            none.
        """
        pieces = text.split(SEG_TOKEN)[:-1]
        found = (_PHRASE.findall(piece) for piece in pieces)
        return [phrases[-1] if phrases else None for phrases in found]
