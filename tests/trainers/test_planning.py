"""Epochs whose rows a trainer chooses."""

import json

import numpy as np
import pandas as pd
import pytest
from datasets import concatenate_datasets

from sa2va_trl import (
    HardSampleConfig,
    SegDPOConfig,
    SegDPOTrainer,
    SegGRPOConfig,
    SegGRPOTrainer,
    SegSFTConfig,
    SegSFTTrainer,
    build_preferences,
    tiny_sa2va,
)
from sa2va_trl.data import synthetic_dataset
from sa2va_trl.trainers.row_sampling import mask_widths, width_classes


OPTIONS = {
    "use_cpu": True,
    "report_to": "none",
    "disable_tqdm": True,
    "per_device_train_batch_size": 2,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "constant",
    "logging_steps": 1,
    "gradient_checkpointing": False,
    "save_strategy": "no",
    "num_points": 0,
    "cache_features": "off",
    "curriculum": "thickness",
}


@pytest.fixture(scope="module")
def data():
    """Frames of two sizes, whose vessels are thin and medium."""
    sizes = [synthetic_dataset(1, 5, size, first_video=video) for size, video in ((64, 0), (256, 1))]
    rows = concatenate_datasets([part.remove_columns(["frame_index", "video_id"]) for part in sizes])
    assert set(width_classes(mask_widths(rows))) == {1, 2}
    return rows


def make(kind, config, tmp_path, data, **options):
    model, processor = tiny_sa2va(image_size=128)
    args = config(str(tmp_path / "out"), **{**OPTIONS, "num_train_epochs": 4, **options})
    seen = []

    class Recorded(kind):
        def training_step(self, model, inputs, *args, **kwargs):
            seen.append((int(self.state.epoch + 1e-6), inputs.pop("numbers").tolist()))
            return super().training_step(model, inputs, *args, **kwargs)

    run = Recorded(model=model, args=args, train_dataset=data, processing_class=processor)
    collate = run.data_collator

    def numbered(rows):
        return {**collate(rows), "numbers": np.array([row["row_index"] for row in rows])}

    run.data_collator = numbered
    return run, seen


@pytest.mark.parametrize(
    "kind, config, options",
    [
        (SegSFTTrainer, SegSFTConfig, {"lora_r": 4, "lora_dropout": 0.0}),
        (SegGRPOTrainer, SegGRPOConfig, {"num_generations": 2}),
        (SegDPOTrainer, SegDPOConfig, {}),
    ],
)
def test_every_trainer_draws_thick_vessels_first(tmp_path, data, kind, config, options):
    if kind is SegDPOTrainer:
        rejected = {"rejected": ["dilated"], "min_gap": 0.0}
        data = build_preferences(data, *tiny_sa2va(image_size=128), **rejected)
    classes = width_classes(mask_widths(data))
    assert {1, 2} <= set(classes)
    run, seen = make(kind, config, tmp_path, data, **options)
    run.train()
    epochs = [[number for epoch, rows in seen if epoch == at for number in rows] for at in range(4)]
    assert [len(rows) for rows in epochs] == [len(data)] * 4
    assert [rows == run.plan(at) for at, rows in enumerate(epochs)] == [True] * 4
    thick = [np.mean(classes[rows] == max(0, classes[classes >= 0].min())) for rows in epochs]
    assert min(thick[:2]) > 0.6 > 0.3 > max(thick[2:])


def test_a_resumed_run_sees_the_rows_of_one_that_was_not_ended(tmp_path, data):
    options = {"trainable": "head", "lm_weight": 0.0, "save_strategy": "steps", "save_steps": 1}
    whole, seen = make(SegSFTTrainer, SegSFTConfig, tmp_path, data, **options)
    whole.train()
    step = len(seen) - 7  # in the middle of an epoch
    resumed, again = make(SegSFTTrainer, SegSFTConfig, tmp_path, data, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / f"checkpoint-{step}"))
    assert again == seen[step:]
    other, _ = make(SegSFTTrainer, SegSFTConfig, tmp_path, data, **{**options, "curriculum": "none"})
    with pytest.raises(ValueError, match="begun with curriculum=thickness, and this run has curriculum=none"):
        other.train(resume_from_checkpoint=str(tmp_path / "out" / f"checkpoint-{step}"))


def test_curricula_that_cannot_be(tmp_path, data):
    with pytest.raises(ValueError, match="needs an epoch for each of medium, thin, and the run has 1"):
        make(SegSFTTrainer, SegSFTConfig, tmp_path, data, num_train_epochs=1)[0].train()
    with pytest.raises(ValueError, match="no effect: of the training rows all are thin"):
        make(SegSFTTrainer, SegSFTConfig, tmp_path, data.select(range(2, 5)))
    with pytest.raises(TypeError, match="the rows of a stream cannot be drawn"):
        make(SegSFTTrainer, SegSFTConfig, tmp_path, data.to_iterable_dataset(), max_steps=2)
    with pytest.raises(ValueError, match="curriculum must be one of none, thickness, got 'difficulty'"):
        SegSFTConfig(str(tmp_path), use_cpu=True, curriculum="difficulty")
    with pytest.raises(ValueError, match="dataset_repeats=2: curriculum=thickness decides which rows"):
        SegSFTConfig(str(tmp_path), use_cpu=True, curriculum="thickness", dataset_repeats=2)
    # The only rows that scores give a weight are thin ones.
    scores = pd.DataFrame({"sample_id": data["sample_id"], "dice": 0.5})
    scores["reward_spread"] = (width_classes(mask_widths(data)) == 2) * 0.1
    args = SegGRPOConfig(str(tmp_path), **OPTIONS, num_generations=2, sample_by="spread")
    model, processor = tiny_sa2va(image_size=128)
    with pytest.raises(ValueError, match="no effect: of the training rows all are thin"):
        SegGRPOTrainer(model, args, train_dataset=data, processing_class=processor, scores=scores)
    # Of hard samples it is the order of an epoch's hard rows.
    assert HardSampleConfig(str(tmp_path), use_cpu=True, curriculum="difficulty").curriculum == "difficulty"


def test_a_checkpoint_of_before_there_were_curricula_is_gone_on_from(tmp_path, data):
    options = {"trainable": "head", "lm_weight": 0.0, "save_strategy": "steps", "save_steps": 1, "curriculum": "none"}
    options |= {"max_steps": 2, "num_train_epochs": 1}
    make(SegSFTTrainer, SegSFTConfig, tmp_path, data, **options)[0].train()
    record = tmp_path / "out" / "checkpoint-1" / "resume.json"
    saved = json.loads(record.read_text())
    del saved["options"]["curriculum"]
    record.write_text(json.dumps(saved))
    run, seen = make(SegSFTTrainer, SegSFTConfig, tmp_path, data, **options)
    run.train(resume_from_checkpoint=str(record.parent))
    assert len(seen) == 1
