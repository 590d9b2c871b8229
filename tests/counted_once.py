"""
What a step needs of memory, counted once for all runs alike.

Before it trains, a trainer counts what a step needs, which takes longer than the few steps of a test do. It is a
function of the network's layout, the sizes of a batch and a few options: what was counted for equal ones in this
process is taken again. The count itself is tested where it is called by its own module
(`trainers/test_step_bytes.py`).
"""

import functools
import sys
from typing import Any


NEEDS = "sa2va_trl.trainers.needs"
COUNTED: dict[tuple, int] = {}


def layout(model: Any) -> tuple:
    """All that a count of bytes may depend on: modules and their options, sizes, types, and what trains."""
    tensors = [
        (name, tuple(getattr(tensor, "ds_shape", tensor.shape)), tensor.dtype, tensor.requires_grad)
        for tensors in (model.named_parameters(), model.named_buffers())
        for name, tensor in tensors
    ]
    attention = [getattr(getattr(module, "config", None), "_attn_implementation", None) for module in model.modules()]
    return repr(model), repr(model.config.to_dict()), tuple(tensors), tuple(attention), model.dtype


def key_of(model: Any, batch: Any, args: Any, **options: Any) -> tuple:
    checkpointing = args.gradient_checkpointing, args.gradient_checkpointing_kwargs
    return *layout(model), batch, args.bf16, args.fp16, repr(checkpointing), repr(sorted(options.items()))


def count_once() -> None:
    """From now on, in this process, if trainers are imported."""
    needs = sys.modules.get(NEEDS)
    if needs is None or hasattr(needs.step_of, "__wrapped__"):
        return
    count = needs.step_of

    @functools.wraps(count)
    def counted(*args: Any, **options: Any) -> int:
        key = key_of(*args, **options)
        if key not in COUNTED:
            COUNTED[key] = count(*args, **options)
        return COUNTED[key]

    needs.step_of = counted
