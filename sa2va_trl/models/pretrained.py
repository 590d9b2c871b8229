"""How a model is loaded, native or as it is published, and saved."""

import copy
import logging
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers.utils import is_flash_attn_2_available

from ..errors import CheckpointError
from .checkpoints import (
    HUB_OPTIONS,
    Weights,
    adapter_advice,
    checkpoint_folder,
    read_config,
    remove_weights,
    save_published,
    stored_dtype,
    weight_times,
)
from .configuration import Sa2VAConfig, official_seg_state
from .grounding import whole_weights
from .quantization import finish_loading, of_language_model_only, stored_tensors


if TYPE_CHECKING:
    from .modeling import Sa2VAForConditionalGeneration

logger = logging.getLogger(__name__)


class PretrainedMixin:
    """`from_pretrained` and `save_pretrained` of [`Sa2VAForConditionalGeneration`], in front of transformers' own."""

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path | None,
        *args: Any,
        config: Sa2VAConfig | None = None,
        dtype: str | torch.dtype | None = "auto",
        subfolder: str = "",
        grounding_dtype: str | None = None,
        **kwargs: Any,
    ) -> "Sa2VAForConditionalGeneration":
        """
        Load a native checkpoint or one in the layout that Sa2VA publishes, without remote code and strictly.

        Weights are read from safetensors one tensor at a time and cast while they are read, so that the host never
        holds much more than the model in its target dtype. (ZeRO-3: the first process holds it once, the others
        nothing.)

        Args:
            pretrained_model_name_or_path (`str` or `Path`): a folder or a Hub id.
            config (`Sa2VAConfig`, *optional*): in place of the checkpoint's own.
            dtype (`str` or `torch.dtype`, *optional*, defaults to `"auto"`):
                Of the weights; `"auto"` is what the config says, or else what is stored. A published config may say
                bfloat16 where the files hold float32: say `"float32"` to have every value as it was published.
            subfolder (`str`, *optional*): of the folder or repository.
            grounding_dtype (`str`, *optional*, defaults to the config's own):
                `"float32"` leaves SAM 2 and `text_hidden_fcs` in float32 beside a VLM in half precision. It is saved
                with the model.
            kwargs:
                As in transformers: `device_map`, `attn_implementation` (or `use_flash_attn=True` of the official code,
                which is `"flash_attention_2"` where it is installed and the weights are of half precision, and
                otherwise changes nothing but for a line in the log), `output_loading_info`, `quantization_config`
                (bitsandbytes; the language model's layers only, everything else stays as it is; not for a checkpoint
                that was saved quantised, whose own config says how), and `revision`, `token`, `cache_dir`,
                `force_download` and `local_files_only` of the Hub.

        Returns:
            `Sa2VAForConditionalGeneration` in evaluation mode.

        Raises:
            `CheckpointError`: an adapter or another kind of model, an unknown family, weights that are pickles or
            damaged, or tensors that are missing, unexpected or misshapen (all of them are named).
            `ValueError`: an option that has no meaning here.
        """
        if pretrained_model_name_or_path is None:
            if grounding_dtype is not None:
                raise ValueError("grounding_dtype is of a checkpoint: without one, set it in the config.")
            return super().from_pretrained(None, *args, config=config, dtype=dtype, **kwargs)
        use_flash_attn = kwargs.pop("use_flash_attn", None)
        if use_flash_attn and kwargs.get("attn_implementation") is not None:
            raise ValueError(
                "use_flash_attn is the official code's word for attn_implementation='flash_attention_2': give one of "
                "the two."
            )
        meaningless = {"gguf_file", "variant", "key_mapping", "ignore_mismatched_sizes", "state_dict", "weights_only"}
        if given := sorted(name for name in meaningless & kwargs.keys() if kwargs[name]):
            raise ValueError(
                f"Sa2VA's from_pretrained does not take {', '.join(given)}: its files are checked strictly."
            )
        kwargs = {name: value for name, value in kwargs.items() if name not in meaningless}
        if kwargs.get("quantization_config") is not None:
            kwargs["quantization_config"] = of_language_model_only(kwargs["quantization_config"])
        if adapter := (kwargs.get("adapter_kwargs") or {}).get("_adapter_model_path"):
            # (Auto classes come here with an adapter's base. They would load the adapter without a check of it.)
            raise CheckpointError(adapter_advice(adapter, pretrained_model_name_or_path))
        hub_options = {name: kwargs.pop(name) for name in HUB_OPTIONS if kwargs.get(name) is not None}
        folder, commit = checkpoint_folder(pretrained_model_name_or_path, subfolder=subfolder, **hub_options)
        config = read_config(folder) if config is None else copy.deepcopy(config)
        if grounding_dtype not in (None, "float32"):
            raise ValueError(f"grounding_dtype must be float32 or left out, got {grounding_dtype!r}.")
        config.grounding_dtype = grounding_dtype or config.grounding_dtype
        try:
            with whole_weights(), torch.device("meta"):
                skeleton = cls(copy.deepcopy(config))
        except (KeyError, ValueError) as error:
            raise CheckpointError(f"{folder}/config.json describes no model that can be built: {error!r}") from error
        quantised = {}
        if (stored := getattr(config, "quantization_config", None)) is not None:
            if kwargs.get("quantization_config") is not None:
                raise ValueError(f"{folder} is quantised already: leave out quantization (quantization_config).")
            quantised = stored_tensors(stored, skeleton)
        weights = Weights(folder, config, skeleton, quantised)
        try:
            dtype = kwargs.pop("torch_dtype", None) or dtype
            if dtype in ("auto", None):
                dtype = config.dtype or stored_dtype(folder)
            if isinstance(dtype, str):
                name, dtype = dtype, getattr(torch, dtype.removeprefix("torch."), None)
                if not isinstance(dtype, torch.dtype):
                    raise ValueError(f"dtype must be 'auto' or a torch dtype such as 'bfloat16', got {name!r}.")
            if use_flash_attn:
                kwargs |= _flash_attention(dtype)
            state_dict = weights.state_dict(dtype, keep=tuple(skeleton._keep_in_fp32_modules_strict or ()))
            loaded = super().from_pretrained(None, *args, config=config, state_dict=state_dict, dtype=dtype, **kwargs)
        finally:
            weights.close()
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        finish_loading(model)
        model.config._name_or_path = str(pretrained_model_name_or_path)
        model.config._commit_hash = commit
        return loaded

    def save_pretrained(
        self: "Sa2VAForConditionalGeneration",
        save_directory: str | Path,
        layout: str = "native",
        save_original_format: bool = False,
        **kwargs: Any,
    ) -> None:
        """
        As in transformers, but under the names that `state_dict` has: transformers would write the VLM under its older
        names, which `from_pretrained` understands and Trainer, when it goes back to the best checkpoint, does not.

        Args:
            save_directory (`str` or `Path`): where to.
            layout (`str`, *optional*, defaults to `"native"`):
                `"published"` writes config and tensor names as the official Sa2VA checkpoints have them. Where
                `config.seg_state` is not what the official code takes, only this package draws the same masks from
                them, and a warning says so.
            save_original_format (`bool`, *optional*, defaults to `False`): of transformers, see above.
            kwargs: of transformers; with `"published"` only `max_shard_size`.

        Raises:
            `ValueError`: an unknown layout, or an option that it does not take.
        """
        if self.grounding_encoder.dtype != torch.float32:  # cast since it was loaded
            self.config.grounding_dtype = None
        if layout == "native":
            earlier = weight_times(save_directory)
            super().save_pretrained(save_directory, save_original_format=save_original_format, **kwargs)
            if kwargs.get("is_main_process", True):
                remove_weights(save_directory, earlier)
        elif layout == "published":
            if unknown := sorted(kwargs.keys() - {"max_shard_size"}):
                raise ValueError(f"save_pretrained(layout='published') does not take {', '.join(unknown)}.")
            save_published(self, save_directory, **kwargs)
            official = official_seg_state(self.config.vlm_config.model_type)
            if self.config.seg_state != official:
                logger.warning(
                    f"This model draws masks from seg_state={self.config.seg_state}, the official code from "
                    f"{official} states: it would draw others from {save_directory}. Use these weights with this "
                    "package, which reads seg_state in config.json."
                )
        else:
            raise ValueError(f"layout must be 'native' or 'published', got {layout!r}.")


def _flash_attention(dtype: torch.dtype) -> dict[str, str]:
    """The attention that `use_flash_attn=True` asks for, where it can be had."""
    if not is_flash_attn_2_available():
        _say_once("use_flash_attn has no effect: flash-attn is not installed, or there is no GPU.")
    elif dtype not in (torch.float16, torch.bfloat16):
        _say_once(f"use_flash_attn has no effect: flash-attn computes in half precision, and the weights are {dtype}.")
    else:
        return {"attn_implementation": "flash_attention_2"}
    return {}


@cache
def _say_once(message: str) -> None:
    logger.warning(message)
