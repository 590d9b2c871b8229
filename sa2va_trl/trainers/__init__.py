from .sft import SegSFTConfig, SegSFTTrainer
from .trainable import get_peft_config, trainable_table


__all__ = ["SegSFTConfig", "SegSFTTrainer", "get_peft_config", "trainable_table"]
