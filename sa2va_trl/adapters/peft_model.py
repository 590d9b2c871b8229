"""Adapters that record their base, loaded and merged strictly."""

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from huggingface_hub import ModelCard, snapshot_download
from peft import PeftConfig, PeftModel
from peft.tuners.lora import LoraLayer
from peft.utils import SAFETENSORS_WEIGHTS_NAME as ADAPTER_WEIGHTS
from peft.utils import get_peft_model_state_dict
from safetensors import safe_open
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import PROCESSOR_NAME, cached_file

from ..files import write_json
from ..model_card import model_card, public_name, write_card
from ..models.checkpoints import ADAPTER_CONFIG, folders_first
from .base_model import BASE_RECORD, PURE, base_record, check_base, is_packed, is_sharded
from .mask_options import DEFAULTS, MASK_OPTIONS, mask_options, read_mask_options


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

    def save_pretrained(
        self,
        save_directory: str,
        safe_serialization: bool = True,
        selected_adapters: list[str] | None = None,
        **kwargs,
    ) -> None:
        if not safe_serialization:
            raise ValueError("safe_serialization=False would write a pickle: adapters are saved as safetensors.")
        # (TRL's copy of an adapter to measure preferences against is nobody's business later.)
        selected_adapters = selected_adapters or [name for name in self.peft_config if name != "ref"]
        with _nameless_base(self):
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
            # Those that it was loaded with, or that somebody has set since; the base's own may be others.
            options = mask_options(self.get_base_model().config)
            if options != DEFAULTS or "stored_mask_options" in self.__dict__:
                write_json(folder / MASK_OPTIONS, options)

    def create_or_update_model_card(self, output_dir: str) -> None:
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


@contextmanager
def _nameless_base(model: PeftModel) -> Iterator[None]:
    """
    For what collects an adapter's weights: PEFT looks on the Hub for the config of a base that has a name, of a local
    one too, to compare its `vocab_size` with that of the model's config; and Sa2VA's config has none.
    """
    names = {name: config.base_model_name_or_path for name, config in model.peft_config.items()}
    try:
        for config in model.peft_config.values():
            config.base_model_name_or_path = None
        yield
    finally:
        for name, config in model.peft_config.items():
            config.base_model_name_or_path = names[name]


def _adapter_folder(adapter: str) -> Path:
    if Path(adapter).is_dir():
        folder = Path(adapter)
    else:
        files = [ADAPTER_CONFIG, ADAPTER_WEIGHTS, BASE_RECORD, MASK_OPTIONS, PROCESSOR_NAME]
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
    Put an adapter on the base that it was trained on. A threshold and a temperature that were stored for the adapter
    are the model's from then on.

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
    if is_sharded(model):
        raise ValueError(
            "An adapter cannot be loaded into a model that ZeRO-3 has sharded: merge it first with sa2va-trl merge "
            "and give the result as the model."
        )
    adapted, options = _put_on(model, adapter, "default")
    if options:
        adapted.stored_mask_options = options
        for name, value in options.items():
            setattr(model.config, name, value)
    return merge_adapter(adapted) if merge else adapted


def add_adapter(model: SegPeftModel | PreTrainedModel, adapter: str, name: str) -> tuple[SegPeftModel, dict]:
    """
    Put one more adapter on a base, beside those that it has and inactive beside them: `set_adapter` chooses one.

    Args:
        model (`SegPeftModel` from [`load_adapter`], or a base without any): changed in place, but for its config.
        adapter (`str`): a folder or a Hub id.
        name (`str`): a new one, for `set_adapter`.

    Returns:
        `SegPeftModel`, and the threshold and temperature that are stored for the adapter, if any are.

    Raises:
        `ValueError`: as [`load_adapter`].
    """
    return _put_on(model, adapter, name)


def can_join(model: nn.Module, adapter: str) -> bool:
    """
    Whether [`add_adapter`] can put an adapter beside those that a model has. PEFT wants single trained rows of the
    embeddings (`train_embeddings: seg`) to be the same for all adapters of a model.

    Args:
        model (`nn.Module`): a base, or a `PeftModel`.
        adapter (`str`): a folder or a Hub id.
    """
    if not isinstance(model, PeftModel):
        return True
    rows = getattr(PeftConfig.from_pretrained(_adapter_folder(adapter)), "trainable_token_indices", None)
    return all(getattr(config, "trainable_token_indices", None) == rows for config in model.peft_config.values())


def is_adapter(name: str) -> bool:
    """
    Args:
        name (`str`): a folder or a Hub id.

    Returns:
        `bool`: whether an adapter is there, rather than a model.
    """
    if Path(name).is_dir():
        return (Path(name) / ADAPTER_CONFIG).is_file()
    with folders_first(name):
        return cached_file(name, ADAPTER_CONFIG, _raise_exceptions_for_missing_entries=False) is not None


def _put_on(model: SegPeftModel | PreTrainedModel, adapter: str, name: str) -> tuple[SegPeftModel, dict]:
    """The model with the adapter under this name, and the options that are stored for it."""
    folder, is_first = _adapter_folder(adapter), not isinstance(model, PeftModel)
    record = base_record(model) if is_first else model.base_record
    check_base(model, record, folder, adapter)
    if is_first:
        adapted = SegPeftModel(model, PeftConfig.from_pretrained(folder), adapter_name=name)
        adapted.base_record, adapted.base_mask_options = record, mask_options(model.config)
    else:
        adapted = model
        adapted.add_adapter(name, PeftConfig.from_pretrained(folder))
    with _nameless_base(adapted):
        expected = {
            key: tuple(tensor.shape) for key, tensor in get_peft_model_state_dict(adapted, adapter_name=name).items()
        }
    with safe_open(folder / ADAPTER_WEIGHTS, framework="pt") as weights:
        found = {key: tuple(weights.get_slice(key).get_shape()) for key in weights.keys()}
    faults = {
        "missing": sorted(expected.keys() - found.keys()),
        "unexpected": sorted(found.keys() - expected.keys()),
        "of another shape": sorted(key for key in expected.keys() & found.keys() if expected[key] != found[key]),
    }
    if any(faults.values()):
        adapted.unload() if is_first else adapted.delete_adapter(name)
        listed = "; ".join(f"{kind}: {', '.join(keys)}" for kind, keys in faults.items() if keys)
        raise ValueError(f"{adapter} does not hold the weights that its {ADAPTER_CONFIG} asks for. {listed}")
    adapted.load_adapter(str(folder), name, torch_device=str(model.device))
    return adapted, read_mask_options(folder)


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
    if any(is_packed(parameter) for parameter in base.parameters()):
        raise ValueError("An adapter cannot be merged into quantised weights: load the base unquantised, then merge.")
    if is_sharded(base):
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
