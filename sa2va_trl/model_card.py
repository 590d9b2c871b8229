"""Model cards."""

import json
import os
import re
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from .files import whole_file
from .metrics import METRICS


def public_name(name: str | None) -> str | None:
    """
    Args:
        name (`str`, *optional*): what a model or a dataset was loaded by.

    Returns:
        The name if it is a Hub id (`owner/name`) and no local file or folder, else `None`: a local path says more
        about its owner than about the model.
    """
    if not name or not re.fullmatch(r"[A-Za-z0-9_.\-]+/[A-Za-z0-9_.\-]+", name):
        return None
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return None if Path(name).exists() else name


CARD = """---
{{ card_data }}
---

# {{ title }}

{% if is_adapter -%}
An adapter for {{ "[%s](https://huggingface.co/%s)" | format(base_model, base_model) if base_model else
"a Sa2VA model that is not published" }}:
{%- else -%}
Sa2VA{{ ", trained from [%s](https://huggingface.co/%s)" | format(base_model, base_model) if base_model }}:
{%- endif %} a vision-language model whose `[SEG]` token prompts SAM 2. It answers in text and draws a mask for each
object that the answer names.

{% if stage or datasets -%}
## Training

| | |
|---|---|
{% if stage -%}
| stage | {{ stage }} |
{% endif -%}
| base model | {{ base_model or "not published" }} |
| data | {{ datasets | join(", ") or "not published" }} |

{% endif -%}
{% if trainable -%}
## What was trained

```
{{ trainable }}
```

{% endif -%}
{% if metrics -%}
## Metrics

Means over images at their own size. The intervals come from resampling patients where they are known.

| metric | mean | 95 % interval | images |
|---|---|---|---|
{% for row in metrics -%}
| {{ row.name }} | {{ "%.4f" | format(row.mean) }} | {{ row.interval }} | {{ row.n }} |
{% endfor %}
{% endif -%}
{% if log -%}
## Evaluation during training

| step | Dice | IoU |
|---|---|---|
{% for entry in log -%}
| {{ entry.step }} | {{ "%.4f" | format(entry.eval_dice) }} | {{ "%.4f" | format(entry.eval_iou) }} |
{% endfor %}
{% endif -%}
## How to load it

```python
{% if is_adapter -%}
from peft import PeftModel
{% endif -%}
from sa2va_trl import Sa2VAForConditionalGeneration, Sa2VAProcessor

{% if is_adapter -%}
base = Sa2VAForConditionalGeneration.from_pretrained("{{ base_model or "BASE_MODEL" }}")
model = PeftModel.from_pretrained(base, "{{ repo_id or "ADAPTER" }}").eval()
{% else -%}
model = Sa2VAForConditionalGeneration.from_pretrained("{{ repo_id or "MODEL" }}").eval()
{% endif -%}
processor = Sa2VAProcessor.from_pretrained("{{ repo_id or ("ADAPTER" if is_adapter else "MODEL") }}")
result = model.segment(image=image, text="Please segment the blood vessel.", processor=processor)
result.masks  # (objects, height, width)
```
{%- if is_adapter %}

`base_model.json` has digests of the weights that the adapter was trained on; `sa2va_trl.adapters.load_adapter` loads
the adapter onto these weights and refuses others.
{%- endif %}
"""


def model_card(
    title: str,
    base_model: str | None = None,
    is_adapter: bool = False,
    repo_id: str | None = None,
    dataset_name: str | list[str] | None = None,
    trainable: str | None = None,
    stage: str | None = None,
    metrics: dict | str | os.PathLike | None = None,
    log: list[dict] | None = None,
    tags: list[str] | None = None,
) -> ModelCard:
    """
    A model card that says nothing about where files lay or whose they were.

    Args:
        title (`str`): heading; taken as it is.
        base_model (`str`, *optional*): left out unless it is a Hub id.
        is_adapter (`bool`, *optional*, defaults to `False`): whether base weights are needed beside these.
        repo_id (`str`, *optional*): where the card will be, for its example.
        dataset_name (`str` or `list[str]`, *optional*): training data; left out unless Hub ids.
        trainable (`str`, *optional*): from [`~adapters.presets.trainable_table`].
        stage (`str`, *optional*): what kind of training it was.
        metrics (`dict`, `str` or `os.PathLike`, *optional*):
            An evaluation's `metrics.json` or its content. Only means, intervals and counts of known metrics are read.
        log (`list[dict]`, *optional*): a trainer's log; its evaluations' Dice and IoU are shown.
        tags (`list[str]`, *optional*): further tags.

    Returns:
        `ModelCard`.

    Raises:
        `ValueError`: `metrics` is not what an evaluation writes.
    """
    names = [dataset_name] if isinstance(dataset_name, str) else list(dataset_name or [])
    datasets = [name for name in map(public_name, names) if name]
    data = ModelCardData(
        base_model=public_name(base_model),
        datasets=datasets or None,
        library_name="peft" if is_adapter else "sa2va_trl",
        pipeline_tag="image-segmentation",
        tags=sorted({*(tags or []), "sa2va_trl", "segmentation"}),
    )
    return ModelCard.from_template(
        data,
        template_str=CARD,
        title=" ".join(title.split()),
        is_adapter=is_adapter,
        repo_id=repo_id,
        # ModelCardData's own fields are template variables too.
        base_model=public_name(base_model),
        datasets=datasets,
        trainable=trainable,
        stage=stage,
        metrics=_metric_rows(metrics),
        log=[entry for entry in log or [] if {"step", "eval_dice", "eval_iou"} <= entry.keys()],
    )


def _metric_rows(metrics: dict | str | os.PathLike | None) -> list[dict]:
    if metrics is None:
        return []
    try:
        content = metrics if isinstance(metrics, dict) else json.loads(Path(metrics).read_text())
        rows = []
        for name in METRICS:
            if name in content:
                low, high = content[name]["ci95"]
                interval = "-" if low is None or high is None else f"{float(low):.4f} - {float(high):.4f}"
                rows.append(
                    {
                        "name": name,
                        "mean": float(content[name]["mean"]),
                        "interval": interval,
                        "n": int(content[name]["n"]),
                    }
                )
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"metrics is not the metrics.json of an evaluation: {error!r}.") from error
    return rows


def write_card(folder: str | os.PathLike, card: ModelCard) -> None:
    """
    Write a card as the `README.md` of a folder.

    Args:
        folder (`str` or `os.PathLike`): made if it is not there.
        card (`ModelCard`): from [`model_card`].
    """
    with whole_file(Path(folder) / "README.md") as temporary:
        temporary.write_text(str(card), encoding="utf-8")
