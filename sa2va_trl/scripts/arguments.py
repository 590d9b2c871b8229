"""Options that the tasks share, and how they are read."""

import json
import sys
from argparse import SUPPRESS
from collections.abc import Iterable
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

import yaml
from trl import TrlParser

from ..evaluation.routing import check_route
from ..evaluation.views import View, parse_views
from ..models.processing import PROMPT_STYLES
from . import TASKS
from .config_files import CONFIGS, config_file, shortest_name
from .help_pages import help_page, usage
from .output import check_output_dir, is_there
from .quiet import VERBOSE
from .screen import log_into, say, show_log


# Names of models that come with the package or are made, and their families; the first has weights.
PRETRAINED = "tiny"
TINY = {
    PRETRAINED: "internvl",
    "tiny-random": "internvl",
    "tiny-qwen2_5_vl": "qwen2_5_vl",
    "tiny-qwen3_vl": "qwen3_vl",
}
# Options that name what another task may have made.
INPUTS = ("model_name_or_path", "adapter", "preferences", "dataset_name")
# Options that belong to the data that a YAML names, and to no others, and what they are there.
OF_THE_DATA = {"synthetic": (dict, str), "preferences": str}


class RecipeParser(TrlParser):
    """
    `TrlParser` for tasks: a YAML may go by its short name, what the command line says of the data also sets aside what
    the YAML says of generated ones, and where the YAML asks for what another YAML makes, the command for that is all
    that is printed. What the library logs is on the screen from then on.

    Args:
        dataclass_types (iterable of dataclasses): what the options are made of.
        **kwargs: of `argparse.ArgumentParser`; `prog` is the command, `description` the task's own words.
    """

    def __init__(self, dataclass_types: Iterable[type], **kwargs: Any):
        super().__init__(dataclass_types, allow_abbrev=False, **kwargs)  # half an option is a mistake

    def format_usage(self) -> str:
        """The line of the usage, of the command and not of the file that argparse has been called from."""
        return f"usage: {usage(self)}\n"

    def format_help(self) -> str:
        """The page of `--help`, with the task's own options first."""
        return help_page(self, self.dataclass_types)

    def error(self, message: str) -> NoReturn:
        """A mistake in the options, in a line."""
        say(f"{self.prog}: error: {message}", file=sys.stderr)
        raise SystemExit(2)

    def parse_args_and_config(self, args: Iterable[str] | None = None, **kwargs: Any) -> tuple:
        """
        As in `TrlParser`. `output_dir` is checked, and takes the log of the task from then on.

        Raises:
            `ValueError`: options that contradict each other or are out of range, or an `output_dir` of no use.
            `FileNotFoundError`: there is no such `config`.
            `SystemExit`: options that cannot be read, which has been said.
        """
        show_log()
        line = [part for part in (sys.argv[1:] if args is None else args) if part != VERBOSE]
        line = [part for entry in line for part in (entry.split("=", 1) if entry[:9] == "--config=" else [entry])]
        if "--config" in line[:-1]:
            place = line.index("--config") + 1
            line[place] = str(config_file(line[place]))
        self._is_strict = kwargs.get("fail_with_unknown_args", True) and not kwargs.get("return_remaining_strings")
        self._given = self._on_the_line(line)
        parsed = super().parse_args_and_config(line, **kwargs)
        folders = [entry.output_dir for entry in parsed if getattr(entry, "output_dir", None) is not None]
        for folder in folders[:1]:
            check_output_dir(folder)
            log_into(folder)
        return parsed

    def _on_the_line(self, line: list[str]) -> dict:
        """
        The options of a command line, without any default.

        Raises:
            `SystemExit`: there is no such option, which has been said with the nearest one.
        """
        other = TrlParser(self.dataclass_types, add_help=False)  # whose help would be without defaults
        other.add_argument("--config")
        other.error = self.error
        for action in other._actions:
            action.default, action.required = SUPPRESS, False
        found, unknown = other.parse_known_args(line)
        own = [name for action in self._actions for name in action.option_strings]  # --help, and those of one task
        unknown = [part.partition("=")[0] for part in unknown if part.startswith("--")]
        unknown = [name for name in unknown if name not in own]
        if unknown and self._is_strict:
            self.error(self._there_is_no(unknown))
        return vars(found)

    def _there_is_no(self, options: list[str]) -> str:
        """What to say of names that no option has: each with the nearest that there is."""
        known = [action.dest for action in self._actions]
        lines = []
        for option in options:
            nearest = get_close_matches(option.strip("-").replace("-", "_"), known, n=1)
            dashes = "--" if option.startswith("--") else ""
            lines.append(f"there is no option {option}" + (f", did you mean {dashes}{nearest[0]}?" if nearest else ""))
        return "; ".join(lines)

    def set_defaults_with_config(self, **config: Any) -> list[str]:
        name = self._given.get("dataset_name", "synthetic")
        if name != "synthetic" and config.get("dataset_name", "synthetic") == "synthetic":
            own = [entry for entry, kind in OF_THE_DATA.items() if isinstance(config.get(entry), kind)]
            aside = [entry for entry in own if entry not in self._given]
            config = {entry: value for entry, value in config.items() if entry not in aside}
            if aside:
                say(f"dataset_name={name} is given: {' and '.join(aside)} of the YAML, of other data, is set aside.")
        self._point_to_sibling(Path(self._given["config"]), {**config, **self._given}, name)
        known = {action.dest for action in self._actions}
        unknown = [name for name in config if name not in known]
        if unknown and self._is_strict:
            raise ValueError(f"{self._given['config']}: {self._there_is_no(unknown)}")
        return super().set_defaults_with_config(**config)

    @staticmethod
    def _point_to_sibling(config: Path, options: dict, dataset_name: str) -> None:
        files = [*sorted(config.parent.glob("*.yaml")), *sorted(CONFIGS.glob("*/*.yaml"))]
        makers = {str(_content(file).get("output_dir")): file for file in reversed(files) if _task_of(file)}
        for name, path in _missing(options).items():
            if path in makers:
                own = name != "dataset_name" and dataset_name != "synthetic"
                commands = _commands_for(path, makers, f" --dataset_name {dataset_name}" if own else "")
                say(f"{name}={path} is not there; make it with: {', then: '.join(commands)}", file=sys.stderr)
                raise SystemExit(1)


def _missing(options: dict) -> dict[str, str]:
    """The inputs among options that are not there."""
    paths = {name: options[name] for name in INPUTS if isinstance(options.get(name), str)}
    return {name: path for name, path in paths.items() if not is_there(path)}


def _commands_for(path: str, makers: dict[str, Path], data: str) -> list[str]:
    """What makes a folder: the task of a YAML, and before it those that make what it needs."""
    maker, others = makers[path], {name: file for name, file in makers.items() if name != path}
    commands = []
    for needed in _missing(_content(maker)).values():
        if needed in others:
            commands += _commands_for(needed, others, data)
    own = "" if maker.stem == "merge" else data  # which needs none
    return [*dict.fromkeys([*commands, f"sa2va-trl {_task_of(maker)} --config {shortest_name(maker)}{own}"])]


def _task_of(file: Path) -> str | None:
    """The task that a YAML is for: the one it is called after; the package's others are sft's."""
    if file.stem in TASKS:
        return file.stem
    return "sft" if CONFIGS in file.parents else None


def _content(file: Path) -> dict:
    try:
        content = yaml.safe_load(file.read_text())
    except (OSError, ValueError, yaml.YAMLError):
        content = None
    return content if isinstance(content, dict) else {}  # whatever it is, it makes no folder


@dataclass
class ModelArguments:
    """
    Which model a task loads.

    Args:
        model_name_or_path (`str`, *optional*, defaults to `"tiny"`):
            `"tiny"` (with the weights of the package), `"tiny-random"`, `"tiny-qwen2_5_vl"`, `"tiny-qwen3_vl"` (with
            random ones), a folder or a Hub id.
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
        default=PRETRAINED,
        metadata={"help": "tiny, tiny-random, tiny-qwen2_5_vl, tiny-qwen3_vl, a folder or a Hub id."},
    )
    model_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of a Hub id."})
    adapter: str | None = field(default=None, metadata={"help": "Folder or Hub id of an adapter."})
    dtype: str = field(
        default="float32", metadata={"help": "Type of the model's weights: float32, bfloat16 or float16."}
    )
    attn_implementation: str = field(
        default="sdpa", metadata={"help": "Attention of the VLM: sdpa, flash_attention_2 or eager."}
    )
    grounding_image_size: int | None = field(
        default=None, metadata={"help": "Side of SAM 2's square in pixels; the model's own by default."}
    )
    quantization: str | None = field(
        default=None, metadata={"help": "Load the language model in 4bit or 8bit, with bitsandbytes."}
    )
    prompt_style: str | None = field(
        default=None,
        metadata={
            "help": "How Qwen is asked, training or official; the adapter's or else the model's own way by default."
        },
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
            raise ValueError("quantization has no effect on a tiny model, which is small enough as it is.")
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
    A second model, to which a task sends difficult images, see [`~evaluation.routing.Router`].

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
        """Whether a second model was given."""
        return self.router_model is not None or self.router_adapter is not None

    def __post_init__(self):
        given = [name for name in ("route_by", "route_threshold") if getattr(self, name) is not None]
        if given and not self.has_router:
            raise ValueError(f"{', '.join(given)} has no effect without router_model or router_adapter.")
        if self.has_router:
            self.route_by = self.route_by or "predicted_iou"
            check_route(self.route_by, self.route_threshold or 0.0)


@dataclass
class AveragingArguments:
    """
    What probabilities are averaged over, see [`~evaluation.averaging.predict_averaged`].

    Args:
        tta (`list[str]`, *optional*): views of every image besides itself, see [`~evaluation.views.parse_views`].
        ensemble (`list[str]`, *optional*):
            Folders or Hub ids of more models, or of adapters for the first one's base, which share it.
    """

    tta: list[str] | None = field(
        default=None,
        metadata={
            "help": "Average over changed images too: hflip, vflip, scale0.75, scale1.25, gamma0.8, ... No hflip "
            "where a phrase says left or right."
        },
    )
    ensemble: list[str] | None = field(
        default=None,
        metadata={"help": "Average with these models too: adapters of the same base, or whole models."},
    )

    @property
    def views(self) -> list[View]:
        """The views of `tta`."""
        return parse_views(self.tta or [])

    @property
    def is_on(self) -> bool:
        """Whether anything is averaged."""
        return bool(self.views or self.ensemble)

    @property
    def in_words(self) -> str:
        """The options that are given."""
        return " and ".join(name for name in ("tta", "ensemble") if getattr(self, name))

    def check_router(self, router_args: RouterArguments) -> None:
        """
        Raises:
            `ValueError`: a router is given too.
        """
        if self.in_words and router_args.has_router:
            raise ValueError(
                f"{self.in_words} cannot be used with a router, which draws each image with one model: leave one out."
            )

    def __post_init__(self):
        for name in ("tta", "ensemble"):
            if isinstance(getattr(self, name), str):  # of a YAML, or of Python
                setattr(self, name, [getattr(self, name)])
        self.views  # noqa: B018  (names are checked before a model is loaded)


@dataclass
class DataArguments:
    """
    Which data a task loads.

    Args:
        dataset_name (`str`, *optional*, defaults to `"synthetic"`):
            `"synthetic"`, a folder in any format that a reader knows, or a Hub id.
        phrase (`str`, *optional*): what the masks show, where the data do not say it.
        synthetic (`dict`, *optional*):
            Arguments of [`~data.synthetic.synthetic_splits`], or with `scene: named` of [`~data.scenes.named_splits`].
    """

    dataset_name: str = field(default="synthetic", metadata={"help": "synthetic, a folder or a Hub id."})
    phrase: str | None = field(
        default=None, metadata={"help": "What the masks show, where the data do not say it: blood vessel."}
    )
    synthetic: dict | str | None = field(
        default=None,
        metadata={
            "help": 'How to generate data: arguments of synthetic_splits or named_splits, as {"train_videos": 48}.'
        },
    )

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
    dataset_eval_split: str = field(default="validation", metadata={"help": "Split to choose the best checkpoint by."})
