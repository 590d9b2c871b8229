from ..adapters.presets import get_peft_config, trainable_table
from .dpo_config import SegDPOConfig
from .dpo_trainer import SegDPOTrainer
from .grpo_config import SegGRPOConfig
from .grpo_trainer import SegGRPOTrainer
from .hard_sample_config import HardSampleConfig
from .hard_sample_trainer import HardSampleTrainer
from .sft_config import SegSFTConfig
from .sft_trainer import SegSFTTrainer


__all__ = [
    "HardSampleConfig",
    "HardSampleTrainer",
    "SegDPOConfig",
    "SegDPOTrainer",
    "SegGRPOConfig",
    "SegGRPOTrainer",
    "SegSFTConfig",
    "SegSFTTrainer",
    "get_peft_config",
    "trainable_table",
]
