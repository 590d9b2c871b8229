"""How the language models want their conversations wrapped, as text and as chat templates in Jinja."""

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
TRAINING_CONTENT = (
    "{%- if content is string -%}{{ content }}{%- else -%}{%- for part in content -%}"
    "{%- if part['type'] == 'image' -%}{{ '<image>\n' }}{%- else -%}{{ part['text'] }}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}"
)
OFFICIAL_CONTENT = (
    "{%- if content is string -%}{{ '<image>' * content.count('<image>') + content.replace('<image>', '') }}"
    "{%- else -%}{%- for part in content if part['type'] == 'image' -%}{{ '<image>' }}{%- endfor -%}"
    "{%- for part in content if part['type'] != 'image' -%}{{ part['text'].replace('<image>', '') }}{%- endfor -%}"
    "{%- endif -%}"
)


def jinja_template(template: dict, content: str = TRAINING_CONTENT, opening: str = "") -> str:
    """
    The wrapping of an entry of `TEMPLATES` as a chat template, for tools that call `apply_chat_template` (TRL's own
    trainers).

    Args:
        template (`dict`): the entry.
        content (`str`, *optional*, defaults to `TRAINING_CONTENT`): a message's content as text.
        opening (`str`, *optional*): what stands in front of a conversation without a system turn.

    Returns:
        `str`: Jinja.
    """
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


def is_ours(chat_template: str | dict | None) -> bool:
    """
    Whether a tokenizer has no chat template, or has taken over that of a processor here.

    Args:
        chat_template (`str` or `dict`, *optional*): the tokenizer's.
    """
    return chat_template is None or (isinstance(chat_template, str) and chat_template.startswith(_MACRO))
