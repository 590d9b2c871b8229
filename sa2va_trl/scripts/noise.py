"""
What libraries warn of in every run and nobody who runs a task can do anything about, by name. It is in the log, as all
that they say, and not counted among the warnings that a task points to at its end. What has a cause within reach is
avoided there, and is not listed here.
"""

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from .screen import Screen


class Noise(NamedTuple):
    """
    Args:
        who (`str`): the package that says it.
        what (`str`): a regular expression that the beginning of the message matches.
        why (`str`): why a user cannot act on it.
    """

    who: str
    what: str
    why: str


KNOWN = (
    Noise(
        "bitsandbytes",
        "Failed to load CPU gemm_4bit_forward",
        "PEFT imports bitsandbytes wherever it is installed; the kernel is of 4-bit inference on a CPU.",
    ),
    Noise(
        "transformers",
        "The tokenizer has new PAD/BOS/EOS tokens",
        "published checkpoints name other ends of text in config and tokenizer; Trainer takes the tokenizer's.",
    ),
    Noise(
        "transformers",
        "mtime may not be reliable",
        "checkpoints that are written within a second are sorted by their numbers instead, which is right.",
    ),
    Noise(
        "DeepSpeed",
        "Setting accelerator to CPU",
        "transformers asks DeepSpeed for its device wherever it is installed; this one has no accelerator.",
    ),
    Noise(
        "torch",
        r"Detected call of `lr_scheduler\.step\(\)` before `optimizer\.step\(\)`",
        "a step whose gradients are not finite is left out, which is what scaling of half precision is made of.",
    ),
    Noise(
        "transformers",
        r"`gradient_checkpointing_(en|dis)able` is deprecated",
        "TRL calls it by the earlier name, wherever a reference is asked.",
    ),
    Noise(
        "torch",
        "torch.utils.checkpoint: the use_reentrant parameter",
        "TRL decides it.",
    ),
    Noise(
        "torch",
        "barrier\\(\\): using the device under current context",
        "the device of a process is its launcher's to say.",
    ),
)


def is_known(message: str) -> bool:
    """Whether a message is one of those that are listed."""
    return any(re.match(noise.what, message) for noise in KNOWN)


@contextmanager
def foreign_warnings(screen: Screen) -> Iterator[None]:
    """
    Note on a screen which libraries have warned of something that is not listed. Nothing is kept from being written.

    Args:
        screen (`Screen`): what is to point to them.
    """
    show, make = warnings.showwarning, logging.getLogRecordFactory()

    def showing(message, category, filename, lineno, file=None, line=None):
        if not is_known(str(message)):
            screen.note(f"{filename}:{lineno}")
        show(message, category, filename, lineno, file, line)

    def making(name, level, *args, **kwargs):
        record = make(name, level, *args, **kwargs)
        if level >= logging.WARNING and name.partition(".")[0] != "sa2va_trl" and not is_known(str(record.msg)):
            screen.note(f"{record.pathname}:{record.lineno}")
        return record

    warnings.showwarning = showing
    logging.setLogRecordFactory(making)
    try:
        yield
    finally:
        warnings.showwarning = show
        logging.setLogRecordFactory(make)
