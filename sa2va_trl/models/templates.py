"""Chat templates of the language models."""

from pathlib import Path

from jinja2 import TemplateError
from transformers.utils import logging

from .checkpoints import read_json


logger = logging.get_logger(__name__)


# The wrapping of each role, the end of an answer, and what separates one exchange from the next. No template has a
# default system turn: Sa2VA was trained without one.
CHATML = {
    "system": "<|im_start|>system\n{content}<|im_end|>\n",
    "user": "<|im_start|>user\n{content}<|im_end|>\n<|im_start|>assistant\n",
    "answer_end": "<|im_end|>",
    "separator": "\n",
    "stop": ("<|im_end|>",),
}
TEMPLATES = {
    "qwen_chat": {**CHATML, "stop": ("<|im_end|>", "<|endoftext|>")},
    "internlm2_chat": CHATML,
    "phi3_chat": {
        "system": "<|system|>\n{content}<|end|>\n",
        "user": "<|user|>\n{content}<|end|>\n<|assistant|>\n",
        "answer_end": "<|end|>",
        "separator": "\n",
        "stop": ("<|end|>",),
    },
}
# What Qwen2.5-VL's own chat template begins with. (Qwen3-VL's begins with the user's turn.)
QWEN2_5_OPENING = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
# What the chat templates here begin with, and no other does.
_MACRO = "{%- macro text(content) -%}"
# A message's content as text, in Jinja. In training an image stands where its part is, with a newline after it.
_TRAINING_CONTENT = (
    "{%- if content is string -%}{{ content }}{%- else -%}{%- for part in content -%}"
    "{%- if part['type'] == 'image' -%}{{ '<image>\n' }}{%- else -%}{{ part['text'] }}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}"
)
_OFFICIAL_CONTENT = (
    "{%- if content is string -%}{{ '<image>' * content.count('<image>') + content.replace('<image>', '') }}"
    "{%- else -%}{%- for part in content if part['type'] == 'image' -%}{{ '<image>' }}{%- endfor -%}"
    "{%- for part in content if part['type'] != 'image' -%}{{ part['text'].replace('<image>', '') }}{%- endfor -%}"
    "{%- endif -%}"
)


def _jinja(template: dict, content: str = _TRAINING_CONTENT, opening: str = "") -> str:
    """The same wrapping as a chat template, for tools that call `apply_chat_template` (TRL's own trainers)."""
    user, assistant = template["user"].split("{content}")
    user_end, assistant_start = assistant.split("\n", 1)
    system_start, system_end = template["system"].split("{content}")
    if opening:
        opening = "{%- if loop.first and message['role'] != 'system' -%}{{ " + repr(opening) + " }}{%- endif -%}"
    return (
        _MACRO + content + "{%- endmacro -%}"
        "{%- for message in messages -%}"
        + opening
        + "{%- if message['role'] == 'system' -%}{{ "
        + repr(system_start)
        + " + text(message['content']) + "
        + repr(system_end)
        + " }}"
        "{%- elif message['role'] == 'user' -%}{{ "
        + repr(user)
        + " + text(message['content']) + "
        + repr(user_end + "\n")
        + " }}"
        "{%- else -%}{{ "
        + repr(assistant_start)
        + " }}{%- generation -%}{{ text(message['content']) + "
        + repr(template["answer_end"])
        + " }}{%- endgeneration -%}{{ '\\n' }}{%- endif -%}"
        "{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{ " + repr(assistant_start) + " }}{%- endif -%}"
    )


def _is_ours(chat_template: str | dict | None) -> bool:
    """Whether a tokenizer has no chat template, or has taken over that of a processor here."""
    return chat_template is None or (isinstance(chat_template, str) and chat_template.startswith(_MACRO))


def _opening(folder: Path, tokenizer) -> str | None:
    """What the chat template of a published checkpoint begins with; `None` where it has none of its own."""
    template = tokenizer.chat_template
    # (transformers' processors, which official inference asks, prefer the older of their files to the tokenizer's.)
    if (folder / "chat_template.json").is_file() and not (folder / "chat_template.jinja").is_file():
        template = read_json(folder / "chat_template.json").get("chat_template")
    if _is_ours(template):
        return None
    chat = [{"role": "user", "content": [{"type": "text", "text": "Where?"}]}]
    try:
        text = tokenizer.apply_chat_template(chat, chat_template=template, tokenize=False)
    except TemplateError as error:
        text = f"{error!r}"
    opening, turn, _ = text.partition(CHATML["user"].split("{content}")[0])
    if not turn:
        logger.warning(
            f"{folder}: its chat template writes no user turn ({text[:200]!r}). With prompt_style=official there will "
            "be no system turn, unless the processor's `official_opening` is set."
        )
    return opening if turn else ""
