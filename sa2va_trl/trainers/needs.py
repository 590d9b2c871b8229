"""The line before training that says what it needs of memory, beside what is there."""

import logging
from typing import Any

import torch
from peft import PeftModel
from transformers.trainer_utils import TrainOutput

from .memory import Need, Sharing, count_bytes, free_bytes, is_packed_linear, memory_line, step_of, weight_bytes
from .step_bytes import Batch


# Of a row that nothing is known of, such as a stream's: a square image of so many pixels, and words.
UNKNOWN_SIDE, UNKNOWN_WORDS = 1024, 128


class NeedsMixin:
    """
    Says before training what a step needs of memory and what the device has; where it will not fit, what helps.

    Of the trainer it needs what `Trainer` has, `_tell`, `largest_row`, `features`, `data_collator` and
    `mask_loss_options`.
    """

    _needs_told = False

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """As in `Trainer`."""
        if not self._needs_told and not self.is_fsdp_enabled and self.is_world_process_zero():
            self.tell_needs()
        self._needs_told = True
        return super().train(*args, **kwargs)

    def batch_sizes(self) -> Batch:
        """The sizes of a batch of the longest training row."""
        rows, largest = self.args.per_device_train_batch_size, self.largest_row
        if largest is None:
            seen = self.processing_class.num_image_tokens((UNKNOWN_SIDE, UNKNOWN_SIDE))
            return Batch(rows, seen + UNKNOWN_WORDS, seen)
        return Batch(rows, largest.tokens, largest.image_tokens, max(1, largest.images), max(1, largest.masks))

    def tell_needs(self) -> Need:
        """Log what a step needs, and a warning where the device has less; returns what it needs."""
        model = self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model
        device, batch = self.args.device, self.batch_sizes()
        plugin = self.accelerator.state.deepspeed_plugin if self.is_deepspeed_enabled else None
        options = {
            "sharing": Sharing.of(plugin, self.args.world_size),
            "gpu": device.type == "cuda",
        }
        activations = step_of(
            model,
            batch,
            self.args,
            **options,
            cached=self.features is not None,
            mask_options={**self.mask_loss_options, "mask_size": self.args.mask_size},
        )
        need = count_bytes(model, self.args, activations, **options)
        reference = getattr(self, "ref_model", None)
        if reference is not None:
            own = weight_bytes(reference)
            need = Need(need.weights + own, need.trained, need.activations, need.context, need.host)
        self._tell(memory_line(need, batch, device), shown=True)
        _, free = free_bytes(device)
        # On a CPU the weights are there already.
        if need.total - (0 if device.type == "cuda" else need.weights) > free:
            helps = "; ".join(self.what_helps(model))
            self._tell(f"This may not fit into memory. What helps, in this order: {helps}.", logging.WARNING)
        return need

    def what_helps(self, model: torch.nn.Module) -> list[str]:
        """What would need less memory, most of it for least first."""
        args, helps = self.args, []
        reads = any(parameter.requires_grad for parameter in model.vlm.parameters())
        if reads and not args.gradient_checkpointing:
            helps.append("gradient_checkpointing: true")
        if args.per_device_train_batch_size > 1:
            steps = args.gradient_accumulation_steps * args.per_device_train_batch_size
            helps.append(f"per_device_train_batch_size: 1 with gradient_accumulation_steps: {steps}")
        if not any(is_packed_linear(module) for module in model.modules()):
            helps.append("quantization: 4bit with trainable: stage1 (QLoRA)" if reads else "quantization: 4bit")
        if self.features is None and reads:
            helps.append("trainable: head with lm_weight: 0, which trains from cached features")
        elif self.features is None:
            helps.append("cache_features: on, which computes what the head trains from once")
        if args.device.type == "cuda":
            helps.append(
                "several GPUs (accelerate launch --use_deepspeed --zero_stage 3), with --offload_param_device cpu "
                "--offload_optimizer_device cpu where that is not enough"
            )
        return helps or ["a smaller model"]
