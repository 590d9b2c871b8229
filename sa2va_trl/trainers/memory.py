"""What a run needs of memory, counted from its model and options, and what is there."""

import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers import TrainingArguments

from ..models import Sa2VAForConditionalGeneration
from .step_bytes import Batch, step_bytes


if TYPE_CHECKING:
    from accelerate import DeepSpeedPlugin

GIB = 2**30
# Of a process on a GPU before its first tensor: the CUDA context and cuBLAS's workspaces. NVIDIA gives no number;
# 0.3 to 0.6 GiB are seen on recent cards.
CUDA_CONTEXT = 0.6 * GIB
# Of an optimizer, bytes a trained number. AdamW keeps two moments in the type of the weight, which is float32 here.
ADAMW, ADAMW_8BIT = 8, 2


@dataclass(frozen=True)
class Sharing:
    """
    How processes share what training keeps.

    Args:
        processes (`int`, *optional*, defaults to 1): one a GPU.
        stage (`int`, *optional*, defaults to 0):
            Of DeepSpeed's ZeRO (Rajbhandari et al., SC 2020, arXiv 1910.02054): 1 shares out optimizer states, 2
            gradients, 3 weights too.
        offload_optimizer, offload_weights (`bool`, *optional*, default to `False`): to the host's memory.
        bucket (`int`, *optional*, defaults to 500,000,000):
            Numbers in the buffer that gradients are reduced in (`reduce_bucket_size`).
        gathered (`int`, *optional*, defaults to 1,000,000,000):
            Weights that stage 3 holds whole at a time (`stage3_max_live_parameters`).
    """

    processes: int = 1
    stage: int = 0
    offload_optimizer: bool = False
    offload_weights: bool = False
    bucket: int = 500_000_000
    gathered: int = 1_000_000_000

    @classmethod
    def of(cls, plugin: "DeepSpeedPlugin | None", processes: int) -> "Sharing":
        """As accelerate's plugin of DeepSpeed says (`None`: DDP), with DeepSpeed's defaults for what it leaves out."""
        if plugin is None:
            return cls(processes)
        zero = plugin.deepspeed_config.get("zero_optimization", {})

        def number(name: str, default: int) -> int:
            value = zero.get(name, default)
            return int(value) if isinstance(value, int | float) else default  # "auto" is settled later

        def offloads(name: str) -> bool:
            return (zero.get(name) or {}).get("device", "none") not in ("none", None)

        return cls(
            processes,
            plugin.zero_stage,
            offloads("offload_optimizer"),
            offloads("offload_param"),
            number("reduce_bucket_size", cls.bucket),
            number("stage3_max_live_parameters", cls.gathered),
        )


@dataclass(frozen=True)
class Need:
    """
    Bytes that one process needs.

    Args:
        weights (`int`): and buffers; under ZeRO-3 its share and those gathered at a time.
        trained (`int`): gradients, optimizer states and DeepSpeed's float32 copies of what trains.
        activations (`int`): everything else of a step, see [`~trainers.step_bytes.step_bytes`].
        context (`int`): of the device itself.
        host (`int`): what is offloaded to the host's memory.
    """

    weights: int
    trained: int
    activations: int
    context: int = 0
    host: int = field(default=0)

    @property
    def total(self) -> int:
        """On the device that computes."""
        return self.weights + self.trained + self.activations + self.context


def _numel(tensor: torch.Tensor) -> int:
    return getattr(tensor, "ds_numel", tensor.numel())


def is_packed_linear(module: nn.Module) -> bool:
    """Whether a linear layer of bitsandbytes, in 4 or 8 bits."""
    return type(module).__module__.startswith("bitsandbytes") and isinstance(module, nn.Linear)


def packed_bytes(layer: nn.Linear) -> int:
    """
    Bytes of the weight of a linear layer as bitsandbytes keeps it on a device; its bias is a parameter of its own.

    In 4 bits, half a byte a number and a scale for each block of 64. With double quantisation (Dettmers et al.,
    NeurIPS 2023, arXiv 2305.14314) a scale is one byte, with a float32 for 256 of them and an offset; without it, four
    bytes. In 8 bits, a byte a number and a float32 for each row. Beside them are small tables of the codes.
    """
    count = layer.in_features * layer.out_features
    if type(layer).__name__ == "Linear8bitLt":
        return count + 4 * layer.out_features
    blocks = math.ceil(count / 64)
    scales = blocks + 4 * math.ceil(blocks / 256) + 4 * 256 + 4 if layer.weight.compress_statistics else 4 * blocks
    return math.ceil(count / 2) + scales + 4 * 16


def weight_bytes(model: nn.Module, dtype: torch.dtype | None = None) -> int:
    """
    Bytes of a model's weights and buffers.

    Args:
        model (`nn.Module`): on any device, the meta device too; quantised or sharded.
        dtype (`torch.dtype`, *optional*): that floating-point weights will be cast to.

    Returns:
        `int`: of the whole, shards counted as one.
    """
    packed = [module for module in model.modules() if is_packed_linear(module)]
    seen = {id(layer.weight) for layer in packed}
    total = sum(packed_bytes(layer) for layer in packed)
    for tensor in model.parameters():
        if id(tensor) not in seen:
            size = (dtype or tensor.dtype).itemsize if tensor.is_floating_point() else tensor.dtype.itemsize
            total += size * _numel(tensor)
    return total + sum(tensor.numel() * tensor.dtype.itemsize for tensor in model.buffers())


def optimizer_bytes(name: str) -> int:
    """Bytes a trained number that an optimizer of transformers keeps; of those not known here, AdamW's."""
    if "8bit" in name:
        return ADAMW_8BIT
    return 0 if name == "sgd" else ADAMW


def _half(args: TrainingArguments) -> torch.dtype | None:
    return torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None


def step_of(
    model: Sa2VAForConditionalGeneration,
    batch: Batch,
    args: TrainingArguments,
    *,
    sharing: Sharing = Sharing(),
    gpu: bool = True,
    cached: bool = False,
    mask_options: dict | None = None,
) -> int:
    """
    [`~trainers.step_bytes.step_bytes`] with the options of a run.

    Args:
        model (`Sa2VAForConditionalGeneration`):
            As training begins, with the adapter in it and the types that its weights train in; on any device.
        batch (`Batch`): the sizes of a process's batch.
        args (`TrainingArguments`): `bf16`, `fp16` and gradient checkpointing count.
        sharing (`Sharing`, *optional*): among processes; one process by default.
        gpu, cached, mask_options: of `step_bytes`.

    Returns:
        `int`.
    """
    # DeepSpeed casts the weights themselves.
    kinds = {"dtype" if sharing.stage else "autocast": _half(args)}
    checkpointing = args.gradient_checkpointing and (args.gradient_checkpointing_kwargs or True)
    return step_bytes(
        model, batch, **kinds, gpu=gpu, cached=cached, checkpointing=checkpointing, mask_options=mask_options
    )


def count_bytes(
    model: Sa2VAForConditionalGeneration,
    args: TrainingArguments,
    activations: int,
    *,
    sharing: Sharing = Sharing(),
    gpu: bool = True,
) -> Need:
    """
    What a process of a run needs.

    Args:
        model (`Sa2VAForConditionalGeneration`): see [`step_of`].
        args (`TrainingArguments`): `bf16`, `fp16` and `optim` count.
        activations (`int`): from [`step_of`].
        sharing (`Sharing`, *optional*): among processes; one process by default.
        gpu (`bool`, *optional*, defaults to `True`): whether it runs on one.

    Returns:
        `Need`.
    """
    zero, shares = sharing.stage > 0, sharing.processes
    dtype = _half(args) if zero else None
    trained = [(p.dtype, _numel(p)) for p in model.parameters() if p.requires_grad]
    count = sum(size for _, size in trained)
    gradients = sum((dtype or kind).itemsize * size for kind, size in trained)
    states = optimizer_bytes(args.optim) * count
    weights = weight_bytes(model, dtype)
    host = 0
    if not zero:
        # DDP copies gradients into buckets as large as they are.
        kept = states + gradients * (2 if shares > 1 else 1)
    else:
        # The optimizer works on float32 copies, and its step on float32 gradients when activations are gone.
        kept, own = (states + 4 * count) // shares, gradients // (shares if sharing.stage > 1 else 1)
        activations = max(activations, 0 if sharing.offload_optimizer else 4 * count // shares)
        bucket = sharing.bucket * (dtype or torch.float32).itemsize
        if sharing.offload_optimizer:
            host, kept, own = kept + own, 0, 0
        kept += own + bucket
    if sharing.stage == 3:
        size = (dtype or torch.float32).itemsize
        live = min(weights, size * max(sharing.gathered, *(_numel(tensor) for tensor in model.parameters())))
        share = weights // shares
        weights = live + (0 if sharing.offload_weights else share)
        host += share if sharing.offload_weights else 0
    return Need(weights, kept, activations, int(CUDA_CONTEXT) if gpu else 0, host)


def free_bytes(device: torch.device) -> tuple[int, int]:
    """
    Bytes that a device has, and those that this process has or can get. Of a CPU, the host's memory, or what the
    control group leaves of it.
    """
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return total, free + torch.cuda.memory_reserved(device)
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    free, total = _meminfo().get("MemAvailable", pages), pages
    group = Path("/sys/fs/cgroup")
    limit = group / "memory.max"
    if limit.is_file() and (text := limit.read_text().strip()) != "max":
        total = min(total, int(text))
        # What the group has read from files is given back when it is asked for.
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        used = int((group / "memory.current").read_text()) - int(stat.get("inactive_file", 0))
        free = min(free, int(text) - used)
    return total, free


def _meminfo() -> dict[str, int]:
    file = Path("/proc/meminfo")
    lines = file.read_text().splitlines() if file.is_file() else []
    pairs = (line.replace(":", "").split() for line in lines)
    return {words[0]: int(words[1]) * 1024 for words in pairs if len(words) > 1}


def memory_line(need: Need, batch: Batch, device: torch.device) -> str:
    """One line: what a step needs, and what the device has."""
    total, free = free_bytes(device)
    gpu = device.type == "cuda"
    kind = "GPU memory" if gpu else "memory for tensors"
    parts = f"weights {_gib(need.weights)}, trained {_gib(need.trained)}, activations {_gib(need.activations)}"
    parts += f", the device itself {_gib(need.context)}" if need.context else ""
    rows = f"{batch.rows} row{'s' if batch.rows > 1 else ''} of {batch.tokens:,} tokens"
    there = f"{device if gpu else 'the host'} has {_gib(total)} GiB, {_gib(free)} free"
    host = f" and {_gib(need.host)} GiB of the host's" if need.host else ""
    return f"A step needs about {_gib(need.total)} GiB of {kind}{host} ({parts}; {rows}); {there}."


def _gib(size: int) -> str:
    return f"{size / GIB:.{1 if size >= 0.1 * GIB else 2}f}"
