from dataclasses import dataclass, field

from ..mining.hardness import one_limit
from .base_config import refuse
from .epoch_plan import CURRICULA, DIFFICULTIES
from .sft_config import REFUSED, SegSFTConfig


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
        remine_every (`int`, *optional*): score the rows again with the present policy every so many epochs.

        > Parameters that say how often rows are drawn

        difficulty (`str`, *optional*, defaults to `"threshold"`):
            What the weight of a hard row is: `"threshold"`: all alike. `"dice"`: 1 - Dice. `"spread"`: spread of the
            candidate masks x (1 - Dice), which is largest where the policy has something to choose from. `"cluster"`:
            every temporal cluster alike, however long.
        weight_cap (`float`, *optional*, defaults to 3.0):
            Largest weight with `"dice"` and `"spread"`, as a multiple of the mean weight.
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
        easy_margin (`float`, *optional*, defaults to 0.02): see `easy_regression`.
    """

    _REFUSED = {
        **REFUSED,
        "train_sampling_strategy": "hard samples decide the order; see `difficulty`, `easy_share` and `curriculum`",
        "dataset_repeats": "hard samples decide how often a row is seen; raise num_train_epochs",
        "length_column_name": "hard samples decide the order",
    }

    learning_rate: float = field(default=1e-5, metadata={"help": "The initial learning rate."})
    num_train_epochs: float = field(default=5.0, metadata={"help": "Passes through the plan of an epoch."})
    gradient_accumulation_steps: int = field(default=2, metadata={"help": "Micro-batches an update."})
    weight_decay: float = field(default=0.01, metadata={"help": "Weight decay."})
    lm_weight: float = field(default=0.0, metadata={"help": "Weight of the language cross-entropy."})
    mask_weight: float = field(default=0.5, metadata={"help": "Weight of the mask BCE."})
    dice_weight: float = field(default=1.0, metadata={"help": "Weight of the Dice loss."})

    hard_below: float | None = field(
        default=None,
        metadata={"help": "Rows with a Dice below it are hard; what the scores say, or 0.75, by default."},
    )
    worst: float | None = field(default=None, metadata={"help": "Share of rows that is hard, in place of hard_below."})
    threshold: float | None = field(default=None, metadata={"help": "An earlier name of hard_below."})
    include_review: bool = field(default=False, metadata={"help": "Train on rows flagged for review, too."})
    remine_every: int | None = field(default=None, metadata={"help": "Epochs after which rows are scored again."})
    difficulty: str = field(
        default="threshold", metadata={"help": f"Weight of a hard row: one of {', '.join(DIFFICULTIES)}."}
    )
    weight_cap: float = field(default=3.0, metadata={"help": "Largest weight, as a multiple of the mean."})
    easy_share: float = field(default=0.5, metadata={"help": "Share of ordinary rows in an epoch."})
    curriculum: str = field(default="none", metadata={"help": f"Order of hard rows: one of {', '.join(CURRICULA)}."})
    easy_regression: str = field(
        default="warn", metadata={"help": f"When ordinary rows get worse: one of {', '.join(REGRESSIONS)}."}
    )
    easy_margin: float = field(default=0.02, metadata={"help": "Fall of the ordinary rows' Dice that is tolerated."})

    def __post_init__(self):
        super().__post_init__()
        for name, choices in (
            ("difficulty", DIFFICULTIES),
            ("curriculum", CURRICULA),
            ("easy_regression", REGRESSIONS),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}.")
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
                raise ValueError(_never(self.remine_every, self.num_train_epochs))
        if self.easy_margin < 0:
            raise ValueError(f"easy_margin must not be negative, got {self.easy_margin}.")
        if self.easy_regression == "ignore":
            refuse(self, {"easy_margin": "easy_regression=ignore watches nothing"})
        if self.eval_strategy == "no" or self.prediction_loss_only:
            need = "needs an evaluation to watch: set eval_strategy, and leave prediction_loss_only=False"
            refuse(self, {"easy_margin": need})
            if self.easy_regression == "stop":
                raise ValueError(f"easy_regression=stop {need}.")


def _never(every, epochs) -> str:
    return f"remine_every={every} never comes in {epochs:g} epochs: lower it, or train for longer."
