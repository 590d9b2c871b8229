"""Options of training on hard samples."""

from dataclasses import dataclass, field

from ..mining.hardness import HARD_BELOW, one_limit
from .base_config import refuse
from .epoch_plan import CURRICULA, DIFFICULTIES
from .sft_config import SFT_REFUSED, SegSFTConfig


REGRESSIONS = ("warn", "stop", "ignore")


@dataclass
class HardSampleConfig(SegSFTConfig):
    r"""
    Configuration of [`HardSampleTrainer`]: that of [`SegSFTConfig`], and:

    > [!NOTE]
    > Different from `SegSFTConfig`: `trainable` is `"head"` by default, the loss is Dice + 0.5 BCE without a language
    > loss (so that features can be cached), `learning_rate` is 1e-5, `num_train_epochs` 5,
    > `gradient_accumulation_steps` 2 and `weight_decay` 0.01.

    Parameters:
        > Parameters that say which rows are hard

        hard_below (`float`, *optional*):
            Rows with a Dice below it are hard. Without it and `worst`, what mining has decided holds, which the scores
            say, and 0.75 where they say nothing.
        worst (`float`, *optional*):
            In place of `hard_below`, this share of the rows is hard, those of the lowest Dice.
        threshold (`float`, *optional*): an earlier name of `hard_below`.
        include_review (`bool`, *optional*, defaults to `False`):
            Train on rows that the scores flag for `review` (suspected label noise) too.
        remine_every (`int`, *optional*):
            Score the rows again with the present policy every so many epochs, at least 1; never by default.

        > Parameters that say how often rows are drawn

        difficulty (`str`, *optional*, defaults to `"threshold"`):
            What the weight of a hard row is: `"threshold"`: all alike. `"dice"`: 1 - Dice. `"spread"`: spread of the
            candidate masks x (1 - Dice), which is largest where the policy has something to choose from. `"cluster"`:
            every temporal cluster alike, however long.
        weight_cap (`float`, *optional*, defaults to 3.0):
            Largest weight with `"dice"` and `"spread"`, as a multiple of the mean weight; at least 1.
        easy_share (`float`, *optional*, defaults to 0.5):
            Share of ordinary rows in an epoch, in [0, 1). With 0 only hard rows are trained on; mixing guards against
            forgetting and label noise (arXiv 2505.18741).
        curriculum (`str`, *optional*, defaults to `"none"`):
            Order of an epoch's hard rows: `"none"`: random. `"difficulty"`: in three bands from high to low Dice.
            `"thickness"`: thick vessels, then medium, then thin. Ordinary rows are spread evenly in between.

        > Parameters that watch ordinary rows

        easy_regression (`str`, *optional*, defaults to `"warn"`):
            What happens when the Dice of the evaluation rows that were not hard at the start falls by more than
            `easy_margin`: `"warn"`, `"stop"` or `"ignore"`.
        easy_margin (`float`, *optional*, defaults to 0.02):
            Fall in Dice that `easy_regression` tolerates, not negative.

    Raises:
        `ValueError`: options of TRL's that have no meaning here, options that contradict each other, or values out of
            range; the message names them.

    Example:

    ```python
    >>> from sa2va_trl import HardSampleConfig

    >>> args = HardSampleConfig("sa2va-hard", worst=0.25, easy_share=0.3, use_cpu=True, report_to="none")
    >>> args.worst, args.learning_rate, args.lm_weight
    (0.25, 1e-05, 0.0)

    >>> HardSampleConfig("sa2va-hard", weight_cap=2.0)
    Traceback (most recent call last):
        ...
    ValueError: HardSampleConfig does not take these options:
      weight_cap=2.0: difficulty=threshold caps nothing

    ```
    """

    _refused = {
        **SFT_REFUSED,
        "train_sampling_strategy": "hard samples decide the order; see `difficulty`, `easy_share` and `curriculum`",
        "dataset_repeats": "hard samples decide how often a row is seen; raise num_train_epochs",
        "length_column_name": "hard samples decide the order",
    }
    _curricula = CURRICULA

    learning_rate: float = field(default=1e-5, metadata={"help": "The initial learning rate."})
    num_train_epochs: float = field(
        default=5.0,
        metadata={"help": "Epochs to train for; each holds every hard row and its share of ordinary ones."},
    )
    gradient_accumulation_steps: int = field(
        default=2, metadata={"help": "Micro-batches whose gradients are added up for one update of the weights."}
    )
    weight_decay: float = field(default=0.01, metadata={"help": "Weight decay of AdamW."})
    lm_weight: float = field(default=0.0, metadata={"help": "Weight of the cross-entropy of the answers' words."})
    mask_weight: float = field(default=0.5, metadata={"help": "Weight of the binary cross-entropy of masks."})
    dice_weight: float = field(default=1.0, metadata={"help": "Weight of the Dice loss of masks."})

    hard_below: float | None = field(
        default=None,
        metadata={"help": "Rows with a Dice below it are hard; what the scores say, or 0.75, by default."},
    )
    worst: float | None = field(
        default=None,
        metadata={"help": "Share of the rows that is hard, in place of hard_below."},
    )
    threshold: float | None = field(default=None, metadata={"help": "An earlier name of hard_below."})
    include_review: bool = field(
        default=False,
        metadata={"help": "Train also on rows that the scores flag for review, whose labels may be wrong."},
    )
    remine_every: int | None = field(
        default=None,
        metadata={"help": "Epochs after which all rows are scored again with the present model; never by default."},
    )
    difficulty: str = field(
        default="threshold",
        metadata={
            "help": f"What hard rows are drawn in proportion to: one of {', '.join(DIFFICULTIES)}; with threshold, "
            "all alike."
        },
    )
    weight_cap: float = field(
        default=3.0,
        metadata={"help": "Largest weight of a row with difficulty=dice or spread, as a multiple of the mean weight."},
    )
    easy_share: float = field(
        default=0.5, metadata={"help": "Share of ordinary rows in an epoch, in [0, 1); 0 trains on hard rows only."}
    )
    curriculum: str = field(
        default="none", metadata={"help": f"Order of an epoch's hard rows: one of {', '.join(CURRICULA)}."}
    )
    easy_regression: str = field(
        default="warn",
        metadata={
            "help": "What to do when the Dice of ordinary evaluation rows falls by more than easy_margin: one of "
            f"{', '.join(REGRESSIONS)}."
        },
    )
    easy_margin: float = field(
        default=0.02,
        metadata={"help": "Fall of the Dice of ordinary evaluation rows that easy_regression tolerates."},
    )

    def __post_init__(self):
        super().__post_init__()
        for name, choices in (
            ("difficulty", DIFFICULTIES),
            ("easy_regression", REGRESSIONS),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}.")
        if self.worst is not None and self.threshold == HARD_BELOW:
            self.threshold = None  # it was the default, beside which `worst` could be given
        self.hard_below = one_limit(self.hard_below, self.threshold)
        if self.hard_below is not None and not 0 < self.hard_below <= 1:
            raise ValueError(f"hard_below must lie in (0, 1], got {self.hard_below}.")
        if self.worst is not None:
            if not 0 < self.worst < 1:
                raise ValueError(f"worst must lie between 0 and 1, got {self.worst}.")
            refuse(self, {"hard_below": f"worst={self.worst} says which rows are hard"})
        if not 0 <= self.easy_share < 1:
            raise ValueError(f"easy_share must lie in [0, 1), got {self.easy_share}: 0 trains on hard rows only.")
        if self.weight_cap < 1:
            raise ValueError(f"weight_cap must be at least 1, got {self.weight_cap}.")
        if self.difficulty not in ("dice", "spread"):
            refuse(self, {"weight_cap": f"difficulty={self.difficulty} caps nothing"})
        if self.remine_every is not None:
            if self.remine_every < 1:
                raise ValueError(f"remine_every must be at least 1, got {self.remine_every}.")
            if self.max_steps <= 0 and self.remine_every >= self.num_train_epochs:
                raise ValueError(never_mined(self.remine_every, self.num_train_epochs))
        if self.easy_margin < 0:
            raise ValueError(f"easy_margin must not be negative, got {self.easy_margin}.")
        if self.easy_regression == "ignore":
            refuse(self, {"easy_margin": "easy_regression=ignore watches nothing"})
        if self.eval_strategy == "no" or self.prediction_loss_only:
            need = "needs an evaluation to watch: set eval_strategy, and leave prediction_loss_only=False"
            refuse(self, {"easy_margin": need})
            if self.easy_regression == "stop":
                raise ValueError(f"easy_regression=stop {need}.")


def never_mined(every: int, epochs: float) -> str:
    """What is wrong with a run that is to score its rows again `every` so many epochs and has no more than that."""
    return f"remine_every={every} never comes in {epochs:g} epochs: lower it, or train for longer."
