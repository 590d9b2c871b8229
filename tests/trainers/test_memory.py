"""What a run needs, against what is there after a step; and what is said of it."""

from types import SimpleNamespace

import pytest
import torch
from measured_steps import trainer_of
from torch import nn
from transformers import BitsAndBytesConfig

from sa2va_trl import Sa2VAForConditionalGeneration, tiny_sa2va
from sa2va_trl.trainers.memory import (
    GIB,
    Need,
    Sharing,
    count_bytes,
    free_bytes,
    memory_line,
    packed_bytes,
    weight_bytes,
)
from sa2va_trl.trainers.step_bytes import Batch


def stored(tensors) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@pytest.mark.parametrize("options", [{}, {"train_embeddings": "full"}, {"trainable": "head"}, {"trainable": "full"}])
@pytest.mark.parametrize("bf16", [False, True])
def test_weights_gradients_and_optimizer_are_exact(tmp_path, monkeypatch, options, bf16):
    trainer = trainer_of(tmp_path, layers=2, width=64, rows=1, bf16=bf16, **options)
    model = trainer.model.get_base_model() if hasattr(trainer.model, "get_base_model") else trainer.model
    gradients = []
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(lambda weight: gradients.append(weight.grad))
    monkeypatch.setattr(trainer, "tell_needs", lambda: None)  # which counts what is no part of this
    trainer.train()
    need = count_bytes(model, trainer.args, activations=5, gpu=False)
    assert need.weights == stored([*model.parameters(), *model.buffers()])
    states = trainer.optimizer.optimizer.state.values()
    moments = [state[name] for state in states for name in ("exp_avg", "exp_avg_sq")]
    once = {id(gradient): gradient for gradient in gradients}.values()
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert stored(moments) == 8 * trained and stored(once) == 4 * trained
    assert need.trained == stored(moments) + 4 * trained
    assert need.total == need.weights + need.trained + 5


@pytest.mark.parametrize(
    "config",
    [
        {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
        {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": False},
        {"load_in_8bit": True},
    ],
    ids=["nf4 twice", "nf4", "int8"],
)
def test_quantised_layers_are_as_bitsandbytes_has_them(tmp_path, config):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    tiny_sa2va(image_size=128)[0].save_pretrained(tmp_path)
    model = Sa2VAForConditionalGeneration.from_pretrained(tmp_path, quantization_config=BitsAndBytesConfig(**config))
    kinds = (bitsandbytes.nn.Linear4bit, bitsandbytes.nn.Linear8bitLt)
    layers = [module for module in model.modules() if isinstance(module, kinds)]
    assert len(layers) == 3 * 7
    for layer in layers:
        parts = [layer.weight]
        if isinstance(layer, bitsandbytes.nn.Linear8bitLt):
            parts.append(layer.weight.SCB)
        else:
            state = layer.weight.quant_state
            parts += [state.absmax, state.code]
            parts += [state.state2.absmax, state.state2.code, state.offset] if state.nested else []
        assert packed_bytes(layer) == stored(parts)
    others = [p for p in model.parameters() if all(p is not layer.weight for layer in layers)]
    assert weight_bytes(model) == stored([*others, *model.buffers()]) + sum(map(packed_bytes, layers))


class Weights(nn.Module):
    """A billion and a half numbers, of which a tenth train; on the meta device."""

    def __init__(self):
        super().__init__()
        with torch.device("meta"):
            self.frozen = nn.ParameterList(
                nn.Parameter(torch.empty(150_000_000, dtype=torch.bfloat16), False) for _ in range(9)
            )
            self.trained = nn.Parameter(torch.empty(150_000_000))


BF16 = SimpleNamespace(bf16=True, fp16=False, optim="adamw_torch_fused")


def test_zero_shares_out_what_its_stage_says():
    trained, everything, shares = 150_000_000, 1_500_000_000, 4

    def need(**options):
        return count_bytes(Weights(), BF16, 7, sharing=Sharing(shares, bucket=1000, **options), gpu=False)

    alone = count_bytes(Weights(), BF16, 7, gpu=False)
    assert (alone.weights, alone.trained) == (2 * 9 * trained + 4 * trained, 12 * trained)
    assert need().trained == 16 * trained  # DDP's buckets
    one, two, three = need(stage=1), need(stage=2), need(stage=3)
    assert one.trained == (12 // shares + 2) * trained + 2000
    assert two.trained == (12 + 2) * trained // shares + 2000 == three.trained
    assert one.weights == two.weights == 2 * everything
    assert three.weights == 2 * everything // shares + 2 * 1_000_000_000
    # The optimizer steps on float32 copies of its share of the gradients.
    assert three.activations == 4 * trained // shares
    offloaded = need(stage=3, offload_optimizer=True, offload_weights=True)
    assert (offloaded.weights, offloaded.trained, offloaded.activations) == (2 * 1_000_000_000, 2000, 7)
    assert offloaded.host == (12 + 2) * trained // shares + 2 * everything // shares


def test_sharing_is_read_from_deepspeed():
    zero = {
        "stage": 3,
        "reduce_bucket_size": "auto",
        "stage3_max_live_parameters": 1e6,
        "offload_optimizer": {"device": "cpu"},
        "offload_param": {"device": "none"},
    }
    plugin = SimpleNamespace(zero_stage=3, deepspeed_config={"zero_optimization": zero})
    assert Sharing.of(plugin, 2) == Sharing(2, 3, True, False, 500_000_000, 1_000_000)
    assert Sharing.of(None, 2) == Sharing(2)


@pytest.mark.parametrize(("optim", "size"), [("adamw_torch", 8), ("paged_adamw_8bit", 2), ("sgd", 0)])
def test_optimizers_differ(optim, size):
    args = SimpleNamespace(bf16=False, fp16=False, optim=optim)
    assert count_bytes(Weights(), args, 0, gpu=False).trained == (4 + size) * 150_000_000


def test_memory_that_is_there():
    total, free = free_bytes(torch.device("cpu"))
    assert 0 < free <= total


def test_the_line(monkeypatch):
    monkeypatch.setattr("sa2va_trl.trainers.memory.free_bytes", lambda device: (24 * GIB, 23 * GIB))
    need = Need(weights=16 * GIB, trained=GIB, activations=4 * GIB, context=GIB // 2, host=3 * GIB)
    assert memory_line(need, Batch(2, 1900, 1792), torch.device("cuda:0")) == (
        "A step needs about 21.5 GiB of GPU memory and 3.0 GiB of the host's (weights 16.0, trained 1.0, activations "
        "4.0, the device itself 0.5; 2 rows of 1,900 tokens); cuda:0 has 24.0 GiB, 23.0 free."
    )
