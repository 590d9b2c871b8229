from ..adapters.presets import get_peft_config, trainable_table
from .dpo import SegDPOConfig, SegDPOTrainer
from .hard_sample import HardSampleConfig, HardSampleTrainer
from .sft import SegSFTConfig, SegSFTTrainer


__all__ = [
    "HardSampleConfig",
    "HardSampleTrainer",
    "SegDPOConfig",
    "SegDPOTrainer",
    "SegSFTConfig",
    "SegSFTTrainer",
    "get_peft_config",
    "trainable_table",
]
