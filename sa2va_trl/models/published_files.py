"""
What stands beside a published checkpoint's weights: tokenizer and image processor, in the words of transformers 4.

The official tools run on transformers 4.57, which does not read what transformers 5 writes. Sa2VA's model card loads
the slow tokenizer, and a slow Qwen tokenizer reads `vocab.json` and `merges.txt`.
"""

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase, Qwen2Tokenizer, Qwen2VLImageProcessorPil

from .checkpoints import read_json, refuse_sam3
from .pixels import QWEN_CLIP_SIZE, QWEN_IMAGE_SIZE, published_image_processor
from .published import native_config
from .templates import CHATML, is_ours
from .tokenization import load_tokenizer


if TYPE_CHECKING:
    from .processing import Sa2VAProcessor

logger = logging.getLogger(__name__)

# Least and most pixels that Qwen's own image and video processors accept. They stand in the files of published
# checkpoints; Sa2VA's code has its own, narrower ones, and resizes to them before.
_QWEN = {
    "Qwen2_5_VLProcessor": {
        "image": {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 16384},
        "video": {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 16384},
        "video_processor_type": "Qwen2VLVideoProcessor",
    },
    "Qwen3VLProcessor": {
        "image": {"shortest_edge": 256 * 256, "longest_edge": 4096 * 4096},
        "video": {"shortest_edge": 64 * 64, "longest_edge": 4096 * 6144},
        "video_processor_type": "Qwen3VLVideoProcessor",
    },
}
# How transformers 5 came by the tokenizer, which transformers 4 would pass on to it as options.
_OF_TRANSFORMERS_5 = ("backend", "extra_special_tokens", "is_local", "local_files_only", "processor_class")


def read_published_processor(folder: Path, config: dict) -> dict:
    """
    What makes the processor of a published checkpoint.

    Args:
        folder (`Path`): the checkpoint.
        config (`dict`): its `config.json`.

    Returns:
        `dict`: arguments of [`Sa2VAProcessor`].

    Raises:
        `ValueError`: an unknown family, or no tokenizer.
    """
    # The ids do not matter here; whether the tokenizer has them is checked by the processor.
    native = native_config(config, seg_token_id=0, image_token_id=0)
    refuse_sam3(folder)
    tokenizer = load_tokenizer(folder)
    options = {
        "image_processor": published_image_processor(native.vlm_config),
        "tokenizer": tokenizer,
        "grounding_image_size": native.grounding_config.image_size,
        "prompt_template": native.prompt_template,
    }
    if native.vlm_config.model_type == "internvl":
        return {**options, "image_seq_length": native.vlm_config.image_seq_length}
    options["official_opening"] = published_opening(folder, tokenizer)
    saved = folder / "preprocessor_config.json"
    if saved.is_file() and (style := read_json(saved).get("prompt_style")):
        options["prompt_style"] = style
    return options


def published_opening(folder: Path, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """
    What the chat template of a published checkpoint begins with.

    Args:
        folder (`Path`): the checkpoint.
        tokenizer (`PreTrainedTokenizerBase`): of it.

    Returns:
        `str`, or `None` where it has no template of its own.
    """
    template = tokenizer.chat_template
    # (transformers' processors, which official inference asks, prefer the older of their files to the tokenizer's.)
    if (folder / "chat_template.json").is_file() and not (folder / "chat_template.jinja").is_file():
        template = read_json(folder / "chat_template.json").get("chat_template")
    return template_opening(template, tokenizer, f"{folder}: ")


def template_opening(template: str | None, tokenizer: PreTrainedTokenizerBase, where: str = "") -> str | None:
    """
    What a chat template begins with.

    Args:
        template (`str`, *optional*): Jinja.
        tokenizer (`PreTrainedTokenizerBase`): whose template it is.
        where (`str`, *optional*): what messages begin with.

    Returns:
        `str`, or `None` where there is no template, or it is one of this package's.
    """
    if is_ours(template):
        return None
    chat = [{"role": "user", "content": [{"type": "text", "text": "Where?"}]}]
    try:
        text = tokenizer.apply_chat_template(chat, chat_template=template, tokenize=False)
    except TemplateError as error:
        text = f"{error!r}"
    opening, turn, _ = text.partition(CHATML["user"].split("{content}")[0])
    if not turn:
        logger.warning(
            f"{where}its chat template writes no user turn ({text[:200]!r}). With prompt_style=official there will "
            "be no system turn, unless the processor's `official_opening` is set."
        )
    return opening if turn else ""


def save_published_processor(processor: "Sa2VAProcessor", folder: Path) -> None:
    """
    Write what stands beside a published checkpoint's weights. Limits of tiles and pixels have no place there, because
    the official code has its own; a warning says so where that changes something.

    Args:
        processor (`Sa2VAProcessor`): not changed.
        folder (`Path`): where to.
    """
    tokenizer, image_processor = processor.tokenizer, processor.image_processor
    # The tokenizer's own template is the official one, unless it has become a processor's of ours on the way.
    own = None if is_ours(tokenizer.chat_template) else tokenizer.chat_template
    if not isinstance(image_processor, Qwen2VLImageProcessorPil):
        # (InternVL's official code knows its prompts and tiles by itself.)
        save_tokenizer(tokenizer, folder, own or processor.chat_template)
        return
    if dict(image_processor.size) != QWEN_IMAGE_SIZE or processor.clip_size != QWEN_CLIP_SIZE:
        logger.warning(
            "The published layout has no place for a pixel budget of one's own (image_processor.size, clip_size): its "
            "code, and this package when it loads it, take Sa2VA's. The native layout keeps it."
        )
    kind = "Qwen2_5_VLProcessor" if image_processor.patch_size == 14 else "Qwen3VLProcessor"
    save_tokenizer(tokenizer, folder, own or qwen_chat_template(processor.official_opening), kind)
    save_qwen_processor(image_processor, folder, kind, processor.prompt_style)


def save_tokenizer(
    tokenizer: PreTrainedTokenizerBase, folder: Path, chat_template: str, processor_class: str | None = None
) -> None:
    """
    Write a tokenizer so that transformers 4 and 5 read it, fast and slow.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): a fast one; not changed.
        folder (`Path`): where to.
        chat_template (`str`): that goes with it.
        processor_class (`str`, *optional*): of transformers, that `AutoProcessor` is to load.
    """
    tokenizer.save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(chat_template, encoding="utf-8")
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    special = settings.get("extra_special_tokens") or []
    settings = {name: value for name, value in settings.items() if name not in _OF_TRANSFORMERS_5}
    settings["additional_special_tokens"] = special
    settings["added_tokens_decoder"] = {
        str(index): token.__getstate__() for index, token in sorted(tokenizer.added_tokens_decoder.items())
    }
    if processor_class is not None:
        settings["processor_class"] = processor_class
    if isinstance(tokenizer, Qwen2Tokenizer):
        model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
        _write_json(folder / "vocab.json", model["vocab"])
        lines = ["#version: 0.2", *(" ".join(pair) for pair in model["merges"])]
        (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        settings["tokenizer_class"] = "Qwen2Tokenizer"
    else:
        # There is no slow one: asked for it, transformers 4 gives this.
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    _write_json(folder / "tokenizer_config.json", settings, indent=2, sort_keys=True)


def qwen_chat_template(opening: str) -> str:
    """
    Qwen's chat template in its least form: a user's images where they stand.

    Args:
        opening (`str`): what stands in front of a conversation without a system turn of its own.

    Returns:
        `str`: Jinja.
    """
    return (
        f"{{%- if messages[0]['role'] != 'system' -%}}{{{{- {opening!r} -}}}}{{%- endif -%}}"
        "{%- for message in messages -%}{{- '<|im_start|>' + message['role'] + '\\n' -}}"
        "{%- if message['content'] is string -%}{{- message['content'] -}}{%- else -%}"
        "{%- for part in message['content'] -%}"
        "{%- if part['type'] == 'image' -%}{{- '<|vision_start|><|image_pad|><|vision_end|>' -}}"
        "{%- elif part['type'] == 'video' -%}{{- '<|vision_start|><|video_pad|><|vision_end|>' -}}"
        "{%- else -%}{{- part['text'] -}}{%- endif -%}"
        "{%- endfor -%}{%- endif -%}{{- '<|im_end|>\\n' -}}{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
    )


def save_qwen_processor(
    image_processor: Qwen2VLImageProcessorPil, folder: Path, processor_class: str, prompt_style: str = "training"
) -> None:
    """
    Write the settings of Qwen's image and video processors, as published checkpoints have them.

    Args:
        image_processor (`Qwen2VLImageProcessorPil`): whose patches and statistics they are.
        folder (`Path`): where to.
        processor_class (`str`): `"Qwen2_5_VLProcessor"` or `"Qwen3VLProcessor"`.
        prompt_style (`str`, *optional*, defaults to `"training"`): kept beside them, for [`Sa2VAProcessor`] alone.
    """
    family = _QWEN[processor_class]
    names = ("do_convert_rgb", "do_resize", "do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std")
    names += ("resample", "patch_size", "temporal_patch_size", "merge_size")
    settings = {name: getattr(image_processor, name) for name in names}
    settings |= {"resample": int(settings["resample"]), "processor_class": processor_class}
    image = {"image_processor_type": "Qwen2VLImageProcessorFast", "size": family["image"]}
    video = {"video_processor_type": family["video_processor_type"], "size": family["video"]}
    if prompt_style != "training":
        image["prompt_style"] = prompt_style
    _write_json(folder / "preprocessor_config.json", settings | image, indent=2, sort_keys=True)
    _write_json(folder / "video_preprocessor_config.json", settings | video, indent=2, sort_keys=True)


def _write_json(path: Path, content: dict, **options) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, **options) + "\n", encoding="utf-8")
