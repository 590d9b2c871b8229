"""Options of supervised fine-tuning, and those of TRL's that have no meaning for it."""

from dataclasses import dataclass, field

from trl import SFTConfig

from .base_config import SegArguments


_ANSWERS_ONLY = "the loss is always on the assistant's turns, and on them only"
_NO_TEXT = "rows are never turned into token rows; they keep their images and masks"
SFT_REFUSED = {
    "packing": "rows with images cannot be packed",
    "eval_packing": "rows with images cannot be packed",
    "packing_strategy": "rows with images cannot be packed",
    "padding_free": "rows with images are padded",
    "pad_to_multiple_of": "batches are padded to their longest row",
    "max_length": "truncating could cut image tokens or [SEG]; shorten the text or lower the number of tiles",
    "truncation_mode": "nothing is truncated",
    "dataset_text_field": _NO_TEXT,
    "dataset_kwargs": _NO_TEXT,
    "shuffle_dataset": "the sampler shuffles; set `train_sampling_strategy` instead",
    "completion_only_loss": _ANSWERS_ONLY,
    "assistant_only_loss": _ANSWERS_ONLY,
    "loss_type": "the language loss is the cross-entropy; see the `*_weight` options for the others",
    "label_smoothing_factor": "the language loss is the plain cross-entropy",
    "router_aux_loss_coef": "the supported language models have no router",
    "chat_template_path": "the prompt template belongs to the checkpoint (`prompt_template` in its config)",
    "eos_token": "the end of an answer belongs to the prompt template",
    "pad_token": "the tokenizer's own padding token is used",
    "eval_do_concat_batches": "Dice and IoU are averaged over all batches",
    "batch_eval_metrics": "Dice and IoU are averaged over all batches",
    "average_tokens_across_devices": "every row counts alike, however many tokens its answer has",
    "label_names": "labels and masks are what the collator makes",
    "use_liger_kernel": "it would replace the forward that also draws the masks",
    "trust_remote_code": "the model is native; no code is downloaded",
}


@dataclass
class SegSFTConfig(SegArguments, SFTConfig):
    r"""
    Configuration of [`SegSFTTrainer`]: that of [`trl.SFTConfig`], that of [`~trainers.base_config.SegArguments`], and:

    > [!NOTE]
    > Different from `SFTConfig`: `max_length` is `None`, `bf16` is off where there is no GPU, and
    > `metric_for_best_model` is `"dice"` if the best checkpoint is to be loaded.

    Parameters:
        lm_weight (`float`, *optional*, defaults to 1.0):
            Weight of the cross-entropy of the answers, not negative; with 0, features of what is frozen can be cached.

    Raises:
        `ValueError`: options of TRL's that have no meaning here, options that contradict each other, or values out of
            range; the message names them.

    Example:

    ```python
    >>> from sa2va_trl import SegSFTConfig

    >>> args = SegSFTConfig("sa2va-sft", lora_r=16, dice_weight=1.0, use_cpu=True, report_to="none")
    >>> args.lm_weight, args.mask_weight, args.dice_weight
    (1.0, 2.0, 1.0)

    >>> SegSFTConfig("sa2va-sft", packing=True)
    Traceback (most recent call last):
        ...
    ValueError: SegSFTConfig does not take these options:
      packing=True: rows with images cannot be packed

    ```
    """

    _VALID_DICT_FIELDS = [*SFTConfig._VALID_DICT_FIELDS, "augmentation"]
    _refused = SFT_REFUSED

    lm_weight: float = field(default=1.0, metadata={"help": "Weight of the cross-entropy of the answers' words."})
    max_length: int | None = field(
        default=None, metadata={"help": "Not available: conversations are never truncated."}
    )

    def __post_init__(self):
        super().__post_init__()
        if self.lm_weight < 0:
            raise ValueError(f"lm_weight must not be negative, got {self.lm_weight}.")
