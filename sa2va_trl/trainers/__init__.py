from .dpo import SegDPOConfig, SegDPOTrainer
from .sft import SegSFTConfig, SegSFTTrainer
from .trainable import get_peft_config, trainable_table


__all__ = [
    "SegDPOConfig",
    "SegDPOTrainer",
    "SegSFTConfig",
    "SegSFTTrainer",
    "get_peft_config",
    "trainable_table",
]
