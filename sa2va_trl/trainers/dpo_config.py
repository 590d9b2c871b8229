"""Options of preference optimisation over masks, and those of TRL's that have no meaning for it."""

from dataclasses import dataclass, field

import torch
from trl import DPOConfig

from .. import losses
from ..adapters.presets import LORA, WHOLE
from ..preferences.pairs import CHOSEN, REJECTED, check_online
from .base_config import SegArguments, refuse


_NO_TOKENS = "preferences are over masks; no log-probability of a token is computed"
DPO_REFUSED = {
    "max_length": "truncating could cut image tokens or [SEG]; shorten the text or lower the number of tiles",
    "truncation_mode": "nothing is truncated",
    "padding_free": "rows with images are padded",
    "pad_to_multiple_of": "batches are padded to their longest row",
    "precompute_ref_log_probs": "the reference is a pass of the mask decoder; cache the features instead",
    "precompute_ref_batch_size": "the reference is a pass of the mask decoder; cache the features instead",
    "loss_weights": "one loss_type at a time; `sft_weight` adds the supervised losses",
    "ld_alpha": _NO_TOKENS,
    "f_divergence_type": _NO_TOKENS,
    "f_alpha_divergence_coef": _NO_TOKENS,
    "use_weighting": _NO_TOKENS,
    "discopop_tau": _NO_TOKENS,
    "sync_ref_model": "the reference is the model that training starts from",
    "ref_model_mixup_alpha": "the reference is the model that training starts from",
    "ref_model_sync_steps": "the reference is the model that training starts from",
    "router_aux_loss_coef": "the supported language models have no router",
    "pad_token": "the tokenizer's own padding token is used",
    "label_smoothing_factor": "see `label_smoothing` with loss_type='robust'",
    "eval_do_concat_batches": "Dice and IoU are averaged over all batches",
    "batch_eval_metrics": "Dice and IoU are averaged over all batches",
    "label_names": "masks are what the collator makes",
    "use_liger_kernel": "it would replace the forward that also draws the masks",
    "trust_remote_code": "the model is native; no code is downloaded",
}


@dataclass
class SegDPOConfig(SegArguments, DPOConfig):
    r"""
    Configuration of [`SegDPOTrainer`]: that of [`trl.DPOConfig`], that of [`~trainers.base_config.SegArguments`], and:

    > [!NOTE]
    > Different from `SegSFTConfig`: `trainable` is `"head"` by default. Different from `DPOConfig`: one `loss_type` of
    > `"sigmoid"`, `"hinge"`, `"ipo"` and `"robust"`.

    Parameters:
        score (`str`, *optional*, defaults to `"region"`):
            The implicit reward of a mask: `"dice"`, `"log_dice"` or `"region"`, see [`~losses.mask_rewards`].
        use_reference (`bool`, *optional*, defaults to `True`):
            Measure rewards against the model that training starts from.
        sft_weight (`float`, *optional*, defaults to 0.0):
            Weight of the supervised losses (`mask_weight` x BCE + `dice_weight` x Dice + ...) on the ground truth, not
            negative.
        pairs (`str`, *optional*, defaults to `"dataset"`):
            `"dataset"`: rows hold `chosen_mask` and `rejected_mask`. `"online"`: pairs are mined from the present
            policy, batch by batch, see [`~preferences.mine_pairs`]; those that rows hold are not looked at.
        allow_worse (`bool`, *optional*, defaults to `False`):
            Take rows whose chosen mask is worse than the rejected one, with a warning that counts them.
        online_chosen (`str`, *optional*, defaults to `"ground_truth"`):
            The preferred mask of an online pair, see [`~preferences.make_pair`].
        online_rejected (`str`, *optional*, defaults to `"greedy"`):
            The rejected mask of an online pair, see [`~preferences.make_pair`].
        min_gap (`float`, *optional*, defaults to 0.15):
            Least difference in Dice of an online pair, not negative.

    Raises:
        `ValueError`: options of TRL's that have no meaning here, options that contradict each other, or values out of
            range; the message names them.

    Example:

    ```python
    >>> from sa2va_trl import SegDPOConfig

    >>> args = SegDPOConfig("sa2va-dpo", score="dice", beta=0.2, use_cpu=True, report_to="none")
    >>> args.score, args.loss_type, args.pairs
    ('dice', ['sigmoid'], 'dataset')

    >>> SegDPOConfig("sa2va-dpo", min_gap=0.3)
    Traceback (most recent call last):
        ...
    ValueError: SegDPOConfig does not take these options:
      min_gap=0.3: only pairs=online mines pairs

    ```
    """

    _VALID_DICT_FIELDS = [*DPOConfig._VALID_DICT_FIELDS, "augmentation"]
    _refused = DPO_REFUSED

    score: str = field(
        default="region",
        metadata={"help": f"Implicit reward of a mask: one of {', '.join(losses.PREFERENCE_SCORES)}."},
    )
    use_reference: bool = field(
        default=True, metadata={"help": "Measure rewards against the model that training starts from."}
    )
    sft_weight: float = field(
        default=0.0, metadata={"help": "Weight of the supervised mask losses on the ground truth, beside the pairs'."}
    )
    pairs: str = field(
        default="dataset",
        metadata={
            "help": "Where pairs of masks come from: dataset (columns chosen_mask and rejected_mask) or online (mined "
            "from the present policy, batch by batch)."
        },
    )
    allow_worse: bool = field(
        default=False,
        metadata={"help": "With pairs=dataset: take pairs whose chosen mask is worse than the rejected one."},
    )
    online_chosen: str = field(
        default="ground_truth",
        metadata={"help": f"With pairs=online: the preferred mask, one of {', '.join(CHOSEN)}."},
    )
    online_rejected: str = field(
        default="greedy", metadata={"help": f"With pairs=online: the rejected mask, one of {', '.join(REJECTED)}."}
    )
    min_gap: float = field(default=0.15, metadata={"help": "With pairs=online: least difference in Dice of a pair."})
    max_length: int | None = field(
        default=None, metadata={"help": "Not available: conversations are never truncated."}
    )

    def __post_init__(self):
        super().__post_init__()
        if self.score not in losses.PREFERENCE_SCORES:
            raise ValueError(f"score must be one of {', '.join(losses.PREFERENCE_SCORES)}, got {self.score!r}.")
        if len(self.loss_type) != 1:
            raise ValueError(f"loss_type must be one of {', '.join(losses.PREFERENCE_LOSSES)}, got {self.loss_type}.")
        losses.preference_loss(torch.zeros(1), self.loss_type[0], self.beta, self.label_smoothing)
        if self.sft_weight < 0:
            raise ValueError(f"sft_weight must not be negative, got {self.sft_weight}.")
        if self.train_embeddings != "none":
            raise ValueError("train_embeddings has no meaning here: no loss reaches the words.")
        if self.pairs not in ("dataset", "online"):
            raise ValueError(f"pairs must be dataset or online, got {self.pairs!r}.")
        if self.pairs == "dataset":
            names = ("online_chosen", "online_rejected", "min_gap")
            refuse(self, dict.fromkeys(names, "only pairs=online mines pairs"))
        else:
            refuse(self, {"allow_worse": "only pairs=dataset takes pairs as they are"})
            check_online(self.online_chosen, self.online_rejected, self.min_gap)
        if self.trainable is None:
            refuse(self, dict.fromkeys(LORA, "trainable='head', the default, has no LoRA"))
        if self.disable_dropout and self.lora_dropout:
            refuse(self, {"lora_dropout": "disable_dropout=True, the default, switches it off again"})
        if self.trainable in WHOLE and not self.use_reference:
            raise ValueError(
                f"use_reference=False is not available with trainable={self.trainable!r}: TRL would load a second "
                "model all the same. Train the head or an adapter, or give a ref_model."
            )
