"""What the configs of the mask trainers share."""

import os
from dataclasses import MISSING, asdict, dataclass, field, fields

import torch
from transformers import TrainingArguments

from ..adapters.presets import EMBEDDINGS, LORA, TRAINABLE, WHOLE, get_peft_config
from ..data.augment import Augmentation
from ..data.prompts import ANSWERS, QUESTIONS, check_templates
from ..features.decision import MODES
from .adaptive_weights import read_rules


def refuse(args: TrainingArguments, reasons: dict[str, str]) -> None:
    """
    Raise for every inherited option that was changed and has no meaning here, all of them at once.

    Args:
        args (`TrainingArguments`): a config.
        reasons (`dict[str, str]`): option names and what to do instead.

    Raises:
        `ValueError`: naming each option that differs from its default.
    """
    defaults = {
        entry.name: entry.default if entry.default is not MISSING else entry.default_factory()
        for entry in fields(args)
        if entry.default is not MISSING or entry.default_factory is not MISSING
    }
    changed = [name for name in reasons if getattr(args, name) != defaults[name]]
    if changed:
        lines = "\n".join(f"  {name}={getattr(args, name)!r}: {reasons[name]}" for name in changed)
        raise ValueError(f"{type(args).__name__} does not take these options:\n{lines}")


def check_cache_options(args: "SegArguments") -> None:
    """
    Check the options of cached features.

    Args:
        args (`SegArguments`): with `cache_features`, `cache_dir`, `cache_views` and `augmentation`.

    Raises:
        `ValueError`: an unknown `cache_features`, a `cache_dir` or `cache_views` without a cache, or views of nothing.
    """
    if args.cache_features not in MODES:
        raise ValueError(f"cache_features must be one of {', '.join(MODES)}, got {args.cache_features!r}.")
    for name in ("cache_dir", "cache_views"):
        if getattr(args, name) is not None and args.cache_features == "off":
            raise ValueError(f"{name} has no meaning with cache_features=off.")
    if args.cache_views is not None and (args.cache_views < 1 or not any((args.augmentation or {}).values())):
        raise ValueError(
            f"cache_views is a number of augmented views of each row, and needs augmentation; got {args.cache_views} "
            f"with augmentation={args.augmentation}."
        )


def follow_launcher(args: TrainingArguments) -> None:
    """
    Take over what the launcher says of device and precision, where the options say nothing of them. Without `use_cpu`,
    processes on a machine without GPUs would each train on their own, and DeepSpeed refuses their batch sizes; the
    launcher of DeepSpeed does not hand it on.

    Args:
        args (`TrainingArguments`): changed in place, before its own checks.

    Raises:
        `ValueError`: the launcher asks for half precision, as on GPUs, where there are none.
    """
    environment = os.environ
    precision = environment.get("ACCELERATE_MIXED_PRECISION", "no")  # only accelerate's launcher sets it
    deepspeed = environment.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true" or args.deepspeed is not None
    on_cpu = environment.get("ACCELERATE_USE_CPU", "false").lower() == "true"
    on_cpu = on_cpu or (deepspeed and environment.get("DS_ACCELERATOR") == "cpu")
    if not (args.use_cpu or on_cpu or torch.accelerator.is_available()):
        if precision in ("bf16", "fp16"):
            raise ValueError(
                f"The launcher's configuration is for GPUs (mixed_precision: {precision}), and this machine has none: "
                "use accelerate launch --cpu --mixed_precision no, and for two processes under ZeRO-3, after "
                "DS_ACCELERATOR=cpu, --use_deepspeed --zero_stage 3 --num_processes 2 beside them."
            )
        on_cpu = int(environment.get("WORLD_SIZE", 1)) > 1
    args.use_cpu = args.use_cpu or on_cpu
    if args.bf16 is None and not args.fp16 and precision in ("bf16", "fp16"):
        args.bf16, args.fp16 = precision == "bf16", precision == "fp16"


def follow_libraries(args: TrainingArguments) -> None:
    """
    Say in the libraries' present words what would have them warn of words that nobody has chosen.

    Args:
        args (`TrainingArguments`): changed in place, before its own checks.
    """
    for kind in ("", "_kwargs"):  # TRL's default is under the earlier name
        if getattr(args, f"activation_checkpointing{kind}") is None:
            setattr(args, f"activation_checkpointing{kind}", getattr(args, f"gradient_checkpointing{kind}"))
    # Without an accelerator there is no memory to pin batches for.
    args.dataloader_pin_memory = args.dataloader_pin_memory and torch.accelerator.is_available()


@dataclass
class SegArguments:
    r"""
    What the configs of the mask trainers share, beside TRL's own config that each of them extends too.

    Parameters:
        > Parameters that control what trains

        trainable (`str`, *optional*):
            `"stage1"`, `"head"`, `"full"` or `"vlm"`, see [`~adapters.presets.get_peft_config`]. Defaults to
            `"stage1"`, unless the trainer gets a `peft_config` or a `PeftModel`, which then decide.
        lora_r (`int`, *optional*, defaults to 64):
            Rank of the LoRA of `"stage1"`, at least 1.
        lora_alpha (`int`, *optional*, defaults to 128):
            Scale of that LoRA, at least 1: its update is multiplied by `lora_alpha / lora_r`.
        lora_dropout (`float`, *optional*, defaults to 0.05):
            Share of the inputs of that LoRA that is dropped, in [0, 1).
        train_embeddings (`str`, *optional*, defaults to `"none"`):
            With `"stage1"`, what trains of the embeddings and the language model's head: `"none"`, `"seg"` (the rows
            of `[SEG]`) or `"full"`.

        > Parameters that control the loss

        mask_weight (`float`, *optional*, defaults to 2.0):
            Weight of the binary cross-entropy of masks, not negative; the official one.
        dice_weight (`float`, *optional*, defaults to 0.5):
            Weight of the Dice loss, not negative; the official one.
        skeleton_recall_weight (`float`, *optional*, defaults to 0.0):
            Weight of the skeleton recall loss (see [`~losses.skeleton_recall_loss`]), not negative.
        cldice_weight (`float`, *optional*, defaults to 0.0):
            Weight of the soft clDice loss (see [`~losses.soft_cldice_loss`]), not negative.
        scnp_weight (`float`, *optional*, defaults to 0.0):
            Weight of cross-entropy and Dice of each pixel's worst neighbour (see [`~losses.scnp_loss`]), not negative.
        cldice_iterations (`int`, *optional*, defaults to 10):
            Erosions that make soft clDice's skeletons, not negative: at least half the width of the widest vessel, in
            cells of the mask grid.
        iou_weight (`float`, *optional*, defaults to 0.0):
            Weight of the squared error of SAM 2's predicted IoU, not negative.
        num_points (`int`, *optional*, defaults to 12544):
            Points that cross-entropy and Dice are computed on; 0 for all cells of the grid.
        oversample_ratio (`float`, *optional*, defaults to 3.0):
            Candidates that are drawn for each of these points, at least 1, see [`~losses.sample_points`].
        importance_ratio (`float`, *optional*, defaults to 0.75):
            Share of the points that lie where the mask is least certain, in [0, 1]; the others are drawn at random.
        mask_size (`int`, *optional*):
            Side of the square grid that masks are compared on, at least 1; the decoder's own by default.

        > Parameters that control the data

        augmentation (`dict`, *optional*):
            Arguments of [`~data.augment.Augmentation`], for training only.
        question_templates (`list[str]`, *optional*):
            What a `phrase` is asked for with: each holds `{phrase}`, and one is drawn for each object. Evaluation
            takes the first. Defaults to the official question.
        answer_templates (`list[str]`, *optional*):
            What is answered: each holds one `[SEG]`, and one is drawn for each object. Evaluation takes the first.
        dataset_repeats (`int`, *optional*, defaults to 1):
            How often the training rows are seen in one epoch, at least once.
        accept_alike (`bool`, *optional*, defaults to `False`):
            Train though images of the training set look like some to evaluate on, and nothing says that they are of
            two patients; equal ones never are accepted. See [`~data.check_no_leakage`].
        data_seed (`int`, *optional*):
            Of the order of rows and of what is drawn for them; `seed` by default.
        curriculum (`str`, *optional*, defaults to `"none"`):
            `"thickness"` draws most rows (all but 5 % for each other class) from those with thick vessels at first,
            then medium, then thin ones, by the mean width of a row's masks (cut at 4 and 10 pixels); the classes
            that there are share the epochs out. Rows without a width keep their share.
        adaptive_weights (`list[dict]`, *optional*):
            Rules by which weights follow a metric, see [`~trainers.adaptive_weights.WeightRule`].
        early_stopping_patience (`int`, *optional*):
            Evaluations without a better metric before training stops; needs `load_best_model_at_end`.
        allow_new_optimizer (`bool`, *optional*, defaults to `False`):
            Go on from a checkpoint without the state of its optimizer (`save_only_model`) with a new one.
        eval_on_start (`bool`, *optional*, defaults to `False`):
            With `load_best_model_at_end`, the model that training starts from counts too: it is what is left where
            nothing later is better.
        cache_features (`str`, *optional*, defaults to `"auto"`):
            `"on"` computes what comes before the mask head once and reads it from disk from then on, `"off"` does so
            in every step. `"auto"` is `"on"` where that changes nothing: with `trainable="head"`, `lm_weight=0`, no
            augmentation (or `cache_views`), at most one template each, and room on the disk. It says what it decided
            and why.
        cache_dir (`str`, *optional*):
            Where features go: beside the data set, or else into the cache of `datasets`, by default.
        cache_views (`int`, *optional*):
            With `augmentation`: how many augmented views of each training row have features, at least 1. They take
            turns, one an epoch, where otherwise every epoch has new ones.
    """

    # Inherited options that have no meaning, and what to do instead.
    _refused = {}
    _curricula = ("none", "thickness")

    trainable: str | None = field(
        default=None,
        metadata={"help": f"What trains: one of {', '.join(TRAINABLE)}. stage1 (LoRA and the mask head) by default."},
    )
    lora_r: int = field(default=64, metadata={"help": "Rank of the LoRA of trainable=stage1."})
    lora_alpha: int = field(
        default=128, metadata={"help": "Scale of the LoRA of trainable=stage1: its update counts lora_alpha / lora_r."}
    )
    lora_dropout: float = field(default=0.05, metadata={"help": "Dropout of the LoRA of trainable=stage1, in [0, 1)."})
    train_embeddings: str = field(
        default="none",
        metadata={
            "help": "What trains of the embeddings and the language model's head with trainable=stage1: one of "
            f"{', '.join(EMBEDDINGS)}; seg is the rows of [SEG] alone."
        },
    )
    mask_weight: float = field(default=2.0, metadata={"help": "Weight of the binary cross-entropy of masks."})
    dice_weight: float = field(default=0.5, metadata={"help": "Weight of the Dice loss of masks."})
    skeleton_recall_weight: float = field(
        default=0.0,
        metadata={"help": "Weight of the skeleton recall loss: how much of the vessels' centre lines is found."},
    )
    cldice_weight: float = field(
        default=0.0, metadata={"help": "Weight of the soft clDice loss, which keeps vessels connected."}
    )
    scnp_weight: float = field(
        default=0.0,
        metadata={"help": "Weight of the SCNP loss: cross-entropy and Dice of each pixel's worst neighbour."},
    )
    cldice_iterations: int = field(
        default=10,
        metadata={
            "help": "Erosions that make the skeletons of cldice_weight; at least half the width of the widest vessel, "
            "in cells of the mask grid."
        },
    )
    iou_weight: float = field(
        default=0.0, metadata={"help": "Weight of the squared error of the IoU that SAM 2 predicts of its own masks."}
    )
    num_points: int = field(
        default=12544,
        metadata={"help": "Points of each mask that mask and Dice loss are computed on; 0 for all cells of the grid."},
    )
    oversample_ratio: float = field(
        default=3.0, metadata={"help": "Candidates drawn for each of num_points, of which the least certain are kept."}
    )
    importance_ratio: float = field(
        default=0.75,
        metadata={"help": "Share of num_points where the mask is least certain, in [0, 1]; the others are random."},
    )
    mask_size: int | None = field(
        default=None,
        metadata={"help": "Side of the square grid that masks are compared on; the mask decoder's own by default."},
    )
    augmentation: dict | str | None = field(
        default=None,
        metadata={
            "help": "Random changes of training rows by name, such as {flip: 0.5, rotation: 15}: "
            f"{', '.join(Augmentation.__dataclass_fields__)}."
        },
    )
    question_templates: list[str] | None = field(
        default=None,
        metadata={"help": "Questions with {phrase} in them; one is drawn for each object of a training row."},
    )
    answer_templates: list[str] | None = field(
        default=None,
        metadata={"help": "Answers with one [SEG] in them; one is drawn for each object of a training row."},
    )
    dataset_repeats: int = field(default=1, metadata={"help": "How often an epoch sees each training row."})
    accept_alike: bool = field(
        default=False, metadata={"help": "Accept images of two splits that look alike; equal ones never are."}
    )
    curriculum: str = field(
        default="none",
        metadata={"help": "What most rows have, by epoch: none or thickness (thick vessels, then medium, then thin)."},
    )
    # (On the command line it is JSON: of three types the parser takes the one in the middle.)
    adaptive_weights: list | str | None = field(
        default=None,
        metadata={
            "help": 'Weights that follow a metric, as [{"component": "cldice", "above": 0.5, "weight": 1.0, '
            '"otherwise": 0.5}].'
        },
    )
    early_stopping_patience: int | None = field(
        default=None,
        metadata={
            "help": "Evaluations without a better metric_for_best_model before training stops; never by default."
        },
    )
    allow_new_optimizer: bool = field(
        default=False,
        metadata={"help": "Resume from a checkpoint without an optimizer's state, with a new optimizer."},
    )
    cache_features: str = field(
        default="auto",
        metadata={
            "help": f"Compute what comes before the mask head once and read it from disk: one of {', '.join(MODES)}; "
            "auto does so where that changes nothing."
        },
    )
    cache_dir: str | None = field(
        default=None,
        metadata={"help": "Folder for the features of cache_features; beside the data set by default."},
    )
    cache_views: int | None = field(
        default=None,
        metadata={"help": "Augmented views of each training row that cache_features computes; they take turns."},
    )

    def __post_init__(self):
        follow_launcher(self)
        if self.bf16 is None and not self.fp16:
            self.bf16 = not self.use_cpu and torch.cuda.is_available() and torch.cuda.is_bf16_supported()
        if self.load_best_model_at_end and self.metric_for_best_model is None:
            self.metric_for_best_model = "dice"
        refuse(self, self._refused)  # before the base class turns defaults into values
        follow_libraries(self)
        super().__post_init__()
        if self.data_seed is None:
            self.data_seed = self.seed  # else the order of rows would be that of whatever has seeded torch last
        if self.train_sampling_strategy == "group_by_length":
            raise ValueError("train_sampling_strategy='group_by_length' is not available: rows have no token lengths.")
        if self.prediction_loss_only and self.metric_for_best_model in ("dice", "iou", "eval_dice", "eval_iou"):
            raise ValueError(
                f"prediction_loss_only=True computes no {self.metric_for_best_model} to choose the best checkpoint by."
            )
        for name in ("mask", "dice", "skeleton_recall", "cldice", "scnp", "iou"):
            if getattr(self, f"{name}_weight") < 0:
                raise ValueError(f"{name}_weight must not be negative, got {getattr(self, f'{name}_weight')}.")
        if self.num_points < 0 or self.oversample_ratio < 1 or not 0 <= self.importance_ratio <= 1:
            raise ValueError(
                "num_points must not be negative, oversample_ratio at least 1 and importance_ratio within [0, 1]; got "
                f"{self.num_points}, {self.oversample_ratio} and {self.importance_ratio}."
            )
        for name, least in (("dataset_repeats", 1), ("lora_r", 1), ("lora_alpha", 1), ("cldice_iterations", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}.")
        if self.mask_size is not None and self.mask_size < 1:
            raise ValueError(f"mask_size must be at least 1, got {self.mask_size}.")
        if self.trainable in ("head", *WHOLE):
            refuse(self, dict.fromkeys(LORA, f"trainable={self.trainable!r} has no LoRA"))
        if self.curriculum not in self._curricula:
            raise ValueError(f"curriculum must be one of {', '.join(self._curricula)}, got {self.curriculum!r}.")
        if self.curriculum == "thickness":
            names = {"train_sampling_strategy", "dataset_repeats"} - self._refused.keys()
            refuse(self, dict.fromkeys(sorted(names), "curriculum=thickness decides which rows an epoch has"))
        if self.adaptive_weights is not None:
            self.adaptive_weights = [asdict(rule) for rule in read_rules(self.adaptive_weights)]
        if self.early_stopping_patience is not None and not self.load_best_model_at_end:
            raise ValueError("early_stopping_patience needs load_best_model_at_end=True and a metric to watch.")
        try:
            augmentation = Augmentation(**(self.augmentation or {}))
        except TypeError as error:
            names = ", ".join(Augmentation.__dataclass_fields__)
            raise ValueError(f"augmentation takes {names}; got {self.augmentation}.") from error
        if self.dataloader_persistent_workers and augmentation != Augmentation():
            raise ValueError(
                "augmentation needs dataloader_persistent_workers=False: workers that live on never learn of a new "
                "epoch."
            )
        check_cache_options(self)
        check_templates(self.question_templates or QUESTIONS, self.answer_templates or ANSWERS)
        get_peft_config(self.trainable or "stage1", seg_token_id=0, train_embeddings=self.train_embeddings)
