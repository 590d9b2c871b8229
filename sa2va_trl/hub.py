"""
Adapters, merging and what goes to the Hub: which base an adapter belongs to, strict loading, model cards.

Nothing that is written here for others to read holds a local path, a file name or an identifier of a sample.
"""

import hashlib
import json
import os
import re
import tempfile
import warnings
from collections import defaultdict
from contextlib import nullcontext
from pathlib import Path

import torch
from huggingface_hub import CommitOperationAdd, ModelCard, ModelCardData, snapshot_download
from huggingface_hub.constants import HF_HUB_CACHE
from huggingface_hub.errors import HFValidationError
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import validate_repo_id
from peft import PeftConfig, PeftModel
from peft.tuners.lora import LoraLayer
from peft.utils import SAFETENSORS_WEIGHTS_NAME as ADAPTER_WEIGHTS
from peft.utils import get_peft_model_state_dict
from safetensors import safe_open
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import PROCESSOR_NAME, logging

from .evaluation.evaluator import METRICS, write_json
from .models.checkpoints import ADAPTER_CONFIG, folders_first


logger = logging.get_logger(__name__)

BASE_RECORD = "base_model.json"
# Values looked at of every tensor; a change of a whole matrix cannot hide between them.
SAMPLES = 1024
# Ways to start a LoRA that leave the base as it is; others (PiSSA, OLoRA) move a part of its weights into the adapter.
PURE = (True, False, "gaussian", "orthogonal", "eva")
# Names that PEFT's wrappers put between a parameter and its place in the base, and parameters that are PEFT's own.
_WRAPPERS = re.compile(r"\.(base_layer|original_module|token_adapter)(?=\.)")
_ADDED = re.compile(r"\.(lora_\w+|modules_to_save|trainable_tokens_\w+)(\.|$)")
# What a run can be resumed from, other than the weights. A pickle of `TrainingArguments` is not among them.
_RESUME = re.compile(r"(optimizer|scheduler|scaler)\.pt|rng_state(_\d+)?\.pth|resume\.json")


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


# Which base an adapter belongs to


def _is_packed(parameter: torch.Tensor) -> bool:
    """Whether a quantised tensor, whose values cannot be compared with those of the weights it stands for."""
    return not parameter.is_floating_point() or type(parameter).__module__.startswith("bitsandbytes")


def _is_sharded(model: nn.Module) -> bool:
    return any(hasattr(parameter, "ds_id") for parameter in model.parameters())


def _part(name: str, is_linear: bool) -> str:
    """Parts are told apart in messages; linear layers are parts of their own, since they are what is quantised."""
    pieces = name.split(".")
    depth = 3 if pieces[:2] == ["vlm", "model"] or pieces[0] == "grounding_encoder" else 2 if pieces[0] == "vlm" else 1
    part = ".".join(pieces[: min(depth, len(pieces) - 1)])
    return f"{part} (linear layers)" if is_linear and pieces[0] == "vlm" else part


def base_fingerprint(model: nn.Module) -> dict[str, dict[str, str] | None]:
    """
    Which weights a model has, whatever they were loaded as: from names, shapes and a sample of every tensor.

    It is the same in float32, bfloat16 and (for weights that are published in bfloat16) float16, on any device,
    sharded or whole, and with adapters around the weights or without. Under ZeRO-3 all processes have to call it
    together.

    Args:
        model (`Sa2VAForConditionalGeneration` or a `PeftModel` around one): not changed.

    Returns:
        `dict[str, dict[str, str] | None]`: for each part of the model the digests `"structure"` (names and shapes) and
        `"bfloat16"` and `"float16"` (values cast to these). Parts that hold quantised tensors are left out.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    linear = {
        id(module.weight) for module in base.modules() if isinstance(module, nn.Linear) and hasattr(module, "weight")
    }
    parts, packed = defaultdict(list), set()
    # Tied tensors come once, under the first of their names.
    for name, parameter in base.named_parameters():
        if _ADDED.search(name):
            continue
        name = _WRAPPERS.sub("", name)
        part = _part(name, id(parameter) in linear)
        if _is_packed(parameter):
            packed.add(part)
        else:
            parts[part].append((name, parameter))
    fingerprint = {}
    for part in sorted(parts.keys() | packed):
        if part in packed:
            fingerprint[part] = None
            continue
        digests = {name: hashlib.sha256() for name in ("structure", "bfloat16", "float16")}
        for name, parameter in sorted(parts[part], key=lambda entry: entry[0]):
            shape = tuple(getattr(parameter, "ds_shape", parameter.shape))
            digests["structure"].update(f"{name}{shape}".encode())
            values = _sample(parameter)
            for dtype in ("bfloat16", "float16"):
                # Copied bit by bit: NumPy knows no bfloat16.
                digests[dtype].update(values.to(getattr(torch, dtype)).view(torch.int16).numpy().tobytes())
        fingerprint[part] = {name: digest.hexdigest()[:16] for name, digest in digests.items()}
    return fingerprint


def _sample(parameter: nn.Parameter) -> torch.Tensor:
    gathered = nullcontext()
    if hasattr(parameter, "ds_id"):
        import deepspeed

        gathered = deepspeed.zero.GatheredParameters([parameter])
    with gathered, torch.no_grad():
        values = parameter.detach().flatten()
        if values.numel() > SAMPLES:
            # Steps of a large prime, so that the sample is not one column of a matrix.
            index = torch.arange(SAMPLES, dtype=torch.int64) * 2_654_435_761 % values.numel()
            values = values[index.to(values.device)]
        return values.cpu()


def base_record(model: nn.Module) -> dict:
    """
    What is written beside an adapter about its base.

    Args:
        model (`Sa2VAForConditionalGeneration` or a `PeftModel` around one): not changed.

    Returns:
        `dict`: `base_model_name_or_path` (a Hub id, `None` for a local folder), `revision` (a commit, if it is known),
        `seg_state` of its config and `fingerprint` (see [`base_fingerprint`]; `None` where PEFT has changed the base
        to start the adapter).
    """
    config = (model.get_base_model() if isinstance(model, PeftModel) else model).config
    name = public_name(config._name_or_path)
    return {
        "base_model_name_or_path": name,
        "revision": (getattr(config, "_commit_hash", None) or _commit(name)) if name else None,
        "seg_state": config.seg_state,
        "fingerprint": base_fingerprint(model),
    }


def _commit(name: str) -> str | None:
    # transformers does not keep the commit that it has loaded. With one snapshot in the cache there is no doubt.
    snapshots = Path(HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type="model") / "snapshots"
    commits = [folder.name for folder in snapshots.iterdir()] if snapshots.is_dir() else []
    return commits[0] if len(commits) == 1 else None


def check_base(model: nn.Module, record: dict, folder: str | os.PathLike, adapter: str | None = None) -> None:
    """
    Refuse an adapter that was trained on other weights, or on another state of the `[SEG]` tokens.

    Args:
        model (`nn.Module`): the base at hand, for its name.
        record (`dict`): of it, from [`base_record`].
        folder (`str` or `os.PathLike`): with the adapter. Without a record in it, only a warning is given.
        adapter (`str`, *optional*): what to call the adapter in the message.

    Raises:
        `ValueError`: the bases differ; the message names both bases and in what.
    """
    file = Path(folder) / BASE_RECORD
    if not file.is_file():
        logger.warning(f"{adapter or folder} has no {BASE_RECORD}: its base model cannot be checked.")
        return
    try:
        expected = json.loads(file.read_text())
        wanted = expected["fingerprint"]
        if wanted is not None:
            wanted = {part: digests and dict(digests) for part, digests in wanted.items()}
        # (Before the record had it, all states were normed.)
        seg_state = expected.get("seg_state", "normed")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} is not a record of a base model: {error!r}.") from error
    found = record["fingerprint"]
    if wanted is None or found is None:
        logger.warning(f"PEFT changes the base of {adapter or folder} at its start: it cannot be checked.")
    else:
        # A part that is quantised on either side cannot be compared.
        both = [part for part in sorted(wanted.keys() & found.keys()) if wanted[part] and found[part]]
        different = [part for part in both if not _same(wanted[part], found[part])]
        different += sorted(wanted.keys() ^ found.keys())
        if different or not both:
            name = expected.get("base_model_name_or_path") or "a local model"
            revision = f" (revision {expected['revision']})" if expected.get("revision") else ""
            config = (model.get_base_model() if isinstance(model, PeftModel) else model).config
            raise ValueError(
                f"{adapter or folder} was trained on {name}{revision}, whose weights differ from those of "
                f"{config._name_or_path or 'the model at hand'} in {', '.join(different) or 'everything'}: load the "
                "base that it was trained on."
            )
    if seg_state != record["seg_state"]:
        raise ValueError(
            f"{adapter or folder} was trained on masks from seg_state={seg_state}, but the model at hand draws them "
            f'from seg_state={record["seg_state"]}: load the base with "seg_state": "{seg_state}" in its config.json.'
        )


def _same(one: dict[str, str], other: dict[str, str]) -> bool:
    return one["structure"] == other["structure"] and any(one[d] == other[d] for d in ("bfloat16", "float16"))


# Adapters


class SegPeftModel(PeftModel):
    """
    A `PeftModel` that saves and pushes with a record of its base and a model card of ours, and without local paths.
    What it writes, `PeftModel.from_pretrained(base, folder_or_hub_id)` reads.
    """

    @classmethod
    def adopt(cls, model: PeftModel) -> "SegPeftModel":
        """
        Make one of a `PeftModel` that somebody else has made, in place.

        Args:
            model (`PeftModel`): with its base's weights untouched. Under ZeRO-3 all processes call this together.
        """
        # The class adds no state that PEFT would have to set up; TRL, which wraps the model, knows only PEFT's own.
        model.__class__ = cls
        model.base_record = base_record(model)
        if any(getattr(config, "init_lora_weights", True) not in PURE for config in model.peft_config.values()):
            model.base_record["fingerprint"] = None
        return model

    def save_pretrained(self, save_directory, safe_serialization=True, selected_adapters=None, **kwargs):
        if not safe_serialization:
            raise ValueError("safe_serialization=False would write a pickle: adapters are saved as safetensors.")
        # (TRL's copy of an adapter to measure preferences against is nobody's business later.)
        selected_adapters = selected_adapters or [name for name in self.peft_config if name != "ref"]
        super().save_pretrained(save_directory, selected_adapters=selected_adapters, **kwargs)
        if "base_record" not in self.__dict__:
            self.base_record = base_record(self)
        if not kwargs.get("is_main_process", True):
            return
        for name in selected_adapters:
            folder = Path(save_directory) / ("" if name == "default" else name)
            config = json.loads((folder / ADAPTER_CONFIG).read_text())
            # PEFT writes the path that the base was loaded from. It loads the adapter onto a given base without it.
            config["base_model_name_or_path"] = self.base_record["base_model_name_or_path"]
            write_json(folder / ADAPTER_CONFIG, config)
            write_json(folder / BASE_RECORD, self.base_record)

    def create_or_update_model_card(self, output_dir: str):
        """In place of PEFT's card, which names the local path of the base."""
        base = public_name(self.get_base_model().config._name_or_path)
        write_card(output_dir, model_card(title="Sa2VA adapter", base_model=base, is_adapter=True))

    def _upload_modified_files(self, working_dir, repo_id, *args, **kwargs):
        # `push_to_hub` keeps the card that the repository has, and puts a generic one where it has none.
        card = ModelCard.load(Path(working_dir) / "README.md")
        if card.data.library_name != "peft":
            base = self.base_record["base_model_name_or_path"]
            tags = card.data.tags
            write_card(working_dir, model_card(repo_id.split("/")[-1], base, True, repo_id=repo_id, tags=tags))
        return super()._upload_modified_files(working_dir, repo_id, *args, **kwargs)


def _adapter_folder(adapter: str) -> Path:
    if Path(adapter).is_dir():
        folder = Path(adapter)
    else:
        files = [ADAPTER_CONFIG, ADAPTER_WEIGHTS, BASE_RECORD, PROCESSOR_NAME]
        with folders_first(adapter):
            folder = Path(snapshot_download(str(adapter), allow_patterns=files))
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        if not (folder / name).is_file():
            raise ValueError(f"{adapter} is not an adapter: it has no {name}.")
    return folder


def adapter_prompt_options(adapter: str) -> dict:
    """
    Args:
        adapter (`str`): a folder or a Hub id.

    Returns:
        `dict`: `prompt_style`, `official_opening` and `clip_size` of the processor that was saved with it, as far as
        that says them; nothing without a processor.
    """
    file = _adapter_folder(adapter) / PROCESSOR_NAME
    if not file.is_file():
        return {}
    # (A processor that does not say its style was saved when there was one.)
    saved = {"prompt_style": "training", **json.loads(file.read_text())}
    return {name: saved[name] for name in ("prompt_style", "official_opening", "clip_size") if name in saved}


def load_adapter(model: PreTrainedModel, adapter: str, merge: bool = False) -> SegPeftModel | PreTrainedModel:
    """
    Put an adapter on the base that it was trained on.

    Args:
        model (`Sa2VAForConditionalGeneration`): the base; changed in place.
        adapter (`str`): a folder or a Hub id.
        merge (`bool`, *optional*, defaults to `False`): fold the adapter into the weights, see [`merge_adapter`].

    Returns:
        `SegPeftModel`, or with `merge` the model itself.

    Raises:
        `ValueError`: the base is another one than the adapter's; the adapter lacks weights, or has some that the
        model has no place for; or the base is sharded.
    """
    if _is_sharded(model):
        raise ValueError(
            "An adapter cannot be loaded into a model that ZeRO-3 has sharded: merge it first with recipes/merge.py "
            "and give the result as the model."
        )
    folder = _adapter_folder(adapter)
    record = base_record(model)
    check_base(model, record, folder, adapter)
    adapted = SegPeftModel(model, PeftConfig.from_pretrained(folder))
    adapted.base_record = record
    expected = {name: tuple(tensor.shape) for name, tensor in get_peft_model_state_dict(adapted).items()}
    with safe_open(folder / ADAPTER_WEIGHTS, framework="pt") as weights:
        found = {name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys()}
    faults = {
        "missing": sorted(expected.keys() - found.keys()),
        "unexpected": sorted(found.keys() - expected.keys()),
        "of another shape": sorted(name for name in expected.keys() & found.keys() if expected[name] != found[name]),
    }
    if any(faults.values()):
        adapted.unload()
        listed = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in faults.items() if names)
        raise ValueError(f"{adapter} does not hold the weights that its {ADAPTER_CONFIG} asks for. {listed}")
    adapted.load_adapter(str(folder), "default", torch_device=str(model.device))
    return merge_adapter(adapted) if merge else adapted


def merge_adapter(model: PeftModel, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """
    Fold an adapter into the weights. Each sum of a weight and its delta is computed in float32 and rounded once.

    Args:
        model (`PeftModel`): with the adapter active; used up.
        dtype (`torch.dtype`, *optional*): of the result; by default every weight keeps its own.

    Returns:
        The base model with the adapter in its weights and no name: it is no longer what it was loaded as. A head that
        the adapter has parted from the embeddings is untied in the config too.

    Raises:
        `ValueError`: the base is quantised or sharded, or the adapter holds numbers that are not finite.
    """
    base = model.get_base_model()
    if any(_is_packed(parameter) for parameter in base.parameters()):
        raise ValueError("An adapter cannot be merged into quantised weights: load the base unquantised, then merge.")
    if _is_sharded(base):
        raise ValueError("An adapter cannot be merged into weights that ZeRO-3 has sharded.")
    was_tied = base.config.tie_word_embeddings
    if was_tied:
        _part_head(base)
    for module in model.modules():
        if isinstance(module, LoraLayer):
            layer = module.get_base_layer()
            own = layer.weight.dtype
            # PEFT rounds the delta to the weight's precision before it adds it.
            module.float()
            module.merge(safe_merge=True)
            layer.to(own)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*already merged.*")
        warnings.filterwarnings("ignore", message=".*no longer tied.*")
        merged = model.merge_and_unload(safe_merge=True)
    if was_tied:
        _settle_head(merged)
    merged.name_or_path = merged.config._name_or_path = ""
    return merged if dtype is None else merged.to(dtype)


def _part_head(model: nn.Module) -> None:
    """Give a tied head a tensor of its own: an adapter may hold other rows for it than for the embeddings."""
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    for module in model.modules():
        if isinstance(module, nn.Linear) and id(module.weight) in embeddings:
            module.weight = nn.Parameter(module.weight.detach().clone(), requires_grad=module.weight.requires_grad)


def _settle_head(model: PreTrainedModel) -> None:
    """After merging into a model with a tied head: tie it again, or say in the config that it is tied no more."""
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = torch.equal(embeddings.weight, head.weight)
    if tied:
        head.weight = embeddings.weight
    for config in (model.config, model.config.vlm_config, model.config.text_config):
        config.tie_word_embeddings = tied


# Model cards

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

`base_model.json` has digests of the weights that the adapter was trained on; `sa2va_trl.hub.load_adapter` loads the
adapter onto these weights and refuses others.
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
        trainable (`str`, *optional*): from [`~trainers.trainable.trainable_table`].
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
    """Write `README.md` beside, then rename."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ".README.md.tmp").write_text(str(card), encoding="utf-8")
    (folder / ".README.md.tmp").replace(folder / "README.md")


# What is pushed


def weight_files(folder: str | os.PathLike, is_adapter: bool) -> list[str]:
    """
    Args:
        folder (`str` or `os.PathLike`): where a trainer has saved.
        is_adapter (`bool`): whether an adapter or a whole model.

    Returns:
        `list[str]`: names of the files that make the model, nothing else that may lie beside them.
    """
    names = ["config.json", "generation_config.json", "model.safetensors", "model.safetensors.index.json"]
    if is_adapter:
        names = [ADAPTER_CONFIG, ADAPTER_WEIGHTS, BASE_RECORD]
    index = Path(folder) / "model.safetensors.index.json"
    if not is_adapter and index.is_file():
        names += sorted(set(json.loads(index.read_text())["weight_map"].values()))
    return [name for name in names if (Path(folder) / name).is_file()]


def commit_operations(
    folder: str | os.PathLike, is_adapter: bool, processor=None, path_in_repo: str = ""
) -> list[CommitOperationAdd]:
    """
    What of a trainer's folder is pushed: the model, its card and its processor.

    Everything else stays, by a list of what may go rather than of what may not: such a folder also holds a pickle of
    the training arguments with local paths, logs, and whatever evaluations and pictures a user has put there.

    Args:
        folder (`str` or `os.PathLike`): with the model and its `README.md`.
        is_adapter (`bool`): whether an adapter or a whole model.
        processor (`ProcessorMixin`, *optional*): pushed as it would be saved now.
        path_in_repo (`str`, *optional*, defaults to `""`): folder in the repository.

    Returns:
        `list[CommitOperationAdd]`.
    """
    folder = Path(folder)
    prefix = f"{path_in_repo}/" if path_in_repo else ""
    names = weight_files(folder, is_adapter) + ["README.md"] * (folder / "README.md").is_file()
    operations = [CommitOperationAdd(f"{prefix}{name}", folder / name) for name in names]
    if processor is not None:
        with tempfile.TemporaryDirectory() as temporary:
            processor.save_pretrained(temporary)
            files = sorted(file for file in Path(temporary).rglob("*") if file.is_file())
            operations += [
                CommitOperationAdd(f"{prefix}{file.relative_to(temporary).as_posix()}", file.read_bytes())
                for file in files
            ]
    return operations


def resume_operations(
    folder: str | os.PathLike, path_in_repo: str, evaluation_names: list[str]
) -> list[CommitOperationAdd]:
    """
    What a checkpoint needs beside its model so that training can be resumed from it elsewhere.

    Args:
        folder (`str` or `os.PathLike`): a checkpoint.
        path_in_repo (`str`): folder in the repository.
        evaluation_names (`list[str]`): names that a user gave to evaluation sets, which stay private.

    Returns:
        `list[CommitOperationAdd]`: optimizer, scheduler and random states, and a `trainer_state.json` without local
        paths, names of trials and values that are logged under `evaluation_names`.
    """
    folder = Path(folder)
    names = sorted(file.name for file in folder.iterdir() if _RESUME.fullmatch(file.name))
    operations = [CommitOperationAdd(f"{path_in_repo}/{name}", folder / name) for name in names]
    state = json.loads((folder / "trainer_state.json").read_text())
    if state.get("best_model_checkpoint"):
        state["best_model_checkpoint"] = Path(state["best_model_checkpoint"]).name
    state["trial_name"] = state["trial_params"] = None
    private = tuple(f"eval_{name}_" for name in evaluation_names)
    state["log_history"] = [
        {key: value for key, value in entry.items() if not key.startswith(private)} for entry in state["log_history"]
    ]
    content = (json.dumps(state, indent=2) + "\n").encode()
    return [*operations, CommitOperationAdd(f"{path_in_repo}/trainer_state.json", content)]
