"""Options of reinforcement learning on masks, and those of TRL's that have no meaning for it."""

import math
from dataclasses import dataclass, field

from ..losses.policy_gradient import ADVANTAGES, SCALES
from ..rewards import CREDITS, checked, get_reward
from ..sampling import MaskSampler
from .actor_critic import NOISE_RANGE
from .base_config import refuse
from .row_sampling import SAMPLE_BY
from .sft_config import SFT_REFUSED, SegSFTConfig


POLICIES = ("embedding", "field", "both")
CREDIT = ("local", "global")


@dataclass
class SegGRPOConfig(SegSFTConfig):
    r"""
    Configuration of [`SegGRPOTrainer`]: that of [`SegSFTConfig`], and, by the names of [`trl.GRPOConfig`] where it has
    the option:

    > [!NOTE]
    > Different from `SegSFTConfig`: `trainable` is `"head"` by default, there is no language loss (so that features
    > can be cached), `learning_rate` is 1e-5 and `lora_dropout` 0, since the ratio is of one network. Different from
    > `GRPOConfig`: `per_device_train_batch_size` counts rows, each of which has K masks; `scale_rewards` is `"none"`;
    > `beta` weighs an exact divergence; weights of rewards are part of `reward`.

    Parameters:
        > Parameters that control the rollouts

        num_generations (`int`, *optional*, defaults to 8):
            Masks that are drawn for each object, K; one may do with `advantage="value"`.
        policy (`str`, *optional*, defaults to `"embedding"`):
            What is drawn: `"embedding"`, the projected `[SEG]` embedding; `"field"`, a smooth shift of the greedy
            mask's logits; `"both"`, K / 2 of each. See [`~sampling.MaskSampler`].
        embedding_noise (`float`, *optional*, defaults to 0.1):
            Standard deviation of the embedding's coordinates, as a share of its root mean square.
        field_noise (`float`, *optional*, defaults to 0.5): that of the field's grid points, in logits.
        noise_end (`float`, *optional*, defaults to 1.0):
            Share of both that is left at the last step, in (0, 1]; they fall linearly.
        learn_noise (`bool`, *optional*, defaults to `False`):
            Learn the embedding's standard deviation, from `embedding_noise` on and between 0.01 and 2, by the same
            surrogate. It is one number, which is no part of the model.

        > Parameters that control which rows are drawn

        sample_by (`str`, *optional*, defaults to `"uniform"`):
            `"uniform"`: an epoch has every row once. With `scores` given to the trainer an epoch has as many rows,
            drawn `"spread"`: in proportion to the standard deviation of their candidates' Dice, or `"hardness"`: to
            1 - Dice, both up to 3 times the mean.
        max_samples (`int`, *optional*):
            Training rows to keep: those of the largest spread or hardness; with `"uniform"` rows at random.

        > Parameters that control the reward

        reward (`str` or `dict`, *optional*, defaults to `"default"`):
            See [`~rewards.get_reward`]: a name, a preset or weights. The trainer also takes functions.
        reward_workers (`int`, *optional*, defaults to 0): processes that score beside the one that trains.
        rank_history (`int`, *optional*, defaults to 0):
            Rewards become their rank among as many of the past, see [`~rewards.RankNormalizer`]; with 0 they stay.

        > Parameters that control the loss

        advantage (`str`, *optional*, defaults to `"group"`):
            Baseline: `"group"`, `"rloo"`, `"batch"` or `"value"`, see [`~losses.advantages`]. A batch is that of one
            micro-batch of a process. With `"value"` a small head learns beside the model what the masks of an
            embedding will be worth: PPO as published.
        scale_rewards (`str`, *optional*, defaults to `"none"`): `"none"`, `"group"` or `"batch"`, see there.
        num_iterations (`int`, *optional*, defaults to 1): updates from one set of rollouts.
        ppo_learning_rate (`float`, *optional*, defaults to 1e-3):
            Of the learned noise and of the value head, which have an optimizer of their own (Adam); it is constant.
        critic_warmup (`int`, *optional*, defaults to 0):
            Steps in which of the rollouts only the value head learns, by verl's name: it begins by expecting 0 of
            every mask, and all advantages then have one sign.
        epsilon (`float`, *optional*, defaults to 0.2): how far the ratio may fall.
        epsilon_high (`float`, *optional*): how far it may rise; as far by default.
        beta (`float`, *optional*, defaults to 0.0):
            Weight of the divergence from the model without its adapter: per coordinate of the embedding, and per pixel
            of the mask.
        decoder_weight (`float`, *optional*, defaults to 1.0):
            Weight of the likelihood of the drawn masks where they differ from the greedy one, see
            [`~losses.region_surrogate`]; not clipped.
        credit (`str`, *optional*, defaults to `"local"`):
            What that likelihood is weighted by: `"local"`, the part of the reward that lies around a cell, of rewards
            that have such (`dice`, `cldice`; of others the advantage), or `"global"`, the advantage of the whole mask.
        credit_cells (`int`, *optional*, defaults to 16): cells along a side, with `"local"`.
        sft_weight (`float`, *optional*, defaults to 1.0):
            Weight of the supervised mask losses (`mask_weight`, `dice_weight`, ...), the anchor; not negative.

        > Parameters that control what is shown

        rollout_steps (`int`, *optional*):
            Every so many steps `rollouts/` in `output_dir` gets a table of the rewards and a picture of a group.
        skip_patience (`int`, *optional*, defaults to 20):
            Steps without any spread of rewards after which the cause is named.

    Raises:
        `ValueError`: options of TRL's that have no meaning here, options that contradict each other, or values out of
            range; the message names them.

    Example:

    ```python
    >>> from sa2va_trl import SegGRPOConfig

    >>> args = SegGRPOConfig("sa2va-grpo", num_generations=4, use_cpu=True, report_to="none")
    >>> args.reward, args.scale_rewards, args.lm_weight
    ('default', 'none', 0.0)

    >>> SegGRPOConfig("sa2va-grpo", num_generations=1)
    Traceback (most recent call last):
        ...
    ValueError: num_generations must be at least 2, got 1: advantages are taken within a group.

    ```
    """

    _VALID_DICT_FIELDS = [*SegSFTConfig._VALID_DICT_FIELDS, "reward"]
    _refused = {**SFT_REFUSED, "lm_weight": "the policy is over masks; no loss reaches the words"}

    learning_rate: float = field(default=1e-5, metadata={"help": "The initial learning rate."})
    lm_weight: float = field(default=0.0, metadata={"help": "Not available: the policy is over masks."})
    lora_dropout: float = field(default=0.0, metadata={"help": "Dropout of that LoRA."})

    num_generations: int = field(default=8, metadata={"help": "Masks that are drawn for each object."})
    policy: str = field(
        default="embedding", metadata={"help": f"What masks are drawn from: one of {', '.join(POLICIES)}."}
    )
    embedding_noise: float = field(
        default=0.1,
        metadata={"help": "Standard deviation of the drawn embeddings, as a share of their root mean square."},
    )
    field_noise: float = field(
        default=0.5, metadata={"help": "Standard deviation of the drawn fields at their grid points, in logits."}
    )
    noise_end: float = field(
        default=1.0, metadata={"help": "Share of the noise that is left at the last step; it falls linearly."}
    )
    learn_noise: bool = field(
        default=False, metadata={"help": "Learn the standard deviation of the drawn embeddings."}
    )
    sample_by: str = field(
        default="uniform",
        metadata={
            "help": f"What rows are drawn in proportion to: one of {', '.join(SAMPLE_BY)}; the others need scores."
        },
    )
    max_samples: int | None = field(
        default=None,
        metadata={"help": "Training rows to keep, those that sample_by draws most; at random with uniform."},
    )
    # (On the command line it is a name or JSON: of three types the parser takes the one in the middle.)
    reward: dict | str | None = field(
        default="default",
        metadata={
            "help": 'Reward: a name, a preset (default, published) or weights, as {"dice": 0.6, "cldice": 0.4}.'
        },
    )
    reward_workers: int = field(default=0, metadata={"help": "Processes that score beside the one that trains."})
    rank_history: int = field(
        default=0, metadata={"help": "Past rewards that a reward becomes its rank among; 0 for the reward itself."}
    )
    advantage: str = field(
        default="group", metadata={"help": f"Baseline of the advantages: one of {', '.join(ADVANTAGES)}."}
    )
    scale_rewards: str = field(
        default="none", metadata={"help": f"What advantages are divided by the deviation of: {', '.join(SCALES)}."}
    )
    num_iterations: int = field(default=1, metadata={"help": "Updates from one set of rollouts."})
    ppo_learning_rate: float = field(
        default=1e-3, metadata={"help": "Learning rate of the learned noise and of the value head (advantage=value)."}
    )
    critic_warmup: int = field(
        default=0, metadata={"help": "Steps in which of the rollouts only the value head learns (advantage=value)."}
    )
    epsilon: float = field(default=0.2, metadata={"help": "How far the ratio may fall before it is clipped."})
    epsilon_high: float | None = field(default=None, metadata={"help": "How far it may rise; as far by default."})
    beta: float = field(default=0.0, metadata={"help": "Weight of the divergence from the model without its adapter."})
    decoder_weight: float = field(
        default=1.0,
        metadata={"help": "Weight of the likelihood of drawn masks where they differ from the greedy one."},
    )
    credit: str = field(
        default="local", metadata={"help": f"What that likelihood is weighted by: one of {', '.join(CREDIT)}."}
    )
    credit_cells: int = field(default=16, metadata={"help": "Cells along a side of the image, with credit=local."})
    sft_weight: float = field(default=1.0, metadata={"help": "Weight of the supervised mask losses, the anchor."})
    rollout_steps: int | None = field(
        default=None,
        metadata={"help": "Steps after which a table and a picture of rollouts are written; never by default."},
    )
    skip_patience: int = field(
        default=20, metadata={"help": "Steps without any spread of rewards after which the cause is named."}
    )

    def __post_init__(self):
        super().__post_init__()
        if isinstance(self.scale_rewards, bool):  # as TRL takes them
            self.scale_rewards = "group" if self.scale_rewards else "none"
        if self.lora_dropout:
            raise ValueError(f"lora_dropout={self.lora_dropout} must be 0: the ratio is of one network.")
        for name, choices in (
            ("policy", POLICIES),
            ("advantage", ADVANTAGES),
            ("scale_rewards", SCALES),
            ("credit", CREDIT),
            ("sample_by", SAMPLE_BY),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}.")
        kinds = 2 if self.policy == "both" else 1
        least = kinds * (1 if self.advantage == "value" else 2)
        if self.num_generations < least or self.num_generations % kinds:
            how = "advantages are taken within a group" if kinds == 1 else "policy=both draws half of each kind"
            even = "" if kinds == 1 else " and even"
            raise ValueError(f"num_generations must be at least {least}{even}, got {self.num_generations}: {how}.")
        if self.num_generations == kinds and self.credit == "local" and self.decoder_weight:
            raise ValueError(
                f"num_generations={kinds} with policy={self.policy} needs credit=global: local credit is measured "
                "against the others of a group."
            )
        if self.advantage in ("batch", "value") and self.scale_rewards == "group":
            raise ValueError(
                f"advantage={self.advantage} is not of one group, so scale_rewards=group has no meaning: use batch."
            )
        for name in ("num_iterations", "credit_cells", "skip_patience"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.rollout_steps is not None and self.rollout_steps < 1:
            raise ValueError(f"rollout_steps must be at least 1, got {self.rollout_steps}.")
        if self.max_samples is not None and self.max_samples < 1:
            raise ValueError(f"max_samples must be at least 1, got {self.max_samples}.")
        refuse(self, {"train_sampling_strategy": "this trainer plans its epochs itself, see sample_by and curriculum"})
        if self.sample_by != "uniform":
            refuse(self, {"dataset_repeats": f"sample_by={self.sample_by} decides how often a row is seen"})
        if self.max_samples is not None:
            refuse(self, {"dataset_repeats": "max_samples keeps rows once; raise num_train_epochs"})
        for name in ("beta", "decoder_weight", "sft_weight", "reward_workers", "rank_history"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be finite and not negative, got {getattr(self, name)}.")
        if not 0 < self.noise_end <= 1:
            raise ValueError(f"noise_end must lie in (0, 1], got {self.noise_end}.")
        if not 0 < self.epsilon < 1 or (self.epsilon_high is not None and not self.epsilon_high > 0):
            raise ValueError(
                f"epsilon must lie between 0 and 1 and epsilon_high above 0, got {self.epsilon} and "
                f"{self.epsilon_high}."
            )
        self._check_learned()
        get_reward(self.reward)
        self.sampler()  # raises where the noise is out of range
        if self.policy == "field":
            refuse(
                self, dict.fromkeys(("embedding_noise", "epsilon", "epsilon_high"), "policy=field draws no embedding")
            )
            if not self.decoder_weight:
                raise ValueError("decoder_weight=0 with policy=field leaves nothing that learns from the rollouts.")
        elif self.policy == "embedding":
            refuse(self, {"field_noise": "policy=embedding draws no field"})
        if not self.decoder_weight:
            refuse(self, dict.fromkeys(("credit", "credit_cells"), "decoder_weight=0 weights no likelihood"))
        elif self.credit == "global":
            refuse(self, {"credit_cells": "credit=global has no cells"})
        elif self.rank_history:
            refuse(self, {"credit_cells": "rank_history makes ranks of whole rewards, which lie in no cell"})
        elif self.policy == "field" and not self.rank_history and set(checked(self.reward).names) <= set(CREDITS):
            refuse(self, {"advantage": "all of this reward has local credit, whose baseline is the group's mean"})
        if self.num_iterations == 1:
            refuse(self, dict.fromkeys(("epsilon", "epsilon_high"), "with num_iterations=1 the ratio is always 1"))
        else:
            self._check_iterations()
        if self.train_embeddings != "none":
            raise ValueError("train_embeddings has no meaning here: no loss reaches the words.")

    def _check_iterations(self) -> None:
        """What several updates of the same rollouts are not compatible with: a run cannot go on in their middle."""
        times = self.num_iterations
        name = {"steps": "save_steps", "best": "eval_steps"}.get(self.save_strategy)
        if name is not None and ((every := getattr(self, name)) is None or every < 1 or every % times):
            raise ValueError(
                f"{name}={every} must be a multiple of num_iterations={times}: a run cannot go on in the middle of "
                "its rollouts."
            )
        for name in ("auto_find_batch_size", "enable_jit_checkpoint"):
            if getattr(self, name, False):
                raise ValueError(f"{name} is not possible with num_iterations={times}: rollouts would be lost.")

    def _check_learned(self) -> None:
        """What learns beside the model."""
        if not self.ppo_learning_rate > 0:
            raise ValueError(f"ppo_learning_rate must be positive, got {self.ppo_learning_rate}.")
        if self.critic_warmup < 0:
            raise ValueError(f"critic_warmup must not be negative, got {self.critic_warmup}.")
        if self.advantage != "value":
            refuse(self, {"critic_warmup": "it is of advantage=value"})
        if not self.learn_noise:
            if self.advantage != "value":
                refuse(self, {"ppo_learning_rate": "it is of learn_noise=True and of advantage=value"})
            return
        if self.policy == "field":
            refuse(self, {"learn_noise": "policy=field draws no embedding"})
        if self.noise_end != 1:
            raise ValueError(f"noise_end={self.noise_end} contradicts learn_noise=True: leave one of them out.")
        low, high = NOISE_RANGE
        if not low <= self.embedding_noise <= high:
            raise ValueError(
                f"embedding_noise must lie between {low} and {high} with learn_noise=True, got {self.embedding_noise}."
            )

    def sampler(self, share: float = 1.0) -> MaskSampler:
        """
        What draws the masks.

        Args:
            share (`float`, *optional*, defaults to 1.0): of the noise.

        Returns:
            [`~sampling.MaskSampler`].
        """
        drawn = self.num_generations // (2 if self.policy == "both" else 1)
        return MaskSampler(
            embedding=0 if self.policy == "field" else drawn,
            field=0 if self.policy == "embedding" else drawn,
            tokens=False,
            thresholds=(),
            embedding_noise=share * self.embedding_noise,
            field_noise=share * self.field_noise,
        )
