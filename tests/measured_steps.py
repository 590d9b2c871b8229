"""Small runs that look at torch's allocator in every micro-batch."""

import copy
import gc

import torch
from torch.profiler import ProfilerActivity, profile

from sa2va_trl import Sa2VAForConditionalGeneration, SegSFTConfig, SegSFTTrainer, tiny_sa2va
from sa2va_trl.data import synthetic_dataset
from sa2va_trl.trainers.memory import step_of


def model_of(family: str, width: int, layers: int):
    """The tiny network with another language model, and its processor."""
    model, processor = tiny_sa2va(image_size=128, family=family, max_patches=12)
    config = copy.deepcopy(model.config)
    text = config.vlm_config.text_config
    text.hidden_size, text.intermediate_size, text.num_hidden_layers = width, 3 * width, layers
    text.num_attention_heads, text.num_key_value_heads = width // 32, width // 64
    text.layer_types = ["full_attention"] * layers
    if family != "internvl":
        config.vlm_config.vision_config.out_hidden_size = width
        text.rope_parameters["mrope_section"] = [4, 6, 6]
    if family == "qwen3_vl":
        text.head_dim = 32
    return Sa2VAForConditionalGeneration(config), processor


class Measured(SegSFTTrainer):
    """Looks at the allocator in every micro-batch; from the second on, gradients are there before it."""

    def training_step(self, model, inputs, *args, **kwargs):
        tensors = [value for value in inputs.values() if isinstance(value, torch.Tensor)]
        if "features" in inputs:
            tensors += [inputs["features"].seg_states, *inputs["features"].pyramid]
        batch = sum(tensor.nbytes for tensor in tensors)
        gc.collect()
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as run:
            result = super().training_step(model, inputs, *args, **kwargs)
        events = [event for event in run.profiler.kineto_results.events() if event.name() == "[memory]"]
        live = top = batch
        for event in sorted(events, key=lambda event: event.start_ns()):
            live += event.nbytes()
            top = max(top, live)
        self.measured = top
        return result


def trainer_of(folder, family="internvl", width=256, layers=4, rows=2, size=64, bf16=False, **options):
    model, processor = model_of(family, width, layers)
    options = {"trainable": "stage1", "gradient_checkpointing": False, **options}
    return Measured(
        model=model.to(torch.bfloat16) if bf16 else model,
        args=SegSFTConfig(
            str(folder),
            max_steps=1,
            per_device_train_batch_size=rows,
            gradient_accumulation_steps=2,
            use_cpu=True,
            bf16=bf16,
            report_to="none",
            logging_strategy="no",
            save_strategy="no",
            disable_tqdm=True,
            **options,
        ),
        train_dataset=synthetic_dataset(num_videos=1, frames_per_video=2 * rows, size=size),
        processing_class=processor,
    )


def asked(trainer) -> tuple[tuple, dict]:
    """What `step_of` is called with."""
    model = trainer.model.get_base_model() if hasattr(trainer.model, "get_base_model") else trainer.model
    features = {"cached": trainer.features is not None, "mask_options": trainer.mask_loss_options}
    return (model, trainer.batch_sizes(), trainer.args), {"gpu": False, **features}


def counted(trainer) -> int:
    args, options = asked(trainer)
    return step_of(*args, **options)
