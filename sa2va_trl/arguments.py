"""What the recipes share: which model, which data."""

import json
import os
import sys
from argparse import SUPPRESS
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
import yaml
from datasets import DatasetDict
from peft import PeftModel
from transformers import BitsAndBytesConfig, TrainingArguments
from trl import TrlParser

from .adapters.peft_model import adapter_prompt_options, load_adapter
from .data.readers import load_dataset_dict
from .evaluation.routing import NOTHING, Router, check_route, make_router
from .models import Sa2VAForConditionalGeneration, Sa2VAProcessor, tiny_sa2va
from .models.checkpoints import ADAPTER_CONFIG, checkpoint_folder, read_config
from .models.processing import PROMPT_STYLES
from .processes import leave_process_group
from .trainers.resuming import resolve_checkpoint


# Names of models that are made instead of loaded, and their families.
TINY = {"tiny": "internvl", "tiny-qwen2_5_vl": "qwen2_5_vl", "tiny-qwen3_vl": "qwen3_vl"}
# Options that name what another recipe may have made.
INPUTS = ("model_name_or_path", "preferences", "dataset_name")
# Options that belong to the data that a YAML names, and to no others, and what they are there.
OF_THE_DATA = {"synthetic": (dict, str), "preferences": str}


class RecipeParser(TrlParser):
    """
    `TrlParser` for recipes: what the command line says of the data also sets aside what the YAML says of generated
    ones, and where the YAML asks for what another YAML beside it makes, the command for that is all that is printed.
    """

    def parse_args_and_config(self, args=None, **kwargs):
        line = list(sys.argv[1:] if args is None else args)
        self._given = self._on_the_line(line)
        return super().parse_args_and_config(line, **kwargs)

    def _on_the_line(self, line: list[str]) -> dict:
        """The options of a command line, without any default."""
        other = TrlParser(self.dataclass_types, add_help=False)  # whose help would be without defaults
        other.add_argument("--config")
        for action in other._actions:
            action.default, action.required = SUPPRESS, False
        return vars(other.parse_known_args(line)[0])

    def set_defaults_with_config(self, **config):
        name = self._given.get("dataset_name", "synthetic")
        if name != "synthetic" and config.get("dataset_name", "synthetic") == "synthetic":
            own = [entry for entry, kind in OF_THE_DATA.items() if isinstance(config.get(entry), kind)]
            aside = [entry for entry in own if entry not in self._given]
            config = {entry: value for entry, value in config.items() if entry not in aside}
            if aside:
                _say(f"dataset_name={name} is given: {' and '.join(aside)} of the YAML, of other data, is set aside.")
        self._point_to_sibling(Path(self._given["config"]), {**config, **self._given})
        return super().set_defaults_with_config(**config)

    @staticmethod
    def _point_to_sibling(config: Path, options: dict) -> None:
        paths = {name: options[name] for name in INPUTS if isinstance(options.get(name), str)}
        missing = {name: path for name, path in paths.items() if not Path(path).exists()}
        recipes = Path(sys.argv[0]).parent
        files = [*sorted(config.parent.glob("*.yaml")), *sorted(recipes.glob("configs/*/*.yaml"))]
        makers = {_output_dir(file): file for file in reversed(files) if (recipes / f"{file.stem}.py").is_file()}
        for name, path in missing.items():
            if path in makers:
                recipe = recipes / f"{makers[path].stem}.py"
                _say(
                    f"{name}={path} is not there; make it with: python {recipe} --config {makers[path]}",
                    file=sys.stderr,
                )
                raise SystemExit(1)


def _output_dir(file: Path) -> str | None:
    try:
        return str(yaml.safe_load(file.read_text()).get("output_dir"))
    except (OSError, AttributeError, yaml.YAMLError):
        return None  # whatever it is, it makes no folder


def _say(message: str, file=None) -> None:
    if os.environ.get("RANK", "0") == "0":
        print(message, file=file, flush=True)


@dataclass
class ModelArguments:
    """
    Which model a recipe loads.

    Args:
        model_name_or_path (`str`, *optional*, defaults to `"tiny"`):
            `"tiny"`, `"tiny-qwen2_5_vl"`, `"tiny-qwen3_vl"`, a folder or a Hub id.
        model_revision (`str`, *optional*): branch, tag or commit of a Hub id; pin it, published models do change.
        adapter (`str`, *optional*): folder or Hub id of an adapter for it.
        dtype (`str`, *optional*, defaults to `"float32"`): of the weights.
        attn_implementation (`str`, *optional*, defaults to `"sdpa"`): of the VLM.
        grounding_image_size (`int`, *optional*):
            Side of SAM 2's square in pixels, in place of the model's own (tiny: 256). No weight depends on it; the
            mask grid is a quarter of it.
        quantization (`str`, *optional*):
            `"4bit"` (NF4 with double quantisation) or `"8bit"`: of the language model's layers, with bitsandbytes;
            for QLoRA and for inference on small cards.
        prompt_style (`str`, *optional*):
            `"training"` or `"official"`: how Qwen is asked, see [`Sa2VAProcessor`]; in place of the adapter's or else
            the model's own. It is saved with what is trained.
    """

    model_name_or_path: str = field(
        default="tiny", metadata={"help": "tiny, tiny-qwen2_5_vl, tiny-qwen3_vl, a folder or an id."}
    )
    model_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of a Hub id."})
    adapter: str | None = field(default=None, metadata={"help": "Folder or Hub id of an adapter."})
    dtype: str = field(default="float32", metadata={"help": "Of the weights: float32, bfloat16 or float16."})
    attn_implementation: str = field(default="sdpa", metadata={"help": "sdpa, flash_attention_2 or eager."})
    grounding_image_size: int | None = field(
        default=None, metadata={"help": "Side of SAM 2's square in pixels; the model's own by default."}
    )
    quantization: str | None = field(
        default=None, metadata={"help": "4bit or 8bit: of the language model, with bitsandbytes."}
    )
    prompt_style: str | None = field(
        default=None,
        metadata={"help": "training or official (Qwen): prompts and pixels; the adapter's or model's own by default."},
    )

    def __post_init__(self):
        if self.quantization not in (None, "4bit", "8bit"):
            raise ValueError(f"quantization must be 4bit or 8bit, got {self.quantization!r}.")
        if self.prompt_style not in (None, *PROMPT_STYLES):
            raise ValueError(f"prompt_style must be one of {', '.join(PROMPT_STYLES)}, got {self.prompt_style!r}.")
        if self.model_revision is not None and (
            self.model_name_or_path in TINY or Path(self.model_name_or_path).is_dir()
        ):
            raise ValueError("model_revision has no effect on a tiny model or a local folder.")
        if self.quantization is not None and self.model_name_or_path in TINY:
            raise ValueError("quantization has no effect on a tiny model, which is made and not loaded.")
        if self.dtype not in ("float32", "bfloat16", "float16"):
            raise ValueError(f"dtype must be float32, bfloat16 or float16, got {self.dtype!r}.")
        if self.grounding_image_size is not None and (
            self.grounding_image_size < 64 or self.grounding_image_size % 32
        ):
            raise ValueError(
                f"grounding_image_size must be a multiple of 32 of at least 64, got {self.grounding_image_size}."
            )


@dataclass
class RouterArguments:
    """
    A second model, to which a recipe sends difficult images, see [`~evaluation.routing.Router`].

    Args:
        router_model (`str`, *optional*): a folder or a Hub id; the first model's base by default.
        router_adapter (`str`, *optional*):
            Folder or Hub id of an adapter. Without `router_model` it was trained on the first model's base, or on that
            base merged with the first model's adapter: whichever it fits.
        route_by (`str`, *optional*): `"predicted_iou"` (the default) or `"spread"`.
        route_threshold (`float`, *optional*):
            Images with a predicted IoU below it, or a spread of the candidate masks above it, go to the second model.
    """

    router_model: str | None = field(
        default=None, metadata={"help": "Second model, for difficult images; the first one's base by default."}
    )
    router_adapter: str | None = field(default=None, metadata={"help": "Adapter of the second model."})
    route_by: str | None = field(default=None, metadata={"help": "predicted_iou (default) or spread."})
    route_threshold: float | None = field(
        default=None, metadata={"help": "Predicted IoU below which, or spread above which the second model draws."}
    )

    @property
    def has_router(self) -> bool:
        return self.router_model is not None or self.router_adapter is not None

    def __post_init__(self):
        given = [name for name in ("route_by", "route_threshold") if getattr(self, name) is not None]
        if given and not self.has_router:
            raise ValueError(f"{', '.join(given)} has no effect without router_model or router_adapter.")
        if self.has_router:
            self.route_by = self.route_by or "predicted_iou"
            check_route(self.route_by, self.route_threshold or 0.0)


@dataclass
class DataArguments:
    """
    Which data a recipe loads.

    Args:
        dataset_name (`str`, *optional*, defaults to `"synthetic"`):
            `"synthetic"`, a folder in any format that a reader knows, or a Hub id.
        phrase (`str`, *optional*): what the masks show, where the data do not say it.
        synthetic (`dict`, *optional*): arguments of [`~data.synthetic.synthetic_splits`].
    """

    dataset_name: str = field(default="synthetic", metadata={"help": "synthetic, a folder or a Hub id."})
    phrase: str | None = field(default=None, metadata={"help": "What the masks show, where the data do not say."})
    synthetic: dict | str | None = field(default=None, metadata={"help": "Arguments of synthetic_splits."})

    def __post_init__(self):
        if isinstance(self.synthetic, str):
            self.synthetic = json.loads(self.synthetic)
        if self.synthetic and self.dataset_name != "synthetic":
            raise ValueError("synthetic has no meaning without dataset_name=synthetic.")


@dataclass
class SplitArguments:
    """
    Which splits training uses.

    Args:
        dataset_train_split (`str`, *optional*, defaults to `"train"`): to learn from.
        dataset_eval_split (`str`, *optional*, defaults to `"validation"`): to choose by, if `eval_strategy` is not
        `"no"`.
    """

    dataset_train_split: str = field(default="train", metadata={"help": "Split to learn from."})
    dataset_eval_split: str = field(default="validation", metadata={"help": "Split to choose by."})


def load_data(args: DataArguments) -> DatasetDict:
    """
    Args:
        args (`DataArguments`): which data.

    Returns:
        `datasets.DatasetDict`.
    """
    return load_dataset_dict(args.dataset_name, phrase=args.phrase, **(args.synthetic or {}))


def get_split(data: DatasetDict, split: str, option: str):
    """
    Raises:
        `ValueError`: there is no such split; the message names the option and the splits there are.
    """
    if split not in data:
        raise ValueError(f"{option}={split!r}: the dataset has no such split, only {', '.join(data)}.")
    return data[split]


def get_training_splits(data: DatasetDict, split_args: SplitArguments, training_args: TrainingArguments):
    """
    Returns:
        The rows to learn from, and those to choose by, or `None` where `eval_strategy` is `"no"`.

    Raises:
        `ValueError`: there is no such split.
    """
    train_dataset = get_split(data, split_args.dataset_train_split, "dataset_train_split")
    if training_args.eval_strategy == "no":
        return train_dataset, None
    return train_dataset, get_split(data, split_args.dataset_eval_split, "dataset_eval_split")


def load_model(
    args: ModelArguments, merge: bool = False
) -> tuple[Sa2VAForConditionalGeneration | PeftModel, Sa2VAProcessor]:
    """
    Args:
        args (`ModelArguments`): which model.
        merge (`bool`, *optional*, defaults to `False`): fold an adapter into the weights, to train on top of it.

    Returns:
        The model (a `PeftModel` with an adapter that was not merged) and its processor.

    Raises:
        `ValueError`: the folder holds an adapter or another kind of model, weights that cannot be used, or an adapter
            that was trained on another base.
    """
    if args.model_name_or_path in TINY:
        family = TINY[args.model_name_or_path]
        model, processor = tiny_sa2va(image_size=args.grounding_image_size or 256, family=family)
        model = model.to(getattr(torch, args.dtype))
        model.set_attn_implementation(args.attn_implementation)
    else:
        if (Path(args.model_name_or_path) / ADAPTER_CONFIG).is_file():
            raise ValueError(
                f"model_name_or_path={args.model_name_or_path!r} is an adapter: give its base model there, and this "
                "folder as --adapter."
            )
        config = read_config(checkpoint_folder(args.model_name_or_path, revision=args.model_revision)[0])
        processor = Sa2VAProcessor.from_pretrained(args.model_name_or_path, revision=args.model_revision)
        if args.grounding_image_size is not None:
            config.grounding_config.image_size = processor.grounding_image_size = args.grounding_image_size
        model = Sa2VAForConditionalGeneration.from_pretrained(
            args.model_name_or_path,
            config=config,
            dtype=args.dtype,
            attn_implementation=args.attn_implementation,
            quantization_config=_quantization_config(args),
            revision=args.model_revision,
        )
    if args.prompt_style is not None:
        processor.prompt_style = args.prompt_style
    if args.adapter is not None:
        model = _with_adapter(args, model, processor, merge)
    return model, processor


def _with_adapter(args: ModelArguments, model, processor, merge: bool = False):
    """The model with `args.adapter`, asked as that was trained where the options do not say otherwise."""
    model = load_adapter(model, args.adapter, merge=merge)
    for name, value in adapter_prompt_options(args.adapter).items():
        if getattr(args, name, None) is None:
            setattr(processor, name, value)
    return model


def load_router(args: RouterArguments, model_args: ModelArguments, model, processor) -> Router:
    """
    Args:
        args (`RouterArguments`): which second model.
        model_args (`ModelArguments`): of the first one; its type, sizes and quantisation hold for both.
        model (`Sa2VAForConditionalGeneration` or `PeftModel`): the first one, on its device.
        processor (`Sa2VAProcessor`): of the first one.

    Returns:
        `Router`, with a threshold that sends nothing where `route_threshold` is not given.

    Raises:
        `ValueError`: as [`load_model`], or both models are the same.
    """
    name = args.router_model or model_args.model_name_or_path
    if (name, args.router_adapter) == (model_args.model_name_or_path, model_args.adapter):
        raise ValueError("router_model and router_adapter name the first model, so a router could not take effect.")
    own = replace(model_args, adapter=args.router_adapter)
    if args.router_model is not None:
        revision = model_args.model_revision if name == model_args.model_name_or_path else None
        second, other = load_model(replace(own, model_name_or_path=name, model_revision=revision))
    else:
        try:
            second, other = load_model(own)
        except ValueError:
            if model_args.adapter is None:
                raise
            second, other = load_model(model_args, merge=True)
            second = _with_adapter(own, second, other)
    threshold = NOTHING[args.route_by] if args.route_threshold is None else args.route_threshold
    return make_router(model, processor, second, other, by=args.route_by, threshold=threshold)


def _quantization_config(args: ModelArguments) -> BitsAndBytesConfig | None:
    if args.quantization is None:
        return None
    if args.quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, args.dtype),
    )


def checkpoint_to_resume(args: TrainingArguments) -> str | None:
    """
    The checkpoint that `--resume_from_checkpoint` means: [`~trainers.resuming.resolve_checkpoint`] by an earlier name.

    Args:
        args (`TrainingArguments`): with `resume_from_checkpoint` a folder, or `"latest"` for the newest in
        `output_dir`.

    Returns:
        A folder, or `None` where none was asked for.

    Raises:
        `ValueError`: the folder is no complete checkpoint, or `"latest"` finds none.
    """
    return resolve_checkpoint(args.resume_from_checkpoint, args.output_dir)


def train_and_save(trainer, checkpoint: str | None, dataset_name: str) -> None:
    """
    What every training recipe does with its trainer: adapter or model, processor, card and `trainer_state.json` are in
    its `output_dir` afterwards, and on the Hub if `push_to_hub` is set. Leaves the process group.

    Args:
        trainer (`Trainer`): ready to train.
        checkpoint (`str`, *optional*): from [`~trainers.resuming.resolve_checkpoint`].
        dataset_name (`str`): what it trains on, for the card.

    Raises:
        `ValueError`: as the trainer's `train`.
    """
    args = trainer.args
    reason = None if checkpoint is None else trainer.finished(checkpoint)
    there = reason is not None and trainer.saved(checkpoint)
    if there and not args.push_to_hub and (trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled):
        # They load a model only to train it.
        _say(f"{checkpoint}: the run is finished ({reason}); nothing is trained, and {args.output_dir} has its model.")
        leave_process_group()
        return
    trainer.train(resume_from_checkpoint=checkpoint)
    if not there:
        trainer.save_model(args.output_dir)
        trainer.save_state()
        trainer.create_model_card(dataset_name=dataset_name)
    if args.push_to_hub:
        trainer.push_to_hub(dataset_name=dataset_name)
    kind = "adapter" if isinstance(trainer.model, PeftModel) else "model"
    model = f"--model_name_or_path BASE --adapter {args.output_dir}"
    if kind == "model":
        model = f"--model_name_or_path {args.output_dir}"
    _say(f"{kind} in {args.output_dir}; score it: python recipes/evaluate.py {model} --dataset_name DATA")
    leave_process_group()
