"""Options that the tasks share."""

import json
from dataclasses import dataclass, field
from pathlib import Path

from ..evaluation.routing import check_route
from ..evaluation.views import View, parse_views
from ..models.processing import PROMPT_STYLES
from .parser import RecipeParser  # noqa: F401  (one place for what a task's options need)


# Names of models that come with the package or are made, and their families; the first has weights.
PRETRAINED = "tiny"
TINY = {
    PRETRAINED: "internvl",
    "tiny-random": "internvl",
    "tiny-qwen2_5_vl": "qwen2_5_vl",
    "tiny-qwen3_vl": "qwen3_vl",
}
# How weights are quantised, by the names that others give it.
QUANTISED = {"int4": "4bit", "int8": "8bit"}


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
        grounding_dtype (`str`, *optional*):
            `"float32"` leaves SAM 2 and `text_hidden_fcs` in float32 beside a VLM in half precision.
        attn_implementation (`str`, *optional*, defaults to `"sdpa"`): of the VLM.
        grounding_image_size (`int`, *optional*):
            Side of SAM 2's square in pixels, in place of the model's own (tiny: 256). No weight depends on it; the
            mask grid is a quarter of it.
        quantization (`str`, *optional*):
            `"4bit"` (or `"int4"`: NF4 with double quantisation) or `"8bit"` (or `"int8"`): of the language model's
            layers, with bitsandbytes; for QLoRA and for inference on small cards and on CPUs.
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
    grounding_dtype: str | None = field(
        default=None,
        metadata={"help": "float32: SAM 2 and text_hidden_fcs stay so beside a VLM in half precision."},
    )
    attn_implementation: str = field(
        default="sdpa", metadata={"help": "Attention of the VLM: sdpa, flash_attention_2 or eager."}
    )
    grounding_image_size: int | None = field(
        default=None, metadata={"help": "Side of SAM 2's square in pixels; the model's own by default."}
    )
    quantization: str | None = field(
        default=None,
        metadata={"help": "Load the language model in 4bit (int4) or 8bit (int8), with bitsandbytes."},
    )
    prompt_style: str | None = field(
        default=None,
        metadata={
            "help": "How Qwen is asked, training or official; the adapter's or else the model's own way by default."
        },
    )

    def __post_init__(self):
        self.quantization = QUANTISED.get(self.quantization, self.quantization)
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
        if self.grounding_dtype not in (None, "float32"):
            raise ValueError(f"grounding_dtype must be float32 or left out, got {self.grounding_dtype!r}.")
        if self.grounding_dtype is not None and self.dtype == "float32":
            raise ValueError("grounding_dtype has no effect with dtype=float32, in which everything is.")
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
class ComparedDataArguments(DataArguments):
    """
    Which data a task loads that takes two splits of them for different patients.

    Args:
        accept_alike (`bool`, *optional*, defaults to `False`):
            Go on though images of the splits look alike, and nothing says that they are of two patients; equal ones
            never are accepted. Trainers have it in their config.
    """

    accept_alike: bool = field(
        default=False, metadata={"help": "Accept images of two splits that look alike; equal ones never are."}
    )


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
