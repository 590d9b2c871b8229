"""Training on hard samples: which rows it sees, what trains, what is logged, and that a resumed run goes on alike."""

import json
import re
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import TrainerCallback

from sa2va_trl import HardSampleConfig, HardSampleTrainer, SegSFTConfig, mining, tiny_sa2va
from sa2va_trl.data import DatasetError, synthetic_dataset
from sa2va_trl.metrics import Counts, dice
from tests.rows import every_kind


# See tests/trainers/test_sft_trainer.py.
UNREACHED = re.compile(r"iou_prediction_head|pred_obj_score_head|output_hypernetworks_mlps")

# At a higher rate the tiny model soon draws nothing at all, and one row is as hard as the other.
GENTLE = 1e-4


@pytest.fixture(scope="module")
def data():
    return synthetic_dataset(num_videos=2, frames_per_video=6, size=64)


@pytest.fixture(scope="module")
def held_out():
    return synthetic_dataset(num_videos=1, frames_per_video=4, size=64, first_video=8)


@pytest.fixture(scope="module")
def scores(data):
    """Hard and ordinary rows in turn."""
    return pd.DataFrame({"sample_id": data["sample_id"], "dice": np.tile([0.5, 0.9], len(data) // 2)})


def config(tmp_path, **options):
    return HardSampleConfig(
        **{
            "output_dir": str(tmp_path / "out"),
            "use_cpu": True,
            "report_to": "none",
            "disable_tqdm": True,
            "num_train_epochs": 2,
            "per_device_train_batch_size": 2,
            "learning_rate": 1e-3,
            "lr_scheduler_type": "constant",
            "logging_steps": 1,
            "gradient_checkpointing": False,
            "save_strategy": "no",
            "num_points": 0,
            "cache_features": "off",
            **options,
        }
    )


def make(tmp_path, data, scores=None, eval_dataset=None, callbacks=None, **options):
    model, processor = tiny_sa2va(image_size=128)
    return HardSampleTrainer(
        model=model,
        args=config(tmp_path, **options),
        train_dataset=data,
        eval_dataset=eval_dataset,
        processing_class=processor,
        scores=scores,
        callbacks=callbacks,
    )


def seen_by(trainer):
    """The row numbers of every micro-batch that the model learns from, in order."""
    seen, compute = [], trainer.compute_loss

    def watch(model, inputs, *args, **kwargs):
        if "row_numbers" in inputs:
            seen.append(inputs["row_numbers"].tolist())
        return compute(model, inputs, *args, **kwargs)

    trainer.compute_loss = watch
    return seen


class AfterStep(TrainerCallback):
    def __init__(self, look):
        self.look, self.seen = look, []

    def on_step_end(self, args, state, control, **kwargs):
        self.seen.append(self.look())


def after_each_step(trainer, look):
    """What `look` returns after every update, as it comes."""
    callback = AfterStep(look)
    trainer.add_callback(callback)
    return callback.seen


def logged(trainer, name):
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def test_defaults_are_those_of_the_method():
    args = HardSampleConfig("out", report_to="none")
    assert (args.hard_below, args.worst, args.learning_rate, args.num_train_epochs) == (None, None, 1e-5, 5)
    assert (args.gradient_accumulation_steps, args.weight_decay) == (2, 0.01)
    assert (args.dice_weight, args.mask_weight, args.lm_weight) == (1.0, 0.5, 0.0)
    assert SegSFTConfig("out", report_to="none").learning_rate != args.learning_rate


def test_the_limit_that_was_the_default_may_stand_beside_the_share():
    args = HardSampleConfig("out", threshold=0.75, worst=0.2, use_cpu=True)
    assert (args.hard_below, args.worst) == (None, 0.2)


def test_every_parameter_of_the_head_moves_and_no_other_does(tmp_path, data, scores):
    trainer = make(tmp_path, data, scores, max_steps=3)
    before = {name: value.detach().clone() for name, value in trainer.model.named_parameters()}
    trainer.train()
    for name, value in trainer.model.named_parameters():
        head = "text_hidden_fcs" in name or "sam_mask_decoder" in name
        assert value.requires_grad == (head and "original_module" not in name), name
        if value.requires_grad and not UNREACHED.search(name):
            assert not torch.equal(value, before[name]), name
        if not value.requires_grad:
            assert torch.equal(value, before[name]), name


def test_an_epoch_is_its_plan(tmp_path, data, scores):
    trainer = make(tmp_path, data, scores)
    seen = seen_by(trainer)
    trainer.train()
    assert len(seen) == 12 and trainer.state.global_step == 6 and trainer.state.max_steps == 6
    rows = np.array(seen).ravel()
    for epoch in range(2):
        assert rows[12 * epoch : 12 * (epoch + 1)].tolist() == trainer._plan(epoch)
        assert sorted(row for row in rows[12 * epoch : 12 * (epoch + 1)] if row % 2 == 0) == list(range(0, 12, 2))


def test_hard_rows_only_is_a_setting_and_updates_are_whole(tmp_path, data, scores):
    trainer = make(tmp_path, data, scores, easy_share=0.0, num_train_epochs=1, gradient_accumulation_steps=4)
    seen = seen_by(trainer)
    trainer.train()
    rows = np.array(seen).ravel()
    assert len(rows) == 8 and set(rows.tolist()) == set(range(0, 12, 2))  # six rows, rounded up to a whole update
    assert trainer.state.global_step == 1


def test_rows_come_with_their_own_images(tmp_path, data, scores):
    trainer = make(tmp_path, data, scores)
    loader = trainer.get_train_dataloader()
    trainer._sampler.epoch = 1
    for batch, start in zip(loader, range(0, 12, 2), strict=True):
        expected = trainer._plan(1)[start : start + 2]
        assert batch["row_numbers"].tolist() == expected
        for mask, number in zip(batch["original_masks"], expected, strict=True):
            assert np.array_equal(mask[0].numpy() > 0, np.asarray(data[number]["mask"]) > 0)


# Scores


def test_without_scores_the_starting_model_is_asked(tmp_path, data):
    trainer = make(tmp_path, data, worst=0.25, max_steps=1, include_review=True)
    trainer.train()
    model, processor = tiny_sa2va(image_size=128)
    expected = []
    for row in data:
        found = model.eval().segment(
            image=row["image"], text="Please segment the blood vessel.", processor=processor, answer="Sure, [SEG]."
        )
        predicted, target = found.masks[0].numpy() > 0, np.asarray(row["mask"]) > 0
        tp, fp, fn = (predicted & target).sum(), (predicted & ~target).sum(), (~predicted & target).sum()
        expected.append(float(dice(Counts(tp, fp, fn, target.size - tp - fp - fn))))
    assert trainer.progress.columns["dice"] == pytest.approx(expected, abs=1e-3)
    assert sorted(trainer.progress.hard) == sorted(np.argsort(expected, kind="stable")[:3].tolist())


def mined(scores, *options, **marks):
    """Scores as mining leaves them."""
    return mining.mine(scores, *options).assign(**marks)


def test_what_is_hard_is_what_mining_has_decided(tmp_path, data, scores):
    spread_out = scores.assign(dice=np.linspace(0.05, 0.95, 12))
    for options, given, hard in (
        ((0.3,), {}, 4),
        ((None, 0.5), {}, 6),
        ((0.3,), {"hard_below": 0.6}, 7),
        ((0.3,), {"threshold": 0.6}, 7),
        ((0.3,), {"worst": 0.25}, 3),
        ((), {}, 9),
    ):
        trainer = make(tmp_path, data, mined(spread_out, *options), **given)
        assert len(trainer.progress.hard) == hard, (options, given)
    # Nobody has decided: 0.75.
    assert len(make(tmp_path, data, spread_out).progress.hard) == 9


def test_evaluation_rows_are_told_apart_by_what_mining_has_decided(tmp_path, data, scores):
    trainer = make(tmp_path, data, mined(scores.assign(dice=np.linspace(0.05, 0.95, 12)), 0.3))
    trainer.progress.start["eval"] = [0.2, 0.4, None, 0.8]
    parts = trainer._eval_parts("eval")
    assert parts["hard"].tolist() == [True, False, False, False]
    assert parts["easy"].tolist() == [False, True, False, True]


def test_runs_of_another_limit_are_refused_where_they_count(tmp_path, data, scores):
    marked = mined(scores.assign(video_id=data["video_id"], frame_index=data["frame_index"]), 0.6)
    for options, named in (({"threshold": 0.7}, "hard_below=0.7"), ({"worst": 0.2}, "worst=0.2")):
        with pytest.raises(ValueError, match=f"{named} contradicts difficulty=cluster: .* hard_below=0.6"):
            make(tmp_path, data, marked, difficulty="cluster", **options)
    for options in ({}, {"hard_below": 0.6}):
        make(tmp_path, data, marked, difficulty="cluster", **options)
    make(tmp_path, data, marked, threshold=0.7)  # whose weights do not come from runs
    marked.attrs.clear()  # as an earlier version has written them
    make(tmp_path, data, marked, difficulty="cluster", threshold=0.7)


def test_rows_without_masks_are_left_out(tmp_path):
    rows = every_kind()
    trainer = make(tmp_path, rows, worst=0.5, max_steps=2, include_review=True)
    seen = seen_by(trainer)
    trainer.train()
    with_masks = {number for number, row in enumerate(rows) if row["masks"]}
    assert len(seen) == 4 and {number for batch in seen for number in batch} <= with_masks
    assert sorted(trainer.progress.hard + trainer.progress.ordinary) == sorted(with_masks)


def test_rows_are_scored_again_with_the_present_policy(tmp_path, data, scores):
    trainer = make(tmp_path, data, scores, remine_every=1, worst=0.5, num_train_epochs=3, learning_rate=GENTLE)
    progress = trainer.progress
    plans = after_each_step(trainer, lambda: (progress.mined_at, progress.columns["dice"], progress.length))
    trainer.train()
    assert [mined for mined, _, _ in plans] == sorted([0, 1, 2] * (len(plans) // 3))
    assert len({length for _, _, length in plans}) == 1
    assert plans[0][1] == scores["dice"].tolist()
    assert plans[-1][1] != plans[0][1] and plans[-1][1] != plans[len(plans) // 2][1]


def test_scores_that_tell_nothing_apart_any_more_leave_the_hard_rows(tmp_path, data, scores, log):
    trainer = make(tmp_path, data, scores, remine_every=1)  # the tiny model is below 0.75 everywhere
    trainer.train()
    assert trainer.progress.hard == list(range(0, 12, 2))
    assert "those of before stay. hard_below=0.75 selects all of 12 samples" in log.text


def test_rows_for_review_are_not_trained_on(tmp_path, data, scores):
    trainer = make(tmp_path, data, scores.assign(review=scores.index < 4), num_train_epochs=1)
    seen = seen_by(trainer)
    trainer.train()
    assert min(np.ravel(seen)) == 4
    trainer = make(tmp_path, data, scores.assign(review=scores.index < 4), include_review=True)
    assert min(trainer._plan(0)) == 0


# Logs


def test_hard_and_easy_rows_are_logged_apart(tmp_path, data, scores):
    trainer = make(tmp_path, data, scores, max_steps=1, learning_rate=0.0, gradient_accumulation_steps=3)
    seen = seen_by(trainer)
    values, record = {}, trainer._record_rows

    def watch(outputs, masks, numbers):
        for number, logits, mask in zip(numbers.tolist(), outputs.mask_logits, masks, strict=True):
            drawn, truth = logits.numpy(force=True) > 0, mask.numpy() > 0
            values[number] = (2 * (drawn & truth).sum() + 1) / (drawn.sum() + truth.sum() + 1)
        record(outputs, masks, numbers)

    trainer._record_rows = watch
    trainer.train()
    rows = np.ravel(seen)
    for name, part in (("hard", rows[rows % 2 == 0]), ("easy", rows[rows % 2 == 1])):
        assert len(part) == 3
        expected = np.mean([values[row] for row in part])
        assert logged(trainer, f"masks/dice_{name}") == pytest.approx([expected], abs=1e-5)


def test_evaluation_rows_are_told_apart_by_the_starting_model(tmp_path, data, held_out, scores):
    trainer = make(
        tmp_path, data, scores.assign(dice=np.linspace(0, 1, 12)), held_out, worst=0.5, eval_strategy="epoch"
    )
    trainer.train()
    start = np.array(trainer.progress.start["eval"])
    assert len(start) == 4 and trainer.state.log_history[0]["step"] == 0
    order = np.sort(start)
    assert logged(trainer, "eval_dice_hard")[0] == pytest.approx(order[:2].mean())
    assert logged(trainer, "eval_dice_easy")[0] == pytest.approx(order[2:].mean())
    assert len(logged(trainer, "eval_dice_easy")) == 3
    for hard, easy, both in zip(
        *(logged(trainer, name) for name in ("eval_dice_hard", "eval_dice_easy", "eval_dice")), strict=True
    ):
        assert (hard + easy) / 2 == pytest.approx(both)


@pytest.mark.parametrize(("what", "steps"), [("stop", 3), ("warn", 6), ("ignore", 6)])
def test_easy_rows_that_get_worse_stop_or_warn(tmp_path, data, held_out, scores, log, what, steps):
    # At this learning rate the tiny model forgets everything within an epoch.
    options = {} if what == "ignore" else {"easy_margin": 0.01}
    trainer = make(
        *(tmp_path, data, scores, held_out), eval_strategy="epoch", easy_regression=what, threshold=0.6, **options
    )
    trainer.progress.start["eval"] = [0.9, 0.9, 0.1, 0.1]
    trainer.train()
    assert trainer.state.global_step == steps
    warnings = [entry for entry in log.records if "eval_dice_easy fell from 0.9000 at the start" in entry.message]
    assert bool(warnings) == (what != "ignore") and all(entry.levelname == "WARNING" for entry in warnings)


# Resuming


@pytest.mark.parametrize(("cached", "steps"), [(False, (2, 3, 4)), (True, (4,))])
def test_a_resumed_run_goes_on_alike(tmp_path, data, held_out, cached, steps):
    """In the middle of an epoch and between two, with scores of the trainer's own from different times."""
    options = {
        "worst": 0.4,
        "include_review": True,  # no candidate of the tiny model explains any mask
        "learning_rate": GENTLE,
        "remine_every": 1,
        "num_train_epochs": 2,
        "easy_share": 0.5,
        "eval_strategy": "epoch",
        "save_strategy": "steps",
        "save_steps": 1,
        "num_points": 64,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 4,
        "easy_regression": "ignore",
        **(
            {"cache_features": "on", "cache_dir": str(tmp_path / "cache")}
            if cached
            else {"augmentation": {"flip": 0.5, "rotation": 10.0, "motion_blur": 0.05}}
        ),
    }
    whole = make(tmp_path, data, None, held_out, **options)
    expected = seen_by(whole)
    whole.train()
    assert whole.state.global_step == 6 and len(expected) == 24
    for step in steps:
        again = make(tmp_path, data, None, held_out, **{**options, "save_strategy": "no"})
        rest = seen_by(again)
        again.train(resume_from_checkpoint=str(tmp_path / "out" / f"checkpoint-{step}"))
        assert rest == expected[4 * step :]
        assert again.progress.columns == whole.progress.columns
        names = ("loss", "grad_norm", "masks/dice_hard", "masks/dice_easy", "eval_dice", "eval_dice_hard", "step")
        # Trainer evaluates an epoch after it has saved its last step, and not again when it goes on from there.
        histories = [
            [
                {name: entry[name] for name in names if name in entry}
                for entry in trainer.state.log_history
                if "loss" in entry or entry["step"] != step
            ]
            for trainer in (whole, again)
        ]
        assert len(histories[0]) == len(histories[1]) > 8
        for one, other in zip(*histories, strict=True):
            assert one == pytest.approx(other, rel=1e-5)
        for one, other in zip(whole.model.parameters(), again.model.parameters(), strict=True):
            assert torch.equal(one, other)


def test_what_a_resumed_run_needs_has_the_name_in_checkpoints_that_it_always_had(tmp_path, data, scores):
    make(tmp_path, data, scores, max_steps=1, save_strategy="steps", save_steps=1).train()
    state = json.loads((tmp_path / "out" / "checkpoint-1" / "trainer_state.json").read_text())
    assert state["stateful_callbacks"]["_Progress"]["attributes"]["hard"] == list(range(0, 12, 2))


def test_a_checkpoint_of_other_rows_or_options_is_refused(tmp_path, data, scores):
    make(tmp_path, data, scores, max_steps=1, save_strategy="steps", save_steps=1).train()
    checkpoint = str(tmp_path / "out" / "checkpoint-1")
    other = synthetic_dataset(num_videos=2, frames_per_video=6, size=64, first_video=2)
    with pytest.raises(DatasetError, match="other rows"):
        make(tmp_path, other, None).train(resume_from_checkpoint=checkpoint)
    changed = make(tmp_path, data, scores, threshold=0.6, easy_share=0.0)
    with pytest.raises(ValueError, match="begun with hard_below=0.75, easy_share=0.5: resume it with the same"):
        changed.train(resume_from_checkpoint=checkpoint)


def test_a_checkpoint_says_what_was_hard_where_options_do_not(tmp_path, data, scores):
    options = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    make(tmp_path, data, mined(scores, 0.6), **options).train()
    checkpoint = tmp_path / "out" / "checkpoint-1"
    again = make(tmp_path, data, None, **options)
    again.train(resume_from_checkpoint=str(checkpoint))
    assert again.progress.options["hard_below"] == 0.6 and again._what_is_hard() == {"hard_below": 0.6}
    with pytest.raises(ValueError, match="begun with hard_below=0.6: resume"):
        make(tmp_path, data, None, threshold=0.7, **options).train(resume_from_checkpoint=str(checkpoint))


@pytest.mark.parametrize(("given", "other"), [({}, {"threshold": 0.6}), ({"worst": 0.5}, {"worst": 0.25})])
def test_a_checkpoint_of_an_earlier_version_is_resumed(tmp_path, data, scores, given, other):
    options = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    make(tmp_path, data, scores, **given, **options).train()
    file = tmp_path / "out" / "checkpoint-1" / "trainer_state.json"
    state = json.loads(file.read_text())
    began = state["stateful_callbacks"]["_Progress"]["attributes"]["options"]
    del began["hard_below"]
    began["threshold"] = 0.75  # which it had beside `worst`, too
    file.write_text(json.dumps(state))
    again = make(tmp_path, data, scores, **given, **options)
    again.train(resume_from_checkpoint=str(file.parent))
    assert again.state.global_step == 2
    with pytest.raises(ValueError, match="was begun with"):
        make(tmp_path, data, scores, **other, **options).train(resume_from_checkpoint=str(file.parent))


# Cached features


def test_cached_features_give_the_same_run(tmp_path, data, held_out):
    logs, rows = [], []
    for mode in ("off", "on"):
        trainer = make(
            *(tmp_path, data, None, held_out),
            **{
                "worst": 0.4,
                "include_review": True,
                "remine_every": 1,
                "eval_strategy": "epoch",
                "cache_features": mode,
            },
            cache_dir=None if mode == "off" else str(tmp_path / "cache"),
        )
        rows.append(seen_by(trainer))
        trainer.train()
        logs.append([entry for entry in trainer.state.log_history if "loss" in entry or "eval_loss" in entry])
    assert rows[0] == rows[1] and len(rows[0]) == 12
    # Three steps an epoch; evaluations of the start and after each epoch.
    assert len(logs[0]) == 2 * 3 + 3
    for one, two in zip(*logs, strict=True):
        for name in (
            ("eval_dice", "eval_dice_easy") if "eval_loss" in one else ("loss", "grad_norm", "masks/dice_hard")
        ):
            assert one[name] == pytest.approx(two[name], abs=1e-5), name


def test_features_are_cached_by_default_and_not_with_augmentation(tmp_path, data, scores, log):
    for augmentation, state in ((None, "on"), ({"motion_blur": 0.1}, "off, augmentation changes the images")):
        make(
            *(tmp_path, data, scores),
            cache_features="auto",
            cache_dir=str(tmp_path / "cache"),
            augmentation=augmentation,
        )
        assert f"cache_features=auto: {state}" in log.text


def test_rows_whose_views_are_cached_are_scored_as_they_are(tmp_path, data):
    options = {"worst": 0.25, "include_review": True, "augmentation": {"flip": 1.0}, "learning_rate": GENTLE}
    cache = {"cache_features": "on", "cache_dir": str(tmp_path / "cache"), "cache_views": 1}
    plain = make(tmp_path, data, **options, max_steps=1)
    views = make(tmp_path, data, **options, **cache, remine_every=1, max_steps=3)
    plain.train()
    scores = after_each_step(views, lambda: views.progress.columns["dice"])
    views.train()
    assert scores[0] == pytest.approx(plain.progress.columns["dice"], abs=1e-5)
    assert scores[-1] != scores[0] and len(scores[-1]) == len(data)


# What cannot be


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 0.0}, "hard_below must lie"),
        ({"worst": 1.0}, "worst must lie"),
        ({"worst": 0.2, "threshold": 0.5}, "worst=0.2 says which rows are hard"),
        ({"hard_below": 0.4, "threshold": 0.5}, "hard_below=0.4 and threshold=0.5"),
        ({"difficulty": "loss"}, "difficulty must be one of"),
        ({"curriculum": "thin"}, "curriculum must be one of"),
        ({"weight_cap": 2.0}, "difficulty=threshold caps nothing"),
        ({"weight_cap": 0.5, "difficulty": "dice"}, "weight_cap must be at least 1"),
        ({"easy_share": 1.0}, "easy_share must lie"),
        ({"remine_every": 2}, "never comes in 2 epochs"),
        ({"remine_every": 0}, "remine_every must be at least 1"),
        ({"easy_regression": "stop"}, "needs an evaluation to watch"),
        ({"easy_regression": "ignore", "easy_margin": 0.1}, "watches nothing"),
        ({"easy_margin": 0.1}, "easy_margin=0.1: needs an evaluation to watch"),
        ({"train_sampling_strategy": "sequential"}, "train_sampling_strategy='sequential'"),
        ({"dataset_repeats": 2}, "dataset_repeats=2"),
        ({"shuffle_dataset": True}, "shuffle_dataset"),
    ],
)
def test_options_without_a_meaning_raise(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        config(tmp_path, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"difficulty": "spread"}, "difficulty=spread needs a column 'spread'"),
        ({"difficulty": "cluster"}, "difficulty=cluster needs a column 'cluster'"),
        ({"curriculum": "thickness"}, "curriculum=thickness needs a column 'thickness'"),
        ({"include_review": True}, "include_review=True needs a column 'review'"),
        ({"threshold": 0.3}, "hard_below=0.3 selects none of 12 samples"),
        ({"threshold": 0.95}, "hard_below=0.95 selects all of 12 samples"),
    ],
)
def test_scores_that_cannot_serve_an_option_say_so(tmp_path, data, scores, options, message):
    with pytest.raises(ValueError, match=message):
        make(tmp_path, data, scores, **options)


@pytest.mark.parametrize(
    ("options", "column"),
    [({"difficulty": "spread", "weight_cap": 20.0}, "spread"), ({"difficulty": "cluster"}, "cluster")],
)
def test_what_a_difficulty_needs_is_scored_again_too(tmp_path, data, options, column):
    trainer = make(
        *(tmp_path, data),
        worst=0.5,
        include_review=True,
        remine_every=1,
        curriculum="thickness",
        learning_rate=GENTLE,
        **options,
    )
    found = after_each_step(trainer, lambda: trainer.progress.columns)
    trainer.train()
    first, last = found[0], found[-1]
    assert first["dice"] != last["dice"] and first[column] != last[column]
    assert first["thickness"] == last["thickness"]
    scores = trainer.score().set_index("sample_id").loc[data["sample_id"]]
    # Trained for an epoch since, the scores are of another model; what was taken from the present one is not.
    trainer._adopt(trainer._score_again(), epoch=2)
    assert trainer.progress.columns["dice"] == pytest.approx(scores["dice"].tolist(), abs=1e-6)
    if column == "spread":
        assert trainer.progress.columns["spread"] == pytest.approx(scores["spread"].tolist(), abs=1e-6)
    else:
        # Numbers in the place of the names, which are those of videos.
        numbers = trainer.progress.columns["cluster"]
        named = scores["cluster"].where(scores["cluster"].notna(), None).tolist()
        assert [number is None for number in numbers] == [name is None for name in named] and scores["cluster"].any()
        assert len(set(zip(numbers, named, strict=True))) == len(set(numbers)) == len(set(named))
        assert not any(isinstance(number, str) for number in numbers)


def test_a_file_of_scores_is_of_this_model_and_data(tmp_path, data, held_out):
    model, processor = tiny_sa2va(image_size=128)
    path = tmp_path / "scores.parquet"
    found = mining.mine(mining.score_dataset(model, processor, data, progress=False), worst=0.25)
    mining.save_scores(found, path, mining.fingerprint_of(model, processor, data))
    trainer = make(tmp_path, data, path, worst=0.25, include_review=True)
    assert trainer.progress.columns["dice"] == found["dice"].tolist()
    with pytest.raises(mining.MiningError, match="data set"):
        make(tmp_path, held_out, path, worst=0.25)
    for parameter in model.text_hidden_fcs.parameters():
        parameter.data += 0.1
    mining.save_scores(found, path, mining.fingerprint_of(model, processor, data))
    with pytest.raises(mining.MiningError, match="model"):
        make(tmp_path, data, path, worst=0.25)


def test_re_mining_that_never_comes_in_so_many_steps_raises(tmp_path, data, scores):
    with pytest.raises(ValueError, match="never comes in 1 epochs"):
        make(tmp_path, data, scores, remine_every=1, max_steps=2).train()


def test_streams_and_shared_patients_are_refused(tmp_path, data, scores):
    with pytest.raises(TypeError, match="a stream has not"):
        make(tmp_path, data.to_iterable_dataset(), scores, max_steps=1)
    with pytest.raises(DatasetError, match="overlap"):
        make(tmp_path, data, scores, data.select(range(2)))


def test_other_arguments_are_refused(data):
    with pytest.raises(TypeError, match="HardSampleConfig"):
        HardSampleTrainer("x", SimpleNamespace(), train_dataset=data)
