"""
What stands beside a published checkpoint's weights: tokenizer and image processor, in the words of transformers 4.

The official tools run on transformers 4.57, which does not read what transformers 5 writes. Sa2VA's model card loads
the slow tokenizer, and a slow Qwen tokenizer reads `vocab.json` and `merges.txt`.
"""

import json
from pathlib import Path

from transformers import PreTrainedTokenizerBase, Qwen2Tokenizer


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


def save_qwen_processor(image_processor, folder: Path, processor_class: str, prompt_style: str = "training") -> None:
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
