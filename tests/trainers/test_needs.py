"""The line before training."""

import logging

import pytest
from measured_steps import trainer_of

from sa2va_trl.trainers.memory import GIB


@pytest.fixture
def told(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("sa2va_trl"), "propagate", True)
    caplog.set_level(logging.INFO, "sa2va_trl")
    return lambda: [record for record in caplog.records if "memory" in record.getMessage()]


def test_it_is_said_once_and_warns_of_nothing_that_fits(tmp_path, told):
    trainer = trainer_of(tmp_path, layers=2, width=64, rows=1)
    assert not told()
    trainer.train()
    trainer.train()
    (line,) = told()
    assert line.levelno == logging.INFO
    assert line.getMessage().startswith("A step needs about 0.0")
    tokens = trainer.data_collator([trainer.train_dataset[0]])["input_ids"].shape[1]
    assert f"1 row of {tokens} tokens); the host has " in line.getMessage()


@pytest.mark.parametrize("checkpointing", [False, True])
def test_what_helps_is_named_in_order(tmp_path, told, monkeypatch, checkpointing):
    for module in ("needs", "memory"):
        monkeypatch.setattr(f"sa2va_trl.trainers.{module}.free_bytes", lambda device: (GIB, 1000))
    trainer = trainer_of(tmp_path, layers=2, width=64, rows=2, gradient_checkpointing=checkpointing)
    trainer.train()
    assert trainer.state.global_step == 1
    message = told()[1].getMessage()
    assert told()[1].levelno == logging.WARNING
    helps = message.partition("in this order: ")[2].split("; ")
    assert [each.split(":")[0] for each in helps] == ["gradient_checkpointing"][checkpointing:] + [
        "per_device_train_batch_size",
        "quantization",
        "trainable",
    ]
    assert "gradient_accumulation_steps: 4" in message


def test_rows_that_nothing_is_known_of(tmp_path):
    trainer = trainer_of(tmp_path, layers=2, width=64)
    trainer.largest_row = None
    batch = trainer.batch_sizes()
    assert batch.image_tokens == 640 and batch.tokens == 768 and batch.rows == 2
