"""What processes of one run tell each other."""

import time
from typing import Any

import torch

from .errors import FeatureError


def leave_process_group() -> None:
    """
    Leave the group of processes, if there is one; for the end of a script, after the last thing done together.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return
    gloo = "gloo" in torch.distributed.get_backend()
    torch.distributed.destroy_process_group()
    if gloo:
        # Its threads need the interpreter to drop the tensors of the last call. One that comes too late, as happens on
        # a busy machine, aborts the process at its exit (https://github.com/pytorch/pytorch/issues/190489).
        time.sleep(0.5)


def everywhere(value: Any) -> list:
    """
    The values of all processes, in their order. All have to call it together.

    Args:
        value: what this process gives, if any other is to hear of it something that `pickle` can take.

    Returns:
        `list`: one entry a process, of a single one where there is no group.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [value]
    values = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values


def raise_first(failure: Exception | None) -> None:
    """
    Raise on all processes what went wrong on any. All have to call it together.

    Args:
        failure (`Exception`, *optional*): of this process.

    Raises:
        `Exception`: the process's own failure.
        `FeatureError`: another process has failed.
    """
    failures = [entry for entry in everywhere(None if failure is None else repr(failure)) if entry]
    if failure is not None:
        raise failure
    if failures:
        raise FeatureError(f"Another process failed: {failures[0]}")


def process_rank() -> int:
    """Number of this process among those of the run; 0 where it is alone."""
    ready = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_rank() if ready else 0
