"""Preference optimisation over masks: what trains, against which reference, and what is logged."""

import math
from dataclasses import fields

import numpy as np
import pytest
import torch
from datasets import Features, List, Value
from datasets import Image as ImageFeature
from peft import PeftModel, get_peft_model
from PIL import Image
from rows import every_kind
from transformers import TrainerCallback, TrainingArguments
from trl import DPOConfig

from sa2va_trl import SegDPOConfig, SegDPOTrainer, tiny_sa2va
from sa2va_trl.adapters.presets import get_peft_config
from sa2va_trl.data import DatasetError, synthetic_dataset
from sa2va_trl.trainers.dpo_config import DPO_REFUSED


def with_pairs(dataset):
    """The ground truth against an empty mask."""
    features = Features(
        {**dataset.features, "chosen_mask": ImageFeature(mode="L"), "rejected_mask": ImageFeature(mode="L")}
    )
    return dataset.map(
        lambda row: {"chosen_mask": row["mask"], "rejected_mask": Image.new("L", row["mask"].size)}, features=features
    )


@pytest.fixture(scope="module")
def data():
    return with_pairs(synthetic_dataset(num_videos=1, frames_per_video=4, size=64))


@pytest.fixture(scope="module")
def held_out():
    return synthetic_dataset(num_videos=1, frames_per_video=2, size=64, first_video=8)


def config(tmp_path, **options):
    return SegDPOConfig(
        **{
            "output_dir": str(tmp_path / "out"),
            "max_steps": 2,
            "per_device_train_batch_size": 2,
            "learning_rate": 1e-3,
            "logging_steps": 1,
            "report_to": "none",
            "use_cpu": True,
            "cache_features": "off",
            "num_points": 0,
            "gradient_checkpointing": False,
            **options,
        }
    )


def make(tmp_path, data, eval_dataset=None, model=None, ref_model=None, **options):
    tiny, processor = tiny_sa2va(image_size=128)
    return SegDPOTrainer(
        model=model or tiny,
        ref_model=ref_model,
        args=config(tmp_path, **options),
        train_dataset=data,
        eval_dataset=eval_dataset,
        processing_class=processor,
    )


def first_log(trainer, name):
    return next(entry[name] for entry in trainer.state.log_history if name in entry)


def gradients(trainer, steps):
    """The length of the gradient in each step of a run."""
    found = [entry["grad_norm"] for entry in trainer.state.log_history if "grad_norm" in entry]
    assert len(found) == steps
    return found


def segmented_dice(trainer, rows):
    """Mean Dice of what the trainer's model segments as a user would have it do, without the trainer."""
    request = {
        "text": "Please segment the blood vessel.",
        "answer": "Sure, [SEG].",
        "processor": trainer.processing_class,
    }
    dices = []
    for row in rows:
        drawn = trainer.model.eval().segment(image=row["image"], **request).masks[0].numpy()
        truth = np.asarray(row["mask"]) > 0
        dices.append(2 * (drawn & truth).sum() / (drawn.sum() + truth.sum()))
    assert len(dices) == 2 and min(dices) > 0
    return pytest.approx(np.mean(dices), abs=1e-6)


@pytest.mark.parametrize("trainable", ["head", "stage1"])
@pytest.mark.parametrize("score", ["dice", "log_dice", "region"])
def test_every_trainable_parameter_moves_and_the_first_loss_is_log_two(tmp_path, data, score, trainable):
    trainer = make(tmp_path, data, score=score, trainable=trainable, beta=1.0, max_steps=3)
    before = {name: value.clone() for name, value in trainer.model.named_parameters()}
    trainer.train()
    assert first_log(trainer, "loss") == pytest.approx(math.log(2), abs=1e-4)
    assert first_log(trainer, "rewards/margins") == pytest.approx(0, abs=1e-6)
    assert trainer.state.log_history[1]["rewards/margins"] > 0
    still = []
    for name, value in trainer.model.named_parameters():
        assert value.requires_grad or torch.equal(value, before[name]), name
        if value.requires_grad and torch.equal(value, before[name]):
            still.append(name)
    # As in supervised training: nothing is learned about IoU and presence, and only the chosen mask gets a gradient.
    unreached = ("iou_prediction_head", "pred_obj_score_head", "output_hypernetworks_mlps")
    assert all(any(part in name for part in unreached) for name in still), still
    if trainable == "stage1":
        assert any("lora_B" in name for name in before)


def test_the_gradient_reaches_the_language_model_and_the_head(tmp_path, data):
    trainer = make(tmp_path, data, trainable="stage1", score="region")
    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    trainer.model.train()
    trainer.compute_loss(trainer.model, batch).backward()
    reached = {name for name, value in trainer.model.named_parameters() if value.grad is not None and value.grad.any()}
    assert any("language_model" in name and "lora_B" in name for name in reached)
    assert any("text_hidden_fcs" in name for name in reached)
    assert any("multi_modal_projector" in name for name in reached)


def test_the_reference_stays_what_training_started_from(tmp_path, data):
    trainer = make(tmp_path, data, score="region", max_steps=3)
    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    _, before, _ = trainer._draw(trainer.model, batch)
    trainer.train()
    outputs, after, _ = trainer._draw(trainer.model, batch)
    assert torch.equal(before, after)
    assert not torch.allclose(outputs.mask_logits, after, atol=1e-4)


def test_a_given_adapter_is_its_own_reference(tmp_path, data):
    first = make(tmp_path, data, score="dice", max_steps=2)
    first.train()
    trained = first.model
    assert isinstance(trained, PeftModel)
    again = make(tmp_path, data, model=trained, score="region", max_steps=1)
    assert "ref" in again.model.peft_config
    again.train()
    assert first_log(again, "loss") == pytest.approx(math.log(2), abs=1e-4)
    again.save_model(str(tmp_path / "saved"))
    assert not (tmp_path / "saved" / "ref").exists()


def test_an_adapter_by_another_name_is_refused(tmp_path, data):
    tiny, processor = tiny_sa2va(image_size=128)
    model = get_peft_model(tiny, get_peft_config("head", processor.seg_token_id), adapter_name="mine")
    with pytest.raises(ValueError, match="adapter is called mine.*`default`"):
        make(tmp_path, data, model=model)


def test_full_training_needs_a_reference_and_takes_one(tmp_path, data):
    with pytest.raises(ValueError, match="give ref_model"):
        make(tmp_path, data, trainable="full")
    other, _ = tiny_sa2va(image_size=128)
    trainer = make(tmp_path, data, trainable="full", ref_model=other, max_steps=1)
    trainer.train()
    assert first_log(trainer, "loss") == pytest.approx(math.log(2), abs=1e-4)


@pytest.mark.parametrize("options", [{}, {"use_reference": False}, {"sft_weight": 1.0}, {"loss_type": "hinge"}])
def test_accumulation_does_not_change_the_run(tmp_path, data, options):
    runs = []
    for size, steps in ((4, 1), (1, 4)):
        trainer = make(
            tmp_path,
            data,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=steps,
            score="dice",
            train_sampling_strategy="sequential",
            **options,
        )
        trainer.train()
        runs.append(gradients(trainer, steps=2))
    assert runs[0] == pytest.approx(runs[1], rel=1e-3)


def test_checkpointing_does_not_change_the_run(tmp_path, data):
    runs = []
    for on in (False, True):
        trainer = make(tmp_path, data, trainable="stage1", score="dice", gradient_checkpointing=on)
        trainer.train()
        runs.append(gradients(trainer, steps=2))
    assert runs[0] == pytest.approx(runs[1], rel=1e-4)


@pytest.mark.parametrize("reference", ["adapter off", "adapter ref", "given"])
def test_resumed_equals_uninterrupted(tmp_path, data, reference):
    """The reference is what the first run started from, not the checkpoint."""

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop |= state.global_step == 2
            return control

    if reference == "adapter ref":
        first = make(tmp_path, data, score="dice")
        first.train()
        first.save_model(str(tmp_path / "first"))

    def run(name, resume=None, stop=False):
        options = {"score": "region", "max_steps": 4, "save_strategy": "steps", "save_steps": 2}
        model = ref_model = None
        if reference == "adapter ref":
            model = PeftModel.from_pretrained(
                tiny_sa2va(image_size=128)[0], str(tmp_path / "first"), is_trainable=True
            )
        elif reference == "given":
            ref_model, options["trainable"] = tiny_sa2va(image_size=128)[0], "full"
        trainer = make(tmp_path / name, data, model=model, ref_model=ref_model, **options)
        if stop:
            trainer.add_callback(Stop())
        trainer.train(resume_from_checkpoint=resume)
        names = ("loss", "grad_norm", "rewards/margins", "masks/greedy_dice")
        return [entry[name] for entry in trainer.state.log_history for name in names if name in entry]

    whole = run("whole")
    run("killed", stop=True)
    resumed = run("killed", resume=str(tmp_path / "killed" / "out" / "checkpoint-2"))
    assert len(whole) == 16 and whole == pytest.approx(resumed, rel=1e-4, abs=1e-6)


def test_pairs_that_the_grid_cannot_tell_apart_are_not_counted(tmp_path, data):
    def dot(row, side):
        mask = row["mask"].copy()
        mask.putpixel((side, side), 255 - mask.getpixel((side, side)))
        return {"rejected_mask": mask, "chosen_mask": row["mask"]}

    # Nearest pixels of 64 on a grid of 16 are those at 2, 6, 10, ...
    for side, share in ((0, 0.0), (2, 1.0)):
        trainer = make(tmp_path, data.map(dot, fn_kwargs={"side": side}), mask_size=16, max_steps=1)
        trainer.train()
        assert first_log(trainer, "masks/pairs") == share


def test_cached_features_give_the_same_run(tmp_path, data):
    logs = []
    for mode in ("off", "on"):
        trainer = make(tmp_path, data, cache_features=mode, cache_dir=None if mode == "off" else str(tmp_path / "f"))
        trainer.train()
        logs.append([entry for entry in trainer.state.log_history if "loss" in entry])
    assert len(logs[0]) == 2
    for one, two in zip(*logs, strict=True):
        for name in ("loss", "grad_norm", "rewards/margins", "masks/greedy_dice", "masks/dice_chosen"):
            assert one[name] == pytest.approx(two[name], abs=1e-5), name


def test_a_given_reference_sees_its_own_features(tmp_path, data):
    """A reference with another backbone, which the policy's features are not of."""
    margins = []
    for mode in ("off", "auto"):
        other, _ = tiny_sa2va(image_size=128, seed=5)
        cache_dir = None if mode == "off" else str(tmp_path / "f")
        trainer = make(tmp_path, data, ref_model=other, score="dice", cache_features=mode, cache_dir=cache_dir)
        assert trainer.features is None
        trainer.train()
        margins.append(first_log(trainer, "rewards/margins"))
    assert margins[0] != 0 and margins[0] == pytest.approx(margins[1], rel=1e-4)
    with pytest.raises(ValueError, match="(?s)cache_features=on is not possible.*ref_model"):
        make(tmp_path, data, ref_model=other, cache_features="on")


def test_online_pairs_do_not_come_from_columns(tmp_path, data):
    # No fault of the ground truth is as far from it as the pairs that the columns hold.
    trainer = make(tmp_path, data, pairs="online", online_rejected="dilated", min_gap=0.95)
    trainer.train()
    assert first_log(trainer, "masks/pairs") == 0.0


def test_online_rows_count_alike_whatever_they_hold(tmp_path):
    """Several objects, text alone, an image without an object; masks on a grid of their own."""
    rows, logs = every_kind(), []
    for size, steps in ((len(rows), 1), (1, len(rows))):
        trainer = make(
            tmp_path,
            rows,
            pairs="online",
            online_rejected="greedy",
            score="dice",
            use_reference=False,
            mask_size=48,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=steps,
            train_sampling_strategy="sequential",
            max_steps=1,
        )
        trainer.train()
        logs.append([first_log(trainer, name) for name in ("loss", "grad_norm")])
    assert logs[0] == pytest.approx(logs[1], rel=1e-3)


def test_online_pairs_need_no_columns(tmp_path, held_out):
    rows = synthetic_dataset(num_videos=1, frames_per_video=4, size=64)
    options = {"pairs": "online", "score": "region", "eval_strategy": "epoch", "learning_rate": 1e-4}
    trainer = make(tmp_path, rows, eval_dataset=held_out, **options)
    trainer.train()
    assert first_log(trainer, "masks/pairs") == 1.0  # an untrained model is far from every truth
    assert first_log(trainer, "eval_dice") == segmented_dice(trainer, held_out)


def test_features_of_rows_with_and_without_pairs_are_computed_together(tmp_path, data, held_out):
    options = {"cache_features": "on", "cache_dir": str(tmp_path / "cache"), "per_device_eval_batch_size": 3}
    trainer = make(tmp_path, data, held_out, eval_strategy="steps", eval_steps=1, max_steps=1, **options)
    trainer.train()
    assert first_log(trainer, "eval_dice") == segmented_dice(trainer, held_out)


def test_evaluation_without_pairs_reports_dice(tmp_path, data, held_out):
    trainer = make(tmp_path, data, eval_dataset=held_out)
    metrics = trainer.evaluate()
    assert metrics["eval_dice"] == segmented_dice(trainer, held_out)
    assert metrics["eval_loss"] > 0


def swapped(dataset):
    return dataset.rename_columns({"chosen_mask": "rejected_mask", "rejected_mask": "chosen_mask"})


@pytest.mark.parametrize("where", ["train", "eval"])
def test_pairs_the_wrong_way_round_are_counted_and_refused_unless_allowed(tmp_path, data, held_out, where):
    given = (swapped(data), None) if where == "train" else (data, swapped(with_pairs(held_out)))
    count = 4 if where == "train" else 2
    with pytest.raises(DatasetError, match=f"{where}.*{count} of {count} pairs.*allow_worse"):
        make(tmp_path, *given)
    trainer = make(tmp_path, *given, allow_worse=True, use_reference=False, score="dice", max_steps=1)
    trainer.train()
    assert (first_log(trainer, "rewards/margins") > 0) == (where == "eval")


def test_online_pairs_take_no_notice_of_stored_ones(tmp_path, data, held_out):
    found, expected = (
        make(tmp_path, swapped(data), eval_dataset=rows, pairs="online").evaluate()
        for rows in (swapped(with_pairs(held_out)), held_out)
    )
    assert found.keys() == expected.keys() and "eval_rewards/margins" not in found
    assert found["eval_loss"] == pytest.approx(expected["eval_loss"], rel=1e-6)


def test_rows_with_several_objects_are_refused_before_training(tmp_path, data):
    two = data.map(
        lambda row: {"masks": [row["mask"]] * 2, "phrases": [row["phrase"]] * 2},
        remove_columns=["mask", "phrase"],
        features=Features(
            {
                **{name: kind for name, kind in data.features.items() if name not in ("mask", "phrase")},
                "masks": List(ImageFeature(mode="L")),
                "phrases": List(Value("string")),
            }
        ),
    )
    with pytest.raises(DatasetError, match="2 masks; pairs are of one object"):
        make(tmp_path, two)


def test_rows_without_pairs_are_refused(tmp_path):
    with pytest.raises(DatasetError, match="build_preferences"):
        make(tmp_path, synthetic_dataset(num_videos=1, frames_per_video=2, size=64))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"score": "iou"}, "score must be one of"),
        ({"loss_type": ["sigmoid", "hinge"]}, "loss_type must be one of"),
        ({"loss_type": "kto_pair"}, "must be one of"),
        ({"label_smoothing": 0.1}, "no effect with loss_type"),
        ({"beta": 0.0}, "beta. must be positive"),
        ({"min_gap": 0.3}, "only pairs=online"),
        ({"pairs": "online", "online_chosen": "good"}, "chosen: unknown good"),
        ({"pairs": "online", "online_rejected": "bad"}, "rejected: unknown bad"),
        ({"pairs": "online", "min_gap": -1.0}, "min_gap must be 0 or more"),
        ({"lora_r": 8}, "lora_r=8.*has no LoRA"),
        ({"trainable": "stage1", "lora_dropout": 0.1}, "disable_dropout=True"),
        ({"trainable": "full", "use_reference": False}, "use_reference=False is not available"),
        ({"max_length": 512}, "max_length"),
        ({"precompute_ref_log_probs": True}, "precompute_ref_log_probs"),
        ({"train_embeddings": "full", "trainable": "stage1"}, "no loss reaches the words"),
    ],
)
def test_options_without_a_meaning_raise(tmp_path, options, message):
    with pytest.raises(ValueError, match=f"(?s){message}"):
        config(tmp_path, **options)


def test_every_option_that_dpo_adds_is_refused_or_works():
    works = {"beta", "loss_type", "label_smoothing", "disable_dropout"}
    works |= {"learning_rate", "model_init_kwargs", "dataset_num_proc", "activation_offloading"}
    inherited = {entry.name for entry in fields(DPOConfig)} - {entry.name for entry in fields(TrainingArguments)}
    assert inherited - set(DPO_REFUSED) == works & inherited
