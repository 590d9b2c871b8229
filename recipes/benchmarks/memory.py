"""
What training of the published sizes needs of memory, counted on models without values, and which cards take it:

    python recipes/benchmarks/memory.py

writes `docs/memory.md`. Nothing of it runs on a GPU.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import bitsandbytes
import torch
from peft import get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import (
    InternVLConfig,
    InternVLVisionConfig,
    LlamaConfig,
    PreTrainedConfig,
    Qwen2_5_VLConfig,
    Qwen2Config,
    Qwen3VLConfig,
)

from sa2va_trl import Sa2VAConfig, Sa2VAForConditionalGeneration
from sa2va_trl.adapters.presets import freeze_all_but_full, get_peft_config
from sa2va_trl.files import whole_file
from sa2va_trl.models.grounding import whole_weights
from sa2va_trl.trainers.memory import GIB, Need, Sharing, count_bytes, step_of
from sa2va_trl.trainers.step_bytes import Batch


PAGE = Path(__file__).resolve().parents[2] / "docs" / "memory.md"
CARDS = (24, 48, 80)
# Of a card's memory, what a run may need by this count: the allocator's fragments come on top.
SPARE = 0.9
# One row with one object: 7 tiles of 256 tokens for InternVL, and about as many of Qwen's tokens; 10 answered.
ROW = Batch(rows=1, tokens=1900, image_tokens=1792, answers=10)
LONG_ROW = Batch(rows=1, tokens=3180, image_tokens=3072, answers=10)  # 12 tiles


def _internvl(kind: type, sizes: tuple[int, ...], vocabulary: int, large: bool = False) -> PreTrainedConfig:
    vision = {"attention_bias": True}
    if large:
        vision = {"hidden_size": 3200, "num_hidden_layers": 45, "num_attention_heads": 25, "intermediate_size": 12800}
        vision |= {"use_qk_norm": True, "norm_type": "rms_norm"}
    text = kind(**_text(sizes), vocab_size=vocabulary, tie_word_embeddings=False)
    vision = InternVLVisionConfig(**vision, image_size=448)
    return InternVLConfig(vision_config=vision, text_config=text, tie_word_embeddings=False)


def _text(sizes: tuple[int, ...]) -> dict[str, int]:
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size")
    return dict(zip(names, sizes, strict=True))


def _qwen(kind: type, sizes: tuple[int, ...], vocabulary: int) -> PreTrainedConfig:
    text = {**_text(sizes), "vocab_size": vocabulary}
    if kind is Qwen2_5_VLConfig:
        vision = {"hidden_size": 1280, "depth": 32, "num_heads": 16, "intermediate_size": 3420}
    else:
        vision = {"hidden_size": 1024, "depth": 24, "num_heads": 16, "intermediate_size": 4096}
        vision["deepstack_visual_indexes"] = [5, 11, 17]
    vision["out_hidden_size"] = sizes[0]
    return kind(vision_config=vision, text_config=text, tie_word_embeddings=False)


def published() -> dict[str, PreTrainedConfig]:
    """The VLMs of the published checkpoints, by their names."""
    return {
        "Sa2VA-1B": _internvl(Qwen2Config, (896, 24, 14, 2, 4864), 151679),
        "Sa2VA-InternVL3-2B": _internvl(Qwen2Config, (1536, 28, 12, 2, 8960), 151679),
        "Sa2VA-Qwen3-VL-2B": _qwen(Qwen3VLConfig, (2048, 28, 16, 8, 6144), 151674),
        "Sa2VA-4B": _internvl(Qwen2Config, (2048, 36, 16, 2, 11008), 151679),
        "Sa2VA-Qwen2_5-VL-3B": _qwen(Qwen2_5_VLConfig, (2048, 36, 16, 2, 11008), 151670),
        "Sa2VA-Qwen3-VL-4B": _qwen(Qwen3VLConfig, (2560, 36, 32, 8, 9728), 151674),
        "Sa2VA-8B": _internvl(LlamaConfig, (4096, 32, 32, 8, 14336), 92558),
        "Sa2VA-InternVL3-8B": _internvl(Qwen2Config, (3584, 28, 28, 4, 18944), 151679),
        "Sa2VA-Qwen2_5-VL-7B": _qwen(Qwen2_5_VLConfig, (3584, 28, 28, 4, 18944), 151670),
        "Sa2VA-InternVL3-14B": _internvl(Qwen2Config, (5120, 48, 40, 8, 13824), 151679),
        "Sa2VA-26B": _internvl(LlamaConfig, (6144, 48, 48, 8, 16384), 92558, large=True),
    }


def skeleton(config: PreTrainedConfig, trainable: str, packed: bool = False) -> Sa2VAForConditionalGeneration:
    """
    A published size as training begins with it, on the meta device: bfloat16, what trains in float32.

    Args:
        config (`PreTrainedConfig`): of the VLM.
        trainable (`str`): a preset.
        packed (`bool`, *optional*, defaults to `False`): the language model's layers in 4 bits, nf4 twice quantised.
    """
    with whole_weights(), torch.device("meta"):
        model = Sa2VAForConditionalGeneration(Sa2VAConfig(vlm_config=config)).to(torch.bfloat16)
        adapter = get_peft_config(trainable, seg_token_id=0)
        if adapter is None:
            freeze_all_but_full(model)
        else:
            get_peft_model(model, adapter)
        if packed:
            for module in list(model.vlm.model.language_model.modules()):
                if isinstance(module, LoraLayer):
                    module.base_layer = _in_4_bits(module.base_layer)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return model


def _in_4_bits(layer: nn.Linear) -> nn.Linear:
    packed = bitsandbytes.nn.Linear4bit(
        layer.in_features, layer.out_features, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4"
    )
    packed.bias = layer.bias
    return packed


ARGS = SimpleNamespace(
    bf16=True,
    fp16=False,
    optim="adamw_torch_fused",
    gradient_checkpointing=True,
    gradient_checkpointing_kwargs={"use_reentrant": False},
)
# Column, preset, 4 bits, from the cache, sharing
RUNS = (
    ("LoRA", "stage1", False, False, Sharing()),
    ("QLoRA", "stage1", True, False, Sharing()),
    ("LoRA, ZeRO-3 × 2", "stage1", False, False, Sharing(2, 3)),
    ("LoRA, ZeRO-3 × 4", "stage1", False, False, Sharing(4, 3)),
    ("LoRA, ZeRO-3 × 8", "stage1", False, False, Sharing(8, 3)),
    ("LoRA, ZeRO-3 × 4, offload", "stage1", False, False, Sharing(4, 3, True, True)),
    ("full, ZeRO-3 × 8", "full", False, False, Sharing(8, 3)),
    ("head, from the cache", "head", False, True, Sharing()),
)


def needs(config: PreTrainedConfig, batch: Batch = ROW) -> Iterator[tuple[str, Need]]:
    """What each of `RUNS` needs of one size."""
    models, steps = {}, {}
    for name, trainable, packed, cached, sharing in RUNS:
        if (trainable, packed) not in models:
            models[trainable, packed] = skeleton(config, trainable, packed)
        # However many share it, a step of a process is the same.
        step = (trainable, packed, cached, sharing.stage)
        if step not in steps:
            steps[step] = step_of(models[trainable, packed], batch, ARGS, sharing=sharing, cached=cached)
        yield name, count_bytes(models[trainable, packed], ARGS, steps[step], sharing=sharing)


def card(size: int) -> str:
    """The smallest of `CARDS` that takes a run."""
    return next((str(each) for each in CARDS if size <= SPARE * each * GIB), "–")


TEXT = """# What training needs of memory

Counted, not measured: no run of this page has been on a GPU. `python recipes/benchmarks/memory.py` writes it. Every
training (but under FSDP) says the same of itself before its first step:

    {example}; …

GiB for each GPU, and in brackets the smallest card of {cards} GB that takes it with a tenth to spare. A step of one
row: 1,900 tokens, of which 1,792 are the image's (7 tiles), one object; bfloat16, `gradient_checkpointing: true`,
AdamW.

{table}

Of LoRA alone, what the parts are, and the total of a row of 3,180 tokens (12 tiles):

{parts}

With offload a process also needs memory of the host: {host} GiB for each of the four with Sa2VA-InternVL3-8B.
`train_embeddings: full` trains embeddings and head whole, two matrices of vocabulary × width, of which each number
takes 4 bytes of weight, 4 of gradient and 8 of AdamW: {embeddings} GiB more for Sa2VA-InternVL3-8B with LoRA. A
published model writes `[SEG]` already and does not need it.

## What is counted

* **Weights**: every tensor in its type, frozen ones in bfloat16, trained ones in float32. In 4 bits, half a byte a
  number, a byte a block of 64 and four bytes for 256 blocks (nf4, quantised twice, as `--quantization 4bit` does);
  the vision tower, SAM 2, embeddings and head stay as they are.
* **Trained**: gradients in the type of the weight and AdamW's two moments. DDP copies the gradients once. Under ZeRO
  all weights are bfloat16 and the optimizer has float32 copies: 12 bytes a trained number, shared out; the buffer
  that gradients are reduced in is 500 million numbers (`reduce_bucket_size`), 0.93 GiB. A small `reduce_bucket_size`
  in a DeepSpeed config of your own gives that back.
* **ZeRO-3** holds up to a billion gathered weights at a time (`stage3_max_live_parameters`), 1.86 GiB, beside its
  share.
* **Activations**: a copy of the model without values takes a step, forward and backward, and every tensor is watched
  from where it is made to where it is freed. So checkpointing, autocast's copies of weights, LoRA's dropout, layers
  that are unpacked from 4 bits, SAM 2's encoder and the losses are in it as torch runs them. Attention is taken to be
  fused (SDPA or flash attention): no matrix of tokens by tokens is kept.
* **The device**: {context:.1f} GiB for the CUDA context and cuBLAS. NVIDIA gives no number; 0.3 to 0.6 are seen.

Not counted: fragments of torch's allocator and NCCL's buffers (hence the tenth), workspaces inside kernels, and what
DeepSpeed's engine keeps for itself. Computing the features of a cache is a forward pass and needs less than LoRA.

On a CPU the same count is held against the allocator of torch in a real training step
(`tests/trainers/test_step_bytes.py`): LoRA, head and full, with and without checkpointing, float32 and bfloat16,
three families; within 8 %. What Python and its libraries take is not in the line.

## When it does not fit

In this order: `gradient_checkpointing: true`; `per_device_train_batch_size: 1` with `gradient_accumulation_steps`;
`--quantization 4bit`; `trainable: head` with `lm_weight: 0`, which reads cached features;
`accelerate_configs/zero3.yaml` on several GPUs, then `zero3_offload.yaml`.
"""


def table(head: list[str], rows: list[list[str]]) -> str:
    """In Markdown."""
    lines = [head, ["---"] + ["--:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", type=Path, default=PAGE, help="the page that is written")
    args = parser.parse_args()
    rows, parts = [], []
    for name, config in published().items():
        found = dict(needs(config))
        rows.append([name, *(f"{need.total / GIB:.1f} ({card(need.total)})" for need in found.values())])
        print(*rows[-1], flush=True)
        lora = found["LoRA"]
        model = skeleton(config, "stage1")
        longer = count_bytes(model, ARGS, step_of(model, LONG_ROW, ARGS))
        sizes = (lora.weights, lora.trained, lora.activations, lora.total, longer.total)
        parts.append([name, *(f"{size / GIB:.1f}" for size in sizes)])
        if name == "Sa2VA-InternVL3-8B":
            sizes = [f"{size / GIB:.1f}" for size in (lora.total, lora.weights, lora.trained, lora.activations)]
            parts_of = "weights {1}, trained {2}, activations {3}, the device itself 0.6; 1 row of 1,900 tokens"
            example = ("A step needs about {0} GiB of GPU memory (" + parts_of + ")").format(*sizes)
            host = found["LoRA, ZeRO-3 × 4, offload"].host
            matrices = 2 * config.text_config.vocab_size * config.text_config.hidden_size
    text = TEXT.format(
        example=example,
        cards=", ".join(map(str, CARDS)),
        table=table(["", *(run[0] for run in RUNS)], rows),
        parts=table(["", "weights", "trained", "activations", "total", "total, 12 tiles"], parts),
        host=f"{host / GIB:.1f}",
        # (Beside the frozen matrices in bfloat16, which PEFT keeps.)
        embeddings=f"{16 * matrices / GIB:.1f}",
        context=lora.context / GIB,
    )
    with whole_file(args.page) as part:
        part.write_text(text)


if __name__ == "__main__":
    main()
