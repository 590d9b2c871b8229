"""
What one training step keeps in memory, counted without computing it.

A copy of the model whose tensors have shapes and no values (torch's fake tensors) goes forward and backward through
the modules that training runs, while every tensor is watched from the operation that makes it to where it is freed.
Nothing is estimated by a formula: what autograd keeps, what gradient checkpointing computes again and what mixed
precision copies is what torch itself does.
"""

import copy
import weakref
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from .. import losses
from ..models import Sa2VAForConditionalGeneration
from ..models.outputs import SegFeatures


# Attention that keeps no matrix of tokens by tokens; the fused kernels of torch and flash attention keep the same.
FUSED = "sdpa"


@dataclass(frozen=True)
class Batch:
    """
    The sizes of a batch, all of its rows as long as the longest.

    Args:
        rows (`int`): of one process and forward pass.
        tokens (`int`): of a row, those of its images among them.
        image_tokens (`int`): of these, the ones that stand for images; 0 for text alone.
        images (`int`, *optional*, defaults to 1): that SAM 2 sees of a row.
        masks (`int`, *optional*, defaults to 1): of a row: one a `[SEG]` and image.
        answers (`int`, *optional*): positions whose tokens are learned; all that are no image by default.
    """

    rows: int
    tokens: int
    image_tokens: int
    images: int = 1
    masks: int = 1
    answers: int | None = None


class LiveBytes(TorchDispatchMode):
    """
    Bytes of the tensors that are alive: those made while it is entered, views counted once.

    Attributes:
        live, peak (`int`): now, and at most since the last `phase`.
        peaks (`list[int]`): of the phases before.
    """

    def __init__(self):
        super().__init__()
        self.live, self.peak, self.peaks = 0, 0, []
        # (A storage's address is used again after it is freed, so each is held weakly by itself.)
        self._held: dict[int, tuple[weakref.ref, int]] = {}

    def leave_out(self, tensor: torch.Tensor) -> None:
        """Count a tensor never, or no longer: a weight, or its gradient."""
        self._free(self._key(tensor, 0))

    def phase(self) -> None:
        """End a phase."""
        self.peaks.append(self.peak)
        self.peak = self.live

    def _key(self, tensor: torch.Tensor, size: int) -> int:
        storage = tensor.untyped_storage()
        key = id(storage)
        if key not in self._held or self._held[key][0]() is not storage:
            self._held[key] = (weakref.ref(storage, lambda _: self._forget(key)), size)
            self.live += size
            self.peak = max(self.peak, self.live)
        return key

    def _free(self, key: int) -> None:
        held, size = self._held[key]
        self.live -= size
        self._held[key] = (held, 0)

    def _forget(self, key: int) -> None:
        self._free(key)
        del self._held[key]

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._key(tensor, tensor.untyped_storage().nbytes())
        return result


class _Unpacked(torch.autograd.Function):
    """A linear layer in 4 or 8 bits: its weight is unpacked for each product and kept for none (bitsandbytes)."""

    @staticmethod
    def forward(ctx, inputs, shape):
        ctx.shape = shape
        return F.linear(inputs, inputs.new_empty(shape))

    @staticmethod
    def backward(ctx, gradient):
        return gradient @ gradient.new_empty(ctx.shape), None


class _PackedLinear(nn.Linear):
    def __init__(self, layer: nn.Linear, dtype: torch.dtype):
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.dtype = layer.in_features, layer.out_features, dtype
        self.weight, self.bias = torch.empty(0, dtype=dtype), layer.bias

    def forward(self, inputs):
        result = _Unpacked.apply(inputs.to(self.dtype), (self.out_features, self.in_features)).to(inputs.dtype)
        return result if self.bias is None else result + self.bias.to(result.dtype)


class _GpuDropout(nn.Dropout):
    """As on a GPU, where what is dropped is kept as bool; on a CPU it is kept in the type of the inputs."""

    def forward(self, inputs):
        return torch.native_dropout(inputs, self.p, self.training)[0] if self.p else inputs


def without_values(
    model: Sa2VAForConditionalGeneration, fake: FakeTensorMode, dtype: torch.dtype | None, gpu: bool, layers: int
) -> Sa2VAForConditionalGeneration:
    """
    A copy of a model, adapters and all, that takes no memory.

    Args:
        model (`Sa2VAForConditionalGeneration`):
            On any device, the meta device too; quantised, or sharded by ZeRO-3 before its engine is made.
        fake (`FakeTensorMode`): that the copy's tensors belong to.
        dtype (`torch.dtype` or `None`): of all its weights; each one's own by default.
        gpu (`bool`): whether it is to keep what it would keep on a GPU.
        layers (`int`): of the language model, the first ones.

    Returns:
        `Sa2VAForConditionalGeneration` in training mode.
    """
    memo = {}
    with fake:
        for tensor in [*model.parameters(), *model.buffers()]:
            is_weight = isinstance(tensor, nn.Parameter)
            kind = dtype if is_weight and dtype is not None and tensor.is_floating_point() else tensor.dtype
            shape = getattr(tensor, "ds_shape", tensor.shape)
            copied = torch.empty(tuple(shape), dtype=kind, device="cpu")
            memo[id(tensor)] = nn.Parameter(copied, tensor.requires_grad) if is_weight else copied
    stack = model.vlm.model.language_model.layers
    memo[id(stack)] = nn.ModuleList(copy.deepcopy(layer, memo) for layer in stack[:layers])
    twin = copy.deepcopy(model, memo)
    for module in list(twin.modules()):
        # (A forward that a trainer has put in place of the class's own is the original's, weights and all.)
        vars(module).pop("forward", None)
        for name, child in module.named_children():
            if type(child).__module__.startswith("bitsandbytes"):
                compute = getattr(child, "compute_dtype", None) or dtype or model.dtype
                setattr(module, name, _PackedLinear(child, compute))
            elif gpu and type(child) is nn.Dropout:
                setattr(module, name, _GpuDropout(child.p))
        if hasattr(module, "rope_type"):
            module.rope_type = "default"  # others ask values how long a row is, and keep the same
        if hasattr(module, "config") and getattr(module.config, "_attn_implementation", "eager") != "eager":
            module.config._attn_implementation = FUSED
    return twin.train()


def step_bytes(
    model: Sa2VAForConditionalGeneration,
    batch: Batch,
    *,
    autocast: torch.dtype | None = None,
    dtype: torch.dtype | None = None,
    gpu: bool = True,
    cached: bool = False,
    checkpointing: dict | bool = False,
    mask_options: dict[str, Any] | None = None,
) -> int:
    """
    Bytes that a forward and backward pass needs at its peak beyond weights and their gradients: the batch, what
    autograd keeps and what is made on the way.

    The language model's layers are alike, so a large one is counted with two and with three of them: what each phase
    needs at most is a constant and, with each further layer, as much again.

    Args:
        model (`Sa2VAForConditionalGeneration`): what trains, with its adapter in it; not changed.
        batch (`Batch`): its sizes.
        autocast (`torch.dtype`, *optional*): of mixed precision.
        dtype (`torch.dtype`, *optional*): of all weights, as DeepSpeed has them; each one's own by default.
        gpu (`bool`, *optional*, defaults to `True`): whether it runs on a GPU, see `without_values`.
        cached (`bool`, *optional*, defaults to `False`): whether features stand in for images and text.
        checkpointing (`dict` or `bool`, *optional*, defaults to `False`):
            Whether the language model's layers are computed again in the backward pass; as a `dict` with what
            `gradient_checkpointing_enable` takes.
        mask_options (`dict`, *optional*): of [`~losses.mask_losses`].

    Returns:
        `int`.
    """
    layers = len(model.vlm.model.language_model.layers)

    def phases(count: int) -> list[int]:
        fake = FakeTensorMode(allow_non_fake_inputs=True)
        twin = without_values(model, fake, dtype, gpu, count)
        if checkpointing:
            twin.gradient_checkpointing_enable(checkpointing if isinstance(checkpointing, dict) else None)
            if any(parameter.requires_grad for parameter in twin.vlm.parameters()):
                twin.enable_input_require_grads()
        return _phases(twin, fake, batch, autocast, cached, mask_options or {})

    few = phases(min(layers, 3))
    if layers <= 3:
        return max(few)
    return max(three + (layers - 3) * (three - two) for three, two in zip(few, phases(2), strict=True))


def step_flops(
    model: Sa2VAForConditionalGeneration,
    batch: Batch,
    *,
    autocast: torch.dtype | None = None,
    cached: bool = False,
    mask_options: dict[str, Any] | None = None,
) -> int:
    """
    Floating-point operations of matrix products, convolutions and attention in a forward and backward pass, counted by
    torch's `FlopCounterMode` as `step_bytes` counts bytes. What gradient checkpointing computes a second time is not
    among them: these are the model's operations, not the device's.

    Args:
        model (`Sa2VAForConditionalGeneration`): what trains, with its adapter in it; not changed.
        batch (`Batch`): its sizes.
        autocast (`torch.dtype`, *optional*): of mixed precision.
        cached (`bool`, *optional*, defaults to `False`): whether features stand in for images and text.
        mask_options (`dict`, *optional*): of [`~losses.mask_losses`].

    Returns:
        `int`: a multiplication and an addition are two.
    """
    layers = len(model.vlm.model.language_model.layers)

    def flops(count: int) -> int:
        fake = FakeTensorMode(allow_non_fake_inputs=True)
        twin = without_values(model, fake, None, False, count)
        with fake, FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
            made = _inputs(twin, batch, cached)
            with nullcontext() if autocast is None else torch.autocast("cpu", autocast):
                outputs, logits = _forward(twin, batch, made, LiveBytes())
            _loss(outputs, logits, batch, mask_options or {}).backward()
        return counter.get_total_flops()

    few = flops(min(layers, 3))
    return few if layers <= 3 else few + (layers - 3) * (few - flops(2))


def _attention(query, key, value, *args, out_shape=None, **kwargs):
    return sdpa_flop_count(query, key, value)


def _attention_backward(gradient, query, key, value, *args, out_shape=None, **kwargs):
    return sdpa_backward_flop_count(gradient, query, key, value)


# (Torch knows those of GPUs itself.)
CPU_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


def _phases(twin, fake, batch, autocast, cached, mask_options):
    """Peaks before the language model, from there to the loss, and of the backward pass."""
    watch = LiveBytes()
    for tensor in [*twin.parameters(), *twin.buffers()]:
        watch.leave_out(tensor)
        if tensor.requires_grad:
            tensor.register_post_accumulate_grad_hook(lambda weight: watch.leave_out(weight.grad))
    with fake, watch:
        made = _inputs(twin, batch, cached)
        with nullcontext() if autocast is None else torch.autocast("cpu", autocast):
            drawn = [*_forward(twin, batch, made, watch)]
        # (What the model returns is no longer there in the backward pass.)
        loss = _loss(drawn.pop(0), drawn.pop(0), batch, mask_options)
        watch.phase()
        loss.backward()
        watch.phase()
    return watch.peaks


def _inputs(model, batch, cached):
    """A batch as it lies on the device for the whole of a step."""
    config, images = model.config.grounding_config, batch.rows * batch.images
    made = {"masks": torch.zeros(batch.rows * batch.masks, dtype=torch.long)}
    if cached:
        made["states"] = torch.empty(len(made["masks"]), model.config.text_config.hidden_size, dtype=model.dtype)
        made["pyramid"] = tuple(
            # (The coarse level is float32 whatever the others are.)
            torch.empty(
                (images, config.hidden_dim, config.image_size // stride, config.image_size // stride),
                dtype=torch.float32 if stride == 16 else model.grounding_encoder.dtype,
            )
            for stride in (4, 8, 16)
        )
        return made
    made["pixels"] = torch.empty(images, 3, config.image_size, config.image_size)
    made["words"] = torch.zeros(batch.rows, batch.tokens, dtype=torch.long)
    vlm, count = model.config.vlm_config, batch.rows * batch.image_tokens
    if vlm.model_type == "internvl":
        made["seen"] = torch.empty(max(1, count // vlm.image_seq_length), 3, *vlm.vision_config.image_size)
    else:
        vision = vlm.vision_config
        values = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
        made["seen"] = torch.empty(max(1, count) * vision.spatial_merge_size**2, values)
    return made


def _forward(model, batch, made, watch):
    index = made["masks"]
    if "pyramid" in made:
        watch.phase()
        return model(features=SegFeatures(made["states"], index, index, index, made["pyramid"])), None
    with torch.set_grad_enabled(any(parameter.requires_grad for parameter in model.vlm.parameters())):
        seen = _see(model.vlm.model, made["seen"])
        watch.phase()
        states = _read(model.vlm.model, made["words"], seen)
        del seen
    pyramid = model.grounding_encoder.encode(made["pixels"])
    outputs = model(features=SegFeatures(states[index, index], index, index, index, pyramid))
    answers = batch.tokens - batch.image_tokens if batch.answers is None else batch.answers
    logits = model.get_output_embeddings()(states[:, torch.zeros(answers, dtype=torch.long)])
    return outputs, logits.float()


def _read(vlm, words, images):
    """The language model's last states; `forward` itself asks values which tokens are images."""
    rows, length = words.shape
    states = vlm.get_input_embeddings()(words)
    states = states.masked_scatter(torch.zeros(rows, length, 1, dtype=torch.bool), images.to(states.dtype))
    # Rows of one length need no mask, and are then attended to without copies of keys and values.
    mask = None if rows == 1 else torch.ones(rows, 1, length, length, dtype=torch.bool)
    return vlm.language_model(inputs_embeds=states, attention_mask=mask, use_cache=False).last_hidden_state


def _see(vlm, pixels):
    """Image features; of Qwen's tower the blocks by themselves, whose attention asks values where images end."""
    if vlm.config.model_type == "internvl":
        return vlm.get_image_features(pixels).pooler_output
    visual, config = vlm.visual, vlm.config.vision_config
    states = visual.patch_embed(pixels)
    turned = torch.empty(len(states), config.hidden_size // config.num_heads)
    kept = []
    for number, block in enumerate(visual.blocks):
        states = block(states, cu_seqlens=np.array([0, len(states)]), position_embeddings=(turned, turned))
        if number in (deep := list(getattr(config, "deepstack_visual_indexes", ()))):
            kept.append(visual.deepstack_merger_list[deep.index(number)](states))
    return visual.merger(states)


def _loss(outputs, logits, batch, options):
    options = dict(options)
    size = (options.pop("mask_size", None),) * 2
    masks = torch.zeros(
        len(outputs.mask_logits), *(outputs.mask_logits.shape[-2:] if None in size else size), dtype=torch.uint8
    )
    values = losses.mask_losses(
        outputs.mask_logits.float(),
        outputs.iou_scores.float(),
        masks,
        torch.zeros(len(masks), dtype=torch.long),
        batch.rows,
        masks if options.get("skeleton_recall_weight") else None,
        **options,
    )
    total = sum(values.values())
    if logits is not None:
        # (`language_modeling_loss` copies the supervised positions.)
        total = total + F.cross_entropy(logits.flatten(0, 1).clone(), torch.zeros(logits[..., 0].numel()).long())
    return total
