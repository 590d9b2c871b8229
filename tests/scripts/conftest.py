"""Models that the tests of several tasks start from."""

import pytest
import torch
from tasks import options, run_task

from sa2va_trl import tiny_sa2va


SYNTHETIC = {"train_videos": 1, "validation_videos": 1, "test_videos": 1, "frames_per_video": 3, "size": 64}


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """Two steps of the tiny model, once for all tests of what comes after."""
    folder = tmp_path_factory.mktemp("trained")
    run_task(
        "sft",
        *options(
            folder,
            model_name_or_path="tiny-random",
            output_dir=str(folder / "model"),
            grounding_image_size=128,
            synthetic=SYNTHETIC,
            trainable="full",
            max_steps=2,
            per_device_train_batch_size=2,
            num_points=0,
            gradient_checkpointing=False,
            eval_strategy="steps",
            eval_steps=2,
            save_strategy="no",
            use_cpu=True,
            report_to="none",
        ),
    )
    return folder / "model"


@pytest.fixture(scope="session")
def second(tmp_path_factory):
    """A second model: the tiny one with another mask head."""
    folder = tmp_path_factory.mktemp("second")
    model, processor = tiny_sa2va(image_size=64)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.text_hidden_fcs.parameters():
            parameter += 0.5 * torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
